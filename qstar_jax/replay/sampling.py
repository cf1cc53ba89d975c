"""How large the window is, and how often what is drawn from."""

import numpy as np

from qstar_jax.config import ReplayConfig


def window_size(num_trees: int, config: ReplayConfig) -> int:
  """Trees in the window once a number of them have come.

  It grows as a power of that number: KataGo's c (1 + beta ((N / c)^alpha - 1) /
  alpha), Wu 2019, arXiv:1902.10565, in trees. Its slope at N = c is beta.

  Args:
    num_trees: N, since the start.
    config: c is window_trees, beta window_growth, alpha window_exponent.

  Returns:
    window_trees until so many have come, then as above, rounded down.
  """
  ratio = max(num_trees / config.window_trees, 1.0)
  alpha = config.window_exponent
  growth = config.window_growth * (ratio**alpha - 1) / alpha
  return int(config.window_trees * (1 + growth))


def mixed_with_uniform(weights: np.ndarray, uniform_share: float) -> np.ndarray:
  """Probabilities: a share uniform, the rest in proportion to weights.

  Args:
    weights: [n], >= 0, n >= 1; uniform if all are 0.
    uniform_share: in [0, 1].

  Returns:
    [n], which sum to 1; none is below uniform_share / n.
  """
  uniform = np.full(weights.size, 1 / weights.size)
  total = weights.sum()
  focused = weights / total if total > 0 else uniform
  return uniform_share * uniform + (1 - uniform_share) * focused
