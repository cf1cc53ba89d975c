"""Policy improvement against numpy and against numbers worked by hand."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qstar_jax import improvement

# Gumbel MuZero's constants, as the search's default config has them.
SCALE = {"maxvisit_init": 50.0, "value_scale": 0.1}
A = 5

logits = st.lists(st.floats(-20, 0, width=32), min_size=A, max_size=A)
values = st.lists(st.floats(0, 1, width=32), min_size=A, max_size=A)
counts = st.lists(st.integers(0, 9), min_size=A, max_size=A)


def array(x, dtype=np.float32):
  return np.asarray(x, dtype)


def softmax(x):
  weight = np.exp(x - x.max(axis=-1, keepdims=True))
  return weight / weight.sum(axis=-1, keepdims=True)


def test_prior_at_temperature_one_is_the_counts_alone():
  log_prob = np.log(array([0.01, 0.9, 0.3, 0.5]))
  prior = improvement.candidate_prior_logits(
    log_prob, log_prob, array([3, 1, 0, 4], np.int32)
  )
  expected = [3 / 8, 1 / 8, 0, 4 / 8]
  np.testing.assert_allclose(softmax(np.asarray(prior)), expected, atol=1e-6)


def test_prior_corrects_for_the_temperature():
  # Two steps with pi = (0.8, 0.2). At temperature 2 they are sampled with
  # probability proportional to sqrt(pi), (2/3, 1/3): eight samples would be
  # about 5.33 and 2.67 of them, and counting those as they are would flatten
  # the policy. The weights 0.8 / (2/3) and 0.2 / (1/3) undo it.
  pi, beta = array([0.8, 0.2]), array([2 / 3, 1 / 3])
  counts = array([16, 8], np.int32)
  prior = improvement.candidate_prior_logits(np.log(pi), np.log(beta), counts)
  np.testing.assert_allclose(softmax(np.asarray(prior)), pi, atol=1e-6)


def test_sigma_worked_by_hand():
  # (50 + max visits) * 0.1 * q, the maximum over all candidates.
  sigma = improvement.sigma(
    array([[0.5, 1.0], [0.25, 0.0]]), array([[0, 10], [2, 0]], int), **SCALE
  )
  np.testing.assert_allclose(sigma, [[3.0, 6.0], [1.3, 0.0]], rtol=1e-6)


def test_improved_policy_worked_by_hand():
  # Log odds: log 3 of the prior, and (50 + 10) * 0.1 * (0.5 - 0.6) = -0.6.
  policy = improvement.improved_policy(
    np.log(array([0.75, 0.25])),
    array([0.5, 0.6]),
    array([10, 4], np.int32),
    **SCALE,
  )
  first = 3 * np.exp(-0.6) / (1 + 3 * np.exp(-0.6))
  np.testing.assert_allclose(policy, [first, 1 - first], rtol=1e-5)


def test_mixed_value_worked_by_hand():
  # Visited are the first two, with prior 0.5 and 0.3: mean Q = (0.5 * 0.2 +
  # 0.3 * 1) / 0.8 = 0.5; four visits weigh it four times against V = 1.
  value = improvement.mixed_value(
    array(1.0),
    np.log(array([0.5, 0.3, 0.2])),
    array([0.2, 1.0, 77.0]),
    array([3, 1, 0], np.int32),
  )
  np.testing.assert_allclose(value, (1.0 + 4 * 0.5) / 5, rtol=1e-6)


def test_mixed_value_without_visits_is_the_value():
  value = improvement.mixed_value(
    array([0.3]),
    np.zeros((1, 4), np.float32),
    np.ones((1, 4)),
    np.zeros((1, 4)),
  )
  np.testing.assert_allclose(value, [0.3], rtol=1e-6)


def test_mixed_value_survives_a_prior_that_underflows():
  value = improvement.mixed_value(
    array(0.0), array([0.0, -500.0]), array([0.0, 0.5]), array([0, 3], int)
  )
  np.testing.assert_allclose(value, 3 * 0.5 / 4, rtol=1e-6)


def test_rows_without_candidates_are_finite():
  zeros = np.zeros((2, A), np.float32)
  count = np.zeros((2, A), np.int32)
  prior = improvement.candidate_prior_logits(zeros - 300.0, zeros, count)
  np.testing.assert_array_equal(prior, improvement.NEG_INF)
  policy = improvement.improved_policy(prior, zeros + 1.0, count, **SCALE)
  value = improvement.mixed_value(zeros[:, 0], prior, zeros, count)
  assert np.isfinite(policy).all()
  np.testing.assert_allclose(np.sum(policy, axis=-1), 1.0, rtol=1e-6)
  np.testing.assert_array_equal(value, 0.0)


@hypothesis.given(logits, logits, counts, values, counts)
def test_equals_numpy(log_prob, proposal, count, q, visits):
  hypothesis.assume(any(count))
  log_prob, proposal, q = map(array, (log_prob, proposal, q))
  count, visits = array(count, np.int32), array(visits, np.int32)
  prior = np.asarray(
    improvement.candidate_prior_logits(log_prob, proposal, count)
  )
  weight = count * np.exp(log_prob.astype(float) - proposal)
  np.testing.assert_allclose(softmax(prior), weight / weight.sum(), atol=1e-5)
  policy = improvement.improved_policy(prior, q, visits, **SCALE)
  weight *= np.exp((50 + visits.max()) * 0.1 * q.astype(float))
  np.testing.assert_allclose(policy, weight / weight.sum(), atol=1e-5)
  assert (np.asarray(policy)[count == 0] == 0).all()


@hypothesis.given(logits, counts, values, counts)
def test_improvement_never_lowers_the_expected_q(log_prob, count, q, visits):
  """The point of it all: E_pi'[q] >= E_pi[q], with more weight on higher q."""
  hypothesis.assume(any(count))
  q = array(q)
  zeros = np.zeros(A, np.float32)
  prior = np.asarray(
    improvement.candidate_prior_logits(
      array(log_prob), zeros, array(count, np.int32)
    )
  )
  policy = np.asarray(
    improvement.improved_policy(prior, q, array(visits, np.int32), **SCALE)
  )
  assert policy @ q >= softmax(prior) @ q - 1e-6


@pytest.mark.parametrize("constant", [0.0, 0.5, 1.0])
def test_constant_q_improves_nothing(constant):
  prior = np.log(array([0.1, 0.2, 0.3, 0.4]))
  policy = improvement.improved_policy(
    prior,
    np.full(4, constant, np.float32),
    array([9, 0, 3, 1], np.int32),
    **SCALE,
  )
  np.testing.assert_allclose(policy, np.exp(prior), rtol=1e-5)


def pruned_by_hand(prior, q, visits, forced_playouts):
  """Visits taken away one after another, as the paper has it."""
  total = 1 + visits.sum()
  c = 1.25 + np.log((total + 19_652.0 + 1) / 19_652.0)

  def score(a, n):
    return q[a] + c * prior[a] * np.sqrt(total) / (1 + n)

  best = int(np.argmax(visits))
  kept = visits.astype(float)
  for a in range(len(visits)):
    forced = np.floor(np.sqrt(forced_playouts * prior[a] * visits.sum()))
    if a == best:
      continue
    for _ in range(int(forced)):
      if kept[a] > 0 and score(a, kept[a] - 1) < score(best, visits[best]):
        kept[a] -= 1
    if kept[a] <= 1 and kept[a] < visits[a]:
      kept[a] = 0
  return kept / kept.sum() if kept.sum() else prior


@hypothesis.given(
  hnp.arrays(np.float64, A, elements=st.floats(-3, 3)),
  hnp.arrays(np.float64, A, elements=st.integers(0, 20).map(lambda x: x / 20)),
  hnp.arrays(np.int32, A, elements=st.integers(0, 30)),
  st.sampled_from([0.0, 2.0]),
)
def test_visit_policy(logits, q, visits, forced_playouts):
  prior = softmax(logits)
  expected = pruned_by_hand(prior, q, visits, forced_playouts)
  with jax.enable_x64():
    policy = improvement.visit_policy(
      jnp.asarray(logits),
      jnp.asarray(q),
      jnp.asarray(visits),
      puct_init=1.25,
      puct_base=19_652.0,
      forced_playouts=forced_playouts,
    )
  np.testing.assert_allclose(policy, expected, atol=1e-6)


def test_forced_visits_leave_the_target():
  """A candidate of no worth keeps no share; the best keeps all of its own."""
  visits = np.array([40, 8, 2], np.int32)
  policy = improvement.visit_policy(
    np.log(array([0.5, 0.4, 0.1])),
    array([0.9, 0.0, 0.0]),
    visits,
    puct_init=1.25,
    puct_base=19_652.0,
    forced_playouts=2.0,
  )
  # 0.9 + U = 1.009 of the best; with n visits the second has 3.57 / (1 + n),
  # which is less from n = 3 on, 5 fewer of the sqrt(2 * 0.4 * 50) = 6 forced.
  # The third is left with none of 2.
  np.testing.assert_allclose(policy, [40 / 43, 3 / 43, 0], rtol=1e-6)
