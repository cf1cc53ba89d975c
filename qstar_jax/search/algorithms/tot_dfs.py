"""Tree of Thoughts, depth first (Yao et al. 2023, arXiv:2305.10601, alg. 2).

The best candidate of the newest node is expanded; candidates below
`prune_below` are given up, and where none is left the search goes back to the
newest node that has one. It stops at the first finished line of score
`accept_above` or more, and commits the best finished line.

Deviations: scores are those of the network (`utility`, `aggregate`), not
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
  return jnp.where(
    lines.is_finished(tree), score_NA, jnp.where(is_pruned, -jnp.inf, key_NA)
  )


def is_over(
  tree: SearchTree, priority_NA: chex.Array, config: SearchConfig
) -> chex.Array:
  """A finished line is good enough."""
  return frontier.best_finished(tree, priority_NA) >= config.accept_above


SEARCHER = frontier.make_searcher(priority, is_over)


def for_evaluation(config: SearchConfig) -> SearchConfig:
  """As configured."""
  return config
