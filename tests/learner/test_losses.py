"""Losses against numpy, hand-worked numbers and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from qstar_jax.learner import losses

B, T, V = 3, 5, 7


@pytest.fixture
def arrays():
  rng = np.random.default_rng(0)
  return {
    "logits": rng.normal(size=(B, T, V)),
    "tokens": rng.integers(0, V, (B, T)),
    "scalar_logits": rng.normal(size=(B, T)) * 3,
    "target": rng.choice([0.0, 0.3, 1.0], (B, T)),
    "weight": rng.random((B, T)) * (rng.random((B, T)) < 0.6),
  }


def reference_policy_loss(logits, tokens, weight):
  total, norm = 0.0, 0.0
  for b in range(len(tokens)):
    for t in range(tokens.shape[1]):
      before = logits[b, t]
      log_prob = before[tokens[b, t]] - np.log(np.sum(np.exp(before)))
      total -= weight[b, t] * log_prob
      norm += weight[b, t]
  return total / norm


def reference_cross_entropy(logits, target, weight):
  p = 1 / (1 + np.exp(-logits))
  losses_BT = -(target * np.log(p) + (1 - target) * np.log(1 - p))
  return np.average(losses_BT, weights=weight)


def test_policy_loss_is_the_reference(arrays):
  args = arrays["logits"], arrays["tokens"], arrays["weight"]
  np.testing.assert_allclose(
    losses.policy_loss(*map(jnp.asarray, args)),
    reference_policy_loss(*args),
    rtol=1e-5,
  )


@pytest.mark.parametrize("loss", [losses.value_loss, losses.prm_loss])
def test_binary_losses_are_the_reference(arrays, loss):
  args = arrays["scalar_logits"], arrays["target"], arrays["weight"]
  np.testing.assert_allclose(
    loss(*map(jnp.asarray, args)), reference_cross_entropy(*args), rtol=1e-5
  )


def test_policy_loss_by_hand():
  """Two tokens: p = 3/4 (weight 1) and p = 1/4 (weight 1/2)."""
  logits = jnp.log(jnp.array([[[9.0, 1.0], [1.0, 3.0], [1.0, 3.0]]]))
  tokens = jnp.array([[0, 1, 0]])
  weight = jnp.array([[0.0, 1.0, 0.5]])
  expected = (np.log(4 / 3) + 0.5 * np.log(4)) / 1.5
  np.testing.assert_allclose(
    losses.policy_loss(logits, tokens, weight), expected, rtol=1e-6
  )


def test_value_loss_by_hand():
  """V = 3/4 for targets 1 and 1/2; the third has no target."""
  logits = jnp.log(jnp.array([[3.0, 3.0, 99.0]]))
  target = jnp.array([[1.0, 0.5, 0.0]])
  weight = jnp.array([[1.0, 1.0, 0.0]])
  expected = (np.log(4 / 3) + 0.5 * np.log(4 / 3) + 0.5 * np.log(4)) / 2
  np.testing.assert_allclose(
    losses.value_loss(logits, target, weight), expected, rtol=1e-6
  )


def test_prm_loss_by_hand():
  """R = 1/2 for a right step, and 3/4 for one that a quarter calls right."""
  loss = losses.prm_loss(
    jnp.array([[0.0, np.log(3.0), 5.0]]),
    jnp.array([[1.0, 0.25, 1.0]]),
    jnp.array([[1.0, 2.0, 0.0]]),
  )
  # (0.693147 + 2 (0.25 * 0.287682 + 0.75 * 1.386294)) / 3
  np.testing.assert_allclose(loss, 0.972143, rtol=1e-5)


def test_scale_of_the_weights_has_no_effect(arrays):
  names = "scalar_logits", "target", "weight"
  logits, target, weight = (jnp.asarray(arrays[name]) for name in names)
  np.testing.assert_allclose(
    losses.value_loss(logits, target, 5 * weight),
    losses.value_loss(logits, target, weight),
    rtol=1e-6,
  )


def test_gradients(arrays):
  with jax.enable_x64(True):
    weight = jnp.asarray(arrays["weight"])
    tokens, target = (
      jnp.asarray(arrays["tokens"]),
      jnp.asarray(arrays["target"]),
    )
    check_grads(
      lambda logits: losses.policy_loss(logits, tokens, weight),
      [jnp.asarray(arrays["logits"])],
      order=1,
      modes=["rev"],
      rtol=1e-6,
      atol=1e-8,
    )
    for loss in losses.value_loss, losses.prm_loss:
      check_grads(
        lambda logits, loss=loss: loss(logits, target, weight),
        [jnp.asarray(arrays["scalar_logits"])],
        order=1,
        modes=["rev"],
        rtol=1e-6,
        atol=1e-8,
      )


def test_nothing_to_learn_is_zero_with_zero_gradient(arrays):
  nothing = jnp.zeros((B, T))
  tokens, target = jnp.asarray(arrays["tokens"]), jnp.asarray(arrays["target"])
  cases = [
    (lambda x: losses.policy_loss(x, tokens, nothing), arrays["logits"]),
    (
      lambda x: losses.value_loss(x, target, nothing),
      arrays["scalar_logits"] * 1e4,
    ),
    (lambda x: losses.prm_loss(x, target, nothing), arrays["scalar_logits"]),
  ]
  for loss, logits in cases:
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(logits))
    assert value == 0
    np.testing.assert_array_equal(gradient, jnp.zeros_like(gradient))


@pytest.mark.parametrize("name", ["tokens", "weight"])
def test_policy_shapes_must_match(arrays, name):
  arrays[name] = arrays[name][:, :-1]
  with pytest.raises(AssertionError, match="shape"):
    losses.policy_loss(arrays["logits"], arrays["tokens"], arrays["weight"])


@pytest.mark.parametrize("loss", [losses.value_loss, losses.prm_loss])
@pytest.mark.parametrize("name", ["target", "weight"])
def test_binary_shapes_must_match(arrays, name, loss):
  arrays[name] = arrays[name][:1]
  with pytest.raises(AssertionError, match="shape"):
    loss(arrays["scalar_logits"], arrays["target"], arrays["weight"])
