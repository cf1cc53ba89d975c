"""Losses over tokens as actions: numpy, numbers by hand, finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from qstar_jax.learner import losses, offline, regularizers

Z, B, T, V = 2, 3, 5, 7

# Each with the names of its arrays; the first one is learned.
LOSSES = {
  "awac": (
    functools.partial(offline.awac_loss, temperature=0.5, max_weight=3.0),
    ("logits", "tokens", "weight", "value"),
  ),
  "q": (offline.q_loss, ("q", "value", "reward", "discount", "weight")),
  "expectile": (
    functools.partial(offline.expectile_loss, expectile=0.8),
    ("value", "reward", "weight"),
  ),
  "cql": (offline.cql_loss, ("log_sum", "q", "weight")),
  "kl": (regularizers.kl_loss, ("logits", "reference", "weight")),
  "entropy": (regularizers.entropy_loss, ("logits", "weight")),
}


@pytest.fixture
def arrays():
  rng = np.random.default_rng(0)
  return {
    "logits": rng.normal(size=(B, T, V)),
    "reference": rng.normal(size=(B, T, V)),
    "tokens": rng.integers(0, V, (B, T)),
    "q": rng.normal(size=(Z, B, T)),
    "log_sum": rng.normal(size=(Z, B, T)),
    "value": rng.normal(size=(B, T)),
    "reward": rng.normal(size=(B, T)),
    "discount": rng.choice([0.0, 0.9, 1.0], (B, T)),
    "weight": rng.random((B, T)) * (rng.random((B, T)) < 0.6),
  }


def softmax(x):
  return np.exp(x) / np.exp(x).sum()


def terms(name, x, b, t):
  """The loss of the token at t, and a factor of its weight."""
  if name == "awac":
    factor = min(np.exp(x["value"][b, t] / 0.5), 3.0)
    p = softmax(x["logits"][b, t])[x["tokens"][b, t]]
    return -np.log(p), factor
  if name == "q":
    target = x["reward"][b, t] + x["discount"][b, t] * x["value"][b, t]
    return sum((q[b, t] - target) ** 2 for q in x["q"]), 1.0
  if name == "expectile":
    above = x["reward"][b, t] - x["value"][b, t]
    return (0.8 if above > 0 else 0.2) * above**2, 1.0
  if name == "cql":
    return (x["log_sum"] - x["q"])[:, b, t].sum(), 1.0
  p = softmax(x["logits"][b, t])
  if name == "kl":
    return p @ np.log(p / softmax(x["reference"][b, t])), 1.0
  return p @ np.log(p), 1.0


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_the_reference(name, arrays):
  total = norm = 0.0
  for b, t in np.ndindex(B, T):
    loss, factor = terms(name, arrays, b, t)
    # A factor of the weight is one of its norm too, as in any mean.
    total += loss * factor * arrays["weight"][b, t]
    norm += factor * arrays["weight"][b, t]
  fn, names = LOSSES[name]
  actual = fn(*(jnp.asarray(arrays[n]) for n in names))
  np.testing.assert_allclose(actual, total / norm, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name, arrays):
  fn, names = LOSSES[name]
  with jax.enable_x64(True):
    learned, *rest = (jnp.asarray(arrays[n]) for n in names)
    check_grads(
      lambda x: fn(x, *rest),
      [learned],
      order=1,
      modes=["rev"],
      rtol=1e-6,
      atol=1e-8,
    )


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_to_learn_is_zero_with_zero_gradient(name, arrays):
  arrays["weight"] = np.zeros((B, T))
  fn, names = LOSSES[name]
  learned, *rest = (jnp.asarray(arrays[n]) for n in names)
  value, gradient = jax.value_and_grad(fn)(1e3 * learned, *rest)
  assert value == 0
  np.testing.assert_array_equal(gradient, jnp.zeros_like(gradient))


@pytest.mark.parametrize(
  ("name", "wrong"),
  [(name, wrong) for name in LOSSES for wrong in LOSSES[name][1]],
)
def test_shapes_must_match(name, wrong, arrays):
  arrays[wrong] = (
    arrays[wrong][..., :-1, :] if wrong == "logits" else (arrays[wrong][:, :-1])
  )
  fn, names = LOSSES[name]
  with pytest.raises(AssertionError, match="shape"):
    fn(*(jnp.asarray(arrays[n]) for n in names))


@pytest.mark.parametrize(
  ("name", "constant"), [("q", 1), ("expectile", 1), ("awac", 3)]
)
def test_what_is_a_target_learns_nothing(name, constant, arrays):
  fn, names = LOSSES[name]
  args = [jnp.asarray(arrays[n]) for n in names]
  gradient = jax.grad(fn, argnums=constant)(*args)
  np.testing.assert_array_equal(gradient, jnp.zeros_like(gradient))


def test_weights_of_advantages_by_hand():
  advantage = np.array([-np.inf, -0.5, 0.0, 0.25, 1e9])
  np.testing.assert_allclose(
    offline.advantage_weight(advantage, temperature=0.5, max_weight=1.5),
    [0, np.exp(-1), 1, 1.5, 1.5],
    rtol=1e-6,
  )


def test_awac_by_hand():
  """p = 3/4 and 1/2; one advantage doubles the weight, one is cut at 3."""
  logits = jnp.log(jnp.array([[[1.0, 9.0], [1.0, 3.0], [1.0, 1.0]]]))
  tokens = jnp.array([[0, 1, 0]])
  weight = jnp.array([[0.0, 1.0, 0.5]])
  advantage = jnp.array([[0.0, 0.5 * np.log(2), 10.0]])
  loss = offline.awac_loss(
    logits, tokens, weight, advantage, temperature=0.5, max_weight=3.0
  )
  np.testing.assert_allclose(loss, 0.461452, rtol=1e-5)


def test_cql_by_hand():
  """Of two tokens one head gives (1, 0), all others (0, 0)."""
  log_sum = jnp.array([[[1.313262, 0.693147]], [[0.693147, 0.693147]]])
  log_sum = jnp.pad(log_sum, ((0, 0), (0, 0), (1, 0)))
  q = jnp.array([[[5.0, 1.0, 0.0]], [[5.0, 0.0, 0.0]]])
  weight = jnp.array([[0.0, 1.0, 3.0]])
  # 0.313262 + 0.693147 once, and twice 0.693147 three times.
  loss = offline.cql_loss(log_sum, q, weight)
  np.testing.assert_allclose(loss, 1.291323, rtol=1e-5)


def test_q_learns_reward_and_what_comes_after():
  """Two tokens: V = 1/2 comes after the first, which earns 1/4; the second
  ends the line with 1, and V = 9 behind it says nothing."""
  q = jnp.array([[[7.0, 0.0, 0.5]]])
  value = jnp.array([[3.0, 0.5, 9.0]])
  reward = jnp.array([[0.0, 0.25, 1.0]])
  discount = jnp.array([[1.0, 1.0, 0.0]])
  weight = jnp.array([[0.0, 1.0, 3.0]])
  expected = (0.75**2 + 3 * 0.5**2) / 4
  np.testing.assert_allclose(
    offline.q_loss(q, value, reward, discount, weight), expected, rtol=1e-6
  )


@pytest.mark.parametrize("expectile", [0.1, 0.5, 0.9])
def test_the_best_value_is_the_expectile_of_q(expectile):
  """Of Q = 0 and Q = 1, equally often, it is the expectile itself."""
  q = jnp.array([[5.0, 0.0], [5.0, 1.0]])
  weight = jnp.array([[0.0, 1.0], [0.0, 1.0]])

  def loss(value):
    value_BT = jnp.full((2, 2), value)
    return offline.expectile_loss(value_BT, q, weight, expectile=expectile)

  assert jax.grad(loss)(expectile) == pytest.approx(0, abs=1e-6)
  assert jax.grad(loss)(expectile + 0.1) > 0.01


def test_kl_and_entropy_by_hand():
  """pi = (3/4, 1/4), the reference is uniform."""
  logits = jnp.log(jnp.array([[[1.0, 1.0], [3.0, 1.0]]]))
  weight = jnp.array([[0.0, 2.0]])
  entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
  np.testing.assert_allclose(
    regularizers.entropy_loss(logits, weight), -entropy, rtol=1e-5
  )
  kl = regularizers.kl_loss(logits, jnp.zeros_like(logits), weight)
  np.testing.assert_allclose(kl, np.log(2) - entropy, rtol=1e-5)


def test_kl_to_itself_pulls_nowhere(arrays):
  logits = jnp.asarray(arrays["logits"])
  weight = jnp.asarray(arrays["weight"])
  kl, gradient = jax.value_and_grad(regularizers.kl_loss)(
    logits, logits, weight
  )
  assert kl == 0
  np.testing.assert_allclose(gradient, 0, atol=1e-7)


@pytest.mark.parametrize(
  ("kl", "expected"),
  [(0.1, 2.0), (0.11, 2.02), (0.09, 1.98), (9.0, 2.04), (0.0, 1.96)],
)
def test_the_coefficient_follows_the_error(kl, expected):
  """Its own size is 2; a tenth of the error, which is at most a fifth."""
  new = regularizers.adapted_coefficient(jnp.float32(2), jnp.float32(kl), 0.1)
  np.testing.assert_allclose(new, expected, rtol=1e-5)


# Pairs.


def test_ranking_by_hand_and_its_shapes():
  """Logits apart by log 3 (weight 2), and by minus log 3 (weight 1)."""
  better = jnp.log(jnp.array([3.0, 1.0, 5.0]))
  worse = jnp.log(jnp.array([1.0, 3.0, 1.0]))
  weight = jnp.array([2.0, 1.0, 0.0])
  expected = (2 * np.log(4 / 3) + np.log(4)) / 3
  np.testing.assert_allclose(
    losses.prm_ranking_loss(better, worse, weight), expected, rtol=1e-6
  )
  for args in (
    (better[:2], worse, weight),
    (better, worse[:2], weight),
    (better, worse, weight[:2]),
  ):
    with pytest.raises(AssertionError, match="shape"):
      losses.prm_ranking_loss(*args)
  value, gradient = jax.value_and_grad(losses.prm_ranking_loss)(
    1e4 * better, worse, 0 * weight
  )
  assert value == 0
  assert not gradient.any()


def test_gradient_of_the_ranking():
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    better, worse, weight = jnp.asarray(rng.random((3, 4)))
    check_grads(
      lambda *pair: losses.prm_ranking_loss(*pair, weight),
      [better, worse],
      order=1,
      modes=["rev"],
      rtol=1e-6,
      atol=1e-8,
    )
