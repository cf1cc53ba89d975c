"""Inverse-CDF sampling: exact frequencies, edges, log-probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qstar_jax.model import sampling

ALMOST_ONE = np.float32(1 - 2**-24)

inverse_cdf = jax.jit(sampling.inverse_cdf)
sample_tokens = jax.jit(
  sampling.sample_tokens, static_argnames=("temperature", "min_p")
)


def masses(num_values):
  """[R, V] rows with zeros, far-apart magnitudes, and never all zero."""
  mass = st.sampled_from([0.0, 0.0, 1e-30, 1e-7, 0.1, 1.0, 3.0])
  rows = hnp.arrays(np.float32, (4, num_values), elements=mass)
  return rows.filter(lambda x: (x.sum(axis=1) > 0).all())


# A perfect square, one above it, one below, and the smallest.
@pytest.mark.parametrize("num_values", [1, 2, 16, 17, 15, 655])
def test_frequencies_are_the_masses(num_values):
  """Chi-square over an even grid of uniforms: no luck is involved."""
  num_rows = 64 * num_values
  uniform = (np.arange(num_rows, dtype=np.float32) + 0.5) / num_rows
  rng = np.random.default_rng(num_values)
  mass = rng.gamma(2.0, size=num_values).astype(np.float32)
  rows = np.broadcast_to(mass, (num_rows, num_values))
  count = np.bincount(inverse_cdf(rows, uniform), minlength=num_values)
  expected = num_rows * mass / mass.sum()
  chi_square = np.sum((count - expected) ** 2 / expected)
  # Each count may be off by less than one, at either end of its interval.
  assert chi_square <= np.sum(1.0 / expected)


def test_random_uniforms_pass_a_chi_square_test():
  num_values, num_rows = 40, 40_000
  logits = jax.random.normal(jax.random.key(0), (num_values,))
  uniform = sampling.per_row_uniform(
    jax.random.split(jax.random.key(1), 8), (num_rows // 8,)
  )
  sampled = sample_tokens(
    jnp.broadcast_to(logits, (num_rows, num_values)),
    uniform.reshape(-1),
    temperature=0.7,
  )
  count = np.bincount(sampled.token, minlength=num_values)
  expected = num_rows * np.asarray(jax.nn.softmax(logits / 0.7))
  chi_square = np.sum((count - expected) ** 2 / expected)
  degrees = num_values - 1
  assert chi_square < degrees + 4 * np.sqrt(2 * degrees)


@given(mass=masses(23), uniform=st.floats(0, float(ALMOST_ONE), width=32))
def test_order_is_kept_and_the_exact_quantile_is_near(mass, uniform):
  """The mass below the index brackets the target, up to rounding."""
  index = np.asarray(inverse_cdf(mass, np.full(4, uniform, np.float32)))
  exact = np.cumsum(mass.astype(np.float64), axis=1)
  row = np.arange(4)
  target = uniform * exact[:, -1]
  slack = 1e-5 * exact[:, -1]
  assert np.all(exact[row, index] >= target - slack)
  assert np.all(exact[row, index] - mass[row, index] <= target + slack)


@given(mass=masses(23), uniform=st.floats(0, float(ALMOST_ONE), width=32))
def test_no_mass_is_never_drawn(mass, uniform):
  index = inverse_cdf(mass, np.full(4, uniform, np.float32))
  assert np.all(mass[np.arange(4), index] > 0)


def test_no_mass_is_not_drawn_where_a_sum_ends():
  """Uniforms on the boundaries themselves, where rounding decides.

  Index differences of rounded sums once pointed at the massless first member
  of a group, in one of fourteen such draws.
  """
  rng = np.random.default_rng(0)
  num_rows, num_values = 20_000, 655
  mass = rng.exponential(size=(num_rows, num_values)).astype(np.float32)
  mass *= rng.uniform(size=mass.shape) < 0.02
  mass[:, 300] = 1.0
  total = np.cumsum(mass, axis=1, dtype=np.float32)
  row = np.arange(num_rows)
  at = rng.integers(num_values, size=num_rows)
  uniform = total[row, at] / total[:, -1]
  uniform += rng.integers(-2, 3, num_rows) * np.float32(2**-24)
  uniform = np.clip(uniform, 0, ALMOST_ONE).astype(np.float32)
  index = np.asarray(inverse_cdf(mass, uniform))
  assert np.all(mass[row, index] > 0)


def test_both_ends():
  mass = np.zeros((2, 30), np.float32)
  mass[:, 7], mass[:, 20], mass[:, 28] = 1e-6, 1.0, 0.5
  index = inverse_cdf(mass, np.array([0.0, ALMOST_ONE], np.float32))
  np.testing.assert_array_equal(index, [7, 28])


@given(
  logits=hnp.arrays(
    np.float32,
    (5, 19),
    # In steps of 1/64: the smallest floats are 0 to XLA, and tie.
    elements=st.integers(-2560, 2560).map(lambda i: i / 64),
  ),
  temperature=st.sampled_from([0.0, 0.7, 1.0]),
  min_p=st.sampled_from([0.0, 0.1]),
  uniform=st.floats(0, float(ALMOST_ONE), width=32),
)
def test_log_probs_are_log_softmax(logits, temperature, min_p, uniform):
  sampled = sample_tokens(
    logits, np.full(5, uniform, np.float32), temperature, min_p
  )
  token = np.asarray(sampled.token)
  row = np.arange(5)
  log_prob = np.asarray(jax.nn.log_softmax(logits))[row, token]
  np.testing.assert_allclose(sampled.log_prob, log_prob, atol=1e-4)
  if temperature == 0:
    np.testing.assert_array_equal(token, np.argmax(logits, axis=-1))
    np.testing.assert_array_equal(sampled.proposal_log_prob, 0)
  else:
    # exp(x / 64) is 0.1 for no whole x.
    is_likely = np.exp(logits - logits.max(axis=-1, keepdims=True)) >= min_p
    likely = np.where(is_likely, logits, -np.inf)
    assert is_likely[row, token].all()
    tempered = np.asarray(jax.nn.log_softmax(likely / temperature))
    np.testing.assert_allclose(
      sampled.proposal_log_prob, tempered[row, token], atol=1e-4
    )


def test_a_row_depends_on_its_own_key_alone():
  keys = jax.random.split(jax.random.key(0), 3)
  uniform = sampling.per_row_uniform(keys, (4, 5))
  assert uniform.shape == (3, 4, 5)
  alone = sampling.per_row_uniform(keys[1:2], (4, 5))
  np.testing.assert_array_equal(uniform[1], alone[0])
  assert np.all((uniform >= 0) & (uniform < 1))
