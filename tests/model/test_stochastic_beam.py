"""Stochastic beams on steps that can all be listed, against theory.

A prefix of tokens is a node of the V-ary heap: token v after prefix p makes
prefix p * V + v + 1. Token 1 ends a step.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qstar_jax import improvement
from qstar_jax.model.stochastic_beam import log_inclusion, stochastic_beam

V, T, END = 3, 3, 1
NUM_LEAVES = 20_000
LOGITS = np.random.default_rng(0).normal(size=(13, V)).astype(np.float32)


def steps_below(prefix=0, depth=0):
  """Every step: the nodes that are prefixes of nothing."""
  for token in range(V):
    node = prefix * V + token + 1
    if token == END or depth == T - 1:
      yield node
    else:
      yield from steps_below(node, depth + 1)


STEPS = np.array(list(steps_below()))


def step_log_probs(temperature=1.0, min_p=0.0):
  """float64 [S], of every step."""
  logits = LOGITS.astype(np.float64) / temperature
  relative = np.exp(LOGITS - LOGITS.max(axis=1, keepdims=True))
  logits[relative < min_p] = -np.inf
  log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

  def of(node):
    parent, token = divmod(node - 1, V)
    return log_probs[parent, token] + (of(parent) if parent else 0.0)

  return np.array([of(step) for step in STEPS])


@functools.partial(jax.jit, static_argnames=("temperature", "min_p"))
def grow(uniform_XATU, width_X, temperature=1.0, min_p=0.0):
  """Beams of X leaves to their end.

  Returns:
    The last `Beam`; [X, A] index of each candidate in `STEPS`, -1 where there
    is none; [X, A] log-probability at temperature 1; [X, A] of the proposal.
  """
  proposal = stochastic_beam(temperature, min_p)
  beam, is_open_XA = proposal.begin(uniform_XATU[:, :, 0], width_X)
  node_XA = jnp.zeros(is_open_XA.shape, jnp.int32)
  log_prob_XA = jnp.zeros(is_open_XA.shape)
  for step in range(T):
    logits_XAV = jnp.asarray(LOGITS)[jnp.where(is_open_XA, node_XA, 0)]
    beam, choice = proposal.choose(
      beam,
      logits_XAV.reshape(-1, V),
      is_open_XA.reshape(-1),
      uniform_XATU[:, :, step],
      width_X,
    )

    def of_parent(y_XA, parent=choice.parent):
      return jnp.take_along_axis(y_XA, parent, axis=1)

    is_open_XA = of_parent(is_open_XA) & (choice.parent >= 0)
    token_XA = choice.token.reshape(node_XA.shape)
    node_XA, log_prob_XA = of_parent(node_XA), of_parent(log_prob_XA)
    new_XA = log_prob_XA + choice.log_prob.reshape(node_XA.shape)
    log_prob_XA = jnp.where(is_open_XA, new_XA, log_prob_XA)
    node_XA = jnp.where(is_open_XA, node_XA * V + token_XA + 1, node_XA)
    is_open_XA &= token_XA != END
  index_XA = jnp.searchsorted(jnp.sort(jnp.asarray(STEPS)), node_XA)
  index_XA = jnp.asarray(np.argsort(STEPS))[index_XA]
  index_XA = jnp.where(choice.parent >= 0, index_XA, -1)
  return beam, index_XA, log_prob_XA, proposal.log_prob(beam)


def sample(num_candidates, width=None, temperature=1.0, min_p=0.0, seed=0):
  uniform = jax.random.uniform(
    jax.random.key(seed), (NUM_LEAVES, num_candidates, T, 3)
  )
  width = num_candidates if width is None else width
  grown = grow(uniform, jnp.full((NUM_LEAVES,), width), temperature, min_p)
  return jax.tree.map(np.asarray, grown)


def assert_frequencies(found, expected, num_draws):
  """Within 4.5 standard errors, all of them."""
  error = np.sqrt(expected * (1 - expected) / num_draws)
  assert (np.abs(found - expected) <= 4.5 * error + 1e-9).all()


def without_replacement(probs, size):
  """{ordered sample: probability}: each in proportion, among what is left."""
  samples = {}
  for chosen in itertools.permutations(range(len(probs)), size):
    left, probability = 1.0, 1.0
    for i in chosen:
      probability *= probs[i] / left
      left -= probs[i]
    samples[chosen] = probability
  return samples


@pytest.mark.parametrize(
  ("size", "temperature", "min_p"),
  [
    *((1, 1.0, 0.0), (2, 1.0, 0.0), (4, 1.0, 0.0), (4, 0.5, 0.0)),
    *((3, 2.0, 0.0), (2, 1.0, 0.3), (3, 2.0, 0.2)),
  ],
)
def test_samples_without_replacement(size, temperature, min_p):
  """Every ordered sample as often as drawing one after another has it."""
  _, index, _, _ = sample(size, temperature=temperature, min_p=min_p)
  probs = np.exp(step_log_probs(temperature, min_p))
  assert (probs > 0).all() == (min_p == 0)
  assert (probs > 0).sum() > size
  np.testing.assert_allclose(probs.sum(), 1, atol=1e-12)
  expected = without_replacement(probs, size)
  included = np.zeros(len(STEPS))
  pairs = np.zeros((len(STEPS),) * 2)
  for chosen, probability in expected.items():
    included[list(chosen)] += probability
    pairs[chosen[0], chosen[-1]] += probability
  # The sample comes in its order: first and last, and all of it.
  found = np.zeros_like(pairs)
  np.add.at(found, (index[:, 0], index[:, -1]), 1 / NUM_LEAVES)
  assert_frequencies(found, pairs, NUM_LEAVES)
  found = np.bincount(index.ravel(), minlength=len(STEPS)) / NUM_LEAVES
  assert_frequencies(found, included, NUM_LEAVES)


def test_perturbed_log_probs_are_independent_gumbels():
  """With room for all steps, each has its own noise around its own phi."""
  beam, index, _, q = sample(len(STEPS))
  np.testing.assert_array_equal(
    np.sort(index, axis=1),
    np.broadcast_to(np.arange(len(STEPS)), index.shape),
  )
  np.testing.assert_array_equal(beam.left_out, -np.inf)
  np.testing.assert_array_equal(q, 0)
  assert (np.diff(beam.perturbed, axis=1) <= 0).all()
  by_step = np.empty(index.shape)
  np.put_along_axis(by_step, index, beam.perturbed.astype(np.float64), axis=1)
  # exp(phi - G) of a Gumbel is exponential: mean and variance are 1.
  arrival = np.exp(step_log_probs() - by_step)
  error = 1 / np.sqrt(NUM_LEAVES)
  assert (np.abs(arrival.mean(axis=0) - 1) <= 4.5 * error).all()
  assert (np.abs(arrival.var(axis=0) - 1) <= 4.5 * np.sqrt(8) * error).all()
  correlation = np.corrcoef(arrival.T) - np.eye(len(STEPS))
  assert (np.abs(correlation) <= 4.5 * error).all()


@pytest.mark.parametrize("width", [1, 2, 5, 14])
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_a_narrow_beam_finds_the_largest_of_all(width, temperature):
  """Of the same noise, and kappa is the largest but those."""
  every = len(STEPS)
  uniform = jax.random.uniform(jax.random.key(1), (500, every, T, 3))
  whole = jnp.full((500,), every)
  all_beam, all_index, *_ = grow(uniform, whole, temperature)
  for size in (width, every):  # As an array, and as a leaf's wish.
    beam, index, _, q = grow(
      uniform[:, :size], jnp.full((500,), width), temperature
    )
    np.testing.assert_array_equal(index[:, :width], all_index[:, :width])
    np.testing.assert_array_equal(index[:, width:], -1)
    np.testing.assert_allclose(
      beam.perturbed[:, :width], all_beam.perturbed[:, :width], atol=1e-4
    )
    np.testing.assert_allclose(
      beam.left_out, all_beam.perturbed[:, width], atol=1e-4
    )
    np.testing.assert_array_equal(q[:, width:], 0)


def score_functions():
  """[S, 39]: of every step, the gradient of its log-probability in LOGITS."""
  probs = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
  gradient = np.zeros((len(STEPS), *LOGITS.shape))
  for i, step in enumerate(STEPS):
    node = step
    while node:
      parent, token = divmod(node - 1, V)
      gradient[i, parent] += np.eye(V)[token] - probs[parent]
      node = parent
  return gradient.reshape(len(STEPS), -1)


@pytest.mark.parametrize(
  ("size", "width", "temperature"),
  [(1, 1, 1.0), (4, 4, 1.0), (4, 4, 0.5), (4, 4, 2.0), (6, 3, 1.5)],
)
def test_weighted_by_inclusion_the_estimate_is_unbiased(
  size, width, temperature
):
  """sum pi / q f: of 1, of anything, and of the score function, which is 0."""
  _, index, log_prob, q = sample(size, width, temperature)
  log_pi = step_log_probs()
  is_kept = index >= 0
  np.testing.assert_array_equal(is_kept.sum(axis=1), width)
  np.testing.assert_allclose(
    log_prob[is_kept], log_pi[index[is_kept]], atol=1e-5
  )
  weight = np.where(is_kept, np.exp(log_prob - q, dtype=np.float64), 0)
  anything = np.random.default_rng(1).normal(size=(len(STEPS), 3))
  f = np.concatenate(
    [np.ones((len(STEPS), 1)), anything, score_functions()], axis=1
  )
  estimate = np.einsum("xa,xaf->xf", weight, f[index])
  expected = np.exp(log_pi) @ f
  error = estimate.std(axis=0) / np.sqrt(NUM_LEAVES)
  assert (np.abs(estimate.mean(axis=0) - expected) <= 4 * error + 1e-6).all()


def test_the_search_prior_is_the_normalised_estimate():
  """`candidate_prior_logits` needs to know nothing of how steps were drawn."""
  _, index, log_prob, q = sample(4, 3)
  count = (index >= 0).astype(np.int32)
  prior = jax.nn.softmax(improvement.candidate_prior_logits(log_prob, q, count))
  weight = np.where(count, np.exp(log_prob - q), 0)
  expected = weight / weight.sum(axis=1, keepdims=True)
  np.testing.assert_allclose(prior, expected, rtol=2e-4, atol=1e-6)


def test_under_constant_q_the_policy_stays_but_for_the_estimators_bias():
  """The mean of the score function under pi', which is then the prior."""
  size = 8
  _, index, log_prob, q = sample(size)
  weight = np.exp(log_prob - q, dtype=np.float64)
  score = np.einsum("xa,xaf->xf", weight, score_functions()[index])
  normalised = score / weight.sum(axis=1, keepdims=True)
  error = normalised.std(axis=0) / np.sqrt(NUM_LEAVES)
  # To second order: the sum of the weights moves with what they weigh.
  excess = weight.sum(axis=1, keepdims=True) - 1
  bias = (score * (excess**2 - excess)).mean(axis=0)
  assert (np.abs(normalised.mean(axis=0) - bias) <= 4 * error + 2e-4).all()
  # To take each for a draw from the policy is ten times worse.
  unweighted = score_functions()[index].mean(axis=(0, 1))
  assert np.abs(unweighted).max() > 10 * np.abs(normalised.mean(axis=0)).max()


def test_log_inclusion_where_floats_end():
  phi = jnp.array([-80.0, -1.0, -1e-3, -5.0, -90.0])
  kappa = jnp.array([-2.0, -100.0, 10.0, -jnp.inf, -85.0])
  expected = [-78.0, 0.0, -10.0010227, 0.0, -5.0033693]
  np.testing.assert_allclose(log_inclusion(phi, kappa), expected, rtol=1e-5)
