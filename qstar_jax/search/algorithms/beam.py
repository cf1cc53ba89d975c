"""Beam search over steps: the W best lines of every level go on.

At each level all candidates of all lines are ranked by line score; of the W
best (`leaves_per_round`) those that are finished stay as results and the others
are expanded. Committed is the best finished line of the tree. With PRM scores
this is the step-level beam search of Snell et al. 2024, arXiv:2408.03314; with
`utility: value` and `aggregate: last` it is the breadth-first Tree of Thoughts
(Yao et al. 2023, arXiv:2305.10601, algorithm 1) with value scoring.

Deviations: a finished line that falls out of the beam is still a result, and a
budget of tokens narrows the beam and its candidates instead of cutting it off.
"""

import dataclasses
from collections.abc import Callable

import chex
import jax.numpy as jnp

from qstar_jax.config import SearchConfig
from qstar_jax.search import budget, lines
from qstar_jax.search.searcher import Pick, Searcher, best_edge
from qstar_jax.search.tree import NONE, SearchTree

# (tree, config) -> float32 [N, A] of one tree: what a level is ranked by.
ScoreFn = Callable[[SearchTree, SearchConfig], chex.Array]
# (tree, config) -> tree.
CommitFn = Callable[[SearchTree, SearchConfig], SearchTree]


def num_nodes(config: SearchConfig, max_steps: int) -> int:
  """A round a level."""
  return max_steps * config.leaves_per_round


def _level(tree: SearchTree) -> chex.Array:
  """bool [N, A], candidates of the deepest level that has any (one tree)."""
  has_candidates_N = jnp.any(tree.sampled > 0, axis=-1)
  deepest = jnp.max(jnp.where(has_candidates_N, tree.depth, NONE))
  is_level_N = has_candidates_N & (tree.depth == deepest)
  return is_level_N[:, None] & (tree.count > 0)


def _best(
  tree: SearchTree,
  score_NA: chex.Array,
  config: SearchConfig,
  max_steps: int,
) -> tuple[chex.Array, chex.Array]:
  """The next line of the beam, int32 [2], and whether there is one."""
  is_level = _level(tree)
  is_open = is_level & lines.is_frontier(tree)
  edge = best_edge(jnp.where(is_open, score_NA, -jnp.inf))
  # The first of equals ranks first, as in the choice itself.
  order = jnp.arange(score_NA.size).reshape(score_NA.shape)
  own_score, own_order = score_NA[edge[0], edge[1]], order[edge[0], edge[1]]
  is_before = (score_NA > own_score) | (
    (score_NA == own_score) & (order < own_order)
  )
  rank = jnp.sum(is_level & is_before)
  width = jnp.minimum(
    budget.lines_at_once(tree, config, max_steps), config.leaves_per_round
  )
  return edge, (edge[0] != NONE) & (rank < width)


def level_width(
  tree: SearchTree,
  edge: chex.Array,
  slot: chex.Array | int,
  config: SearchConfig,
  max_steps: int,
) -> chex.Array:
  """Candidates for a line of the beam, int32: what its level may spend.

  Every level may spend an equal share of what is left. The best line comes
  first and gets one candidate at least, if a line can be finished at all.
  """
  depth = jnp.where(edge[0] == NONE, 0, tree.depth[edge[0]] + 1)
  levels_left = jnp.maximum(max_steps - depth, 1)
  whole = budget.room(tree) + tree.tokens_promised
  kept = whole - whole // levels_left
  width = budget.affordable_width(tree, edge, kept, config)
  tail = budget.tail_tokens(tree, max_steps - 1 - depth)
  affordable = budget.affordable_width(tree, edge, tail, config)
  at_least = jnp.minimum(affordable, 1)
  return jnp.where(slot > 0, width, jnp.maximum(width, at_least))


def make_searcher(score_fn: ScoreFn, commit_fn: CommitFn) -> Searcher:
  """A searcher that ranks every level by a score."""

  def select(tree, slot, config, max_steps):
    score_NA = score_fn(tree, config)
    edge, is_kept = _best(tree, score_NA, config, max_steps)
    is_start = tree.root_node == NONE
    edge = jnp.where(is_start, NONE, edge)
    width = level_width(tree, edge, slot, config, max_steps)
    return Pick(edge, jnp.where(is_start | is_kept, width, 0))

  def is_searching(tree, config, max_steps):
    # The first line of the level's beam can be expanded.
    return ~tree.is_done & (select(tree, 0, config, max_steps).width > 0)

  return Searcher(
    num_nodes, lines.begin, is_searching, select, lines.settle, commit_fn
  )


SEARCHER = make_searcher(lambda tree, config: lines.score(tree), lines.commit)


def for_evaluation(config: SearchConfig) -> SearchConfig:
  """As many leaves at once as the beam is wide."""
  return dataclasses.replace(config, leaves_per_round=config.beam_width)
