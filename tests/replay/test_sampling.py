"""Window sizes and mixtures against numbers by hand."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from qstar_jax.config import ReplayConfig
from qstar_jax.replay import sampling


@pytest.mark.parametrize(
  ("num_trees", "size"),
  [
    (0, 250_000),
    (250_000, 250_000),
    # N / c = 16 and 16^0.75 = 8: 1 + 0.4 * 7 / 0.75 = 4.7333.
    (4_000_000, 1_183_333),
    # N / c = 256 and 256^0.75 = 64: 1 + 0.4 * 63 / 0.75 = 34.6.
    (64_000_000, 8_650_000),
  ],
)
def test_window_size_by_hand(num_trees, size):
  """With the constants of KataGo's paper."""
  config = ReplayConfig(250_000, window_growth=0.4, window_exponent=0.75)
  assert abs(sampling.window_size(num_trees, config) - size) <= 1


def test_at_exponent_one_the_window_grows_by_a_share_of_the_trees():
  config = ReplayConfig(100, window_growth=0.5, window_exponent=1.0)
  sizes = [sampling.window_size(n, config) for n in (100, 102, 200, 1000)]
  assert sizes == [100, 101, 150, 550]


@hypothesis.given(st.integers(0, 10**9), st.integers(1, 10**6))
def test_a_window_without_growth_keeps_its_size(num_trees, window_trees):
  config = ReplayConfig(window_trees)
  assert sampling.window_size(num_trees, config) == window_trees


@hypothesis.given(
  st.integers(1, 10**5),
  st.floats(0, 1),
  st.floats(0.05, 1),
  st.integers(1, 10**5),
)
def test_a_tree_that_has_left_does_not_come_back(
  c, growth, exponent, num_trees
):
  """The window grows by one at most when one comes."""
  config = ReplayConfig(c, window_growth=growth, window_exponent=exponent)
  size = sampling.window_size(num_trees, config)
  assert 0 <= sampling.window_size(num_trees + 1, config) - size <= 1
  assert size <= max(num_trees, c)


def test_mixture_by_hand():
  found = sampling.mixed_with_uniform(np.array([0.0, 1.0, 3.0]), 0.25)
  np.testing.assert_allclose(found, [1 / 12, 1 / 12 + 3 / 16, 1 / 12 + 9 / 16])
  found = sampling.mixed_with_uniform(np.zeros(4), 0.25)
  np.testing.assert_allclose(found, 0.25)
