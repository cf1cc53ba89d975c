"""Tree of Thoughts, depth first (Yao et al. 2023, arXiv:2305.10601, alg. 2).

The best candidate of the newest node is expanded; candidates below
`prune_below` are given up, and where none is left the search goes back to the
newest node that has one. It stops at the first finished line of score
`accept_above` or more, or when nothing is left, and commits the best finished
line.

Deviations: while no line has finished, what was given up is expanded after all,
the best first; scores are those of the network (`utility`, `aggregate`), not
answers of a prompted language model; W leaves may be expanded at once, W - 1 of
them before it is known that the first leads nowhere.
"""

import chex
import jax.numpy as jnp

from qstar_jax.config import SearchConfig
from qstar_jax.search import frontier, lines
from qstar_jax.search.tree import SearchTree


def priority(tree: SearchTree, config: SearchConfig) -> chex.Array:
  """The newest node first, then by score; float32 [N, A]."""
  score_NA = lines.score(tree)
  age_N = jnp.arange(tree.depth.size, dtype=jnp.float32)
  # A score of 1 must not reach the next node.
  key_NA = age_N[:, None] + 0.5 * score_NA
  is_pruned = score_NA < config.prune_below
  # What is pruned comes after all else.
  key_NA = jnp.where(is_pruned, score_NA - 1.0, key_NA)
  return jnp.where(lines.is_finished(tree), score_NA, key_NA)


def is_over(
  tree: SearchTree, priority_NA: chex.Array, config: SearchConfig
) -> chex.Array:
  """A finished line is good enough, or the best there will be."""
  best = frontier.best_finished(tree, priority_NA)
  is_left = lines.is_frontier(tree) & (priority_NA >= 0)
  has_ended = (best >= 0) & ~jnp.any(is_left)
  return (best >= config.accept_above) | has_ended


SEARCHER = frontier.make_searcher(priority, is_over)


def for_evaluation(config: SearchConfig) -> SearchConfig:
  """As configured."""
  return config
