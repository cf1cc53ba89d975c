"""Searches that expand the best candidates of the whole tree.

`astar`, `best_first` and `tot_dfs` differ in what is best and when to stop.
"""

from collections.abc import Callable

import chex
import jax.numpy as jnp

from qstar_jax.config import SearchConfig
from qstar_jax.search import budget, lines, moves
from qstar_jax.search.searcher import Pick, Searcher, best_edge
from qstar_jax.search.tree import NONE, SearchTree

# (tree, config) -> float32 [N, A] of one tree: what to expand first, and which
# finished line to commit; -inf where a candidate is not to be expanded.
PriorityFn = Callable[[SearchTree, SearchConfig], chex.Array]
# (tree, priority_NA, config) -> bool scalar: the search has what it wants.
StopFn = Callable[[SearchTree, chex.Array, SearchConfig], chex.Array]


def _is_affordable(tree: SearchTree, max_steps: int) -> chex.Array:
  """bool [N, A]: one candidate, and the end of a line after it, can be paid."""
  max_step_tokens = tree.tokens.shape[-1]
  steps_left_N = max_steps - 2 - tree.depth
  # For A = 1 more than is needed.
  needed_NA = tree.length + max_step_tokens
  needed_NA += budget.tail_tokens(tree, steps_left_N)[:, None]
  return needed_NA <= budget.room(tree)


def best_finished(tree: SearchTree, score_NA: chex.Array) -> chex.Array:
  """The best score of a finished line, -inf if there is none (one tree)."""
  return jnp.max(jnp.where(lines.is_finished(tree), score_NA, -jnp.inf))


def make_searcher(priority_fn: PriorityFn, stop_fn: StopFn) -> Searcher:
  """The searcher that expands by a priority until told to stop."""

  def select(tree, slot, config, max_steps):
    del slot
    priority_NA = priority_fn(tree, config)
    can_expand = lines.is_frontier(tree) & _is_affordable(tree, max_steps)
    edge = best_edge(jnp.where(can_expand, priority_NA, -jnp.inf))
    is_start = tree.root_node == NONE
    edge = jnp.where(is_start, NONE, edge)
    depth = jnp.where(is_start, 0, tree.depth[edge[0]] + 1)
    tail = budget.tail_tokens(tree, max_steps - 1 - depth)
    width = budget.balanced_width(tree, edge, tail, config)
    return Pick(edge, jnp.where(is_start | (edge[0] != NONE), width, 0))

  def is_searching(tree, config, max_steps):
    is_over = stop_fn(tree, priority_fn(tree, config), config)
    has_leaf = select(tree, 0, config, max_steps).width > 0
    # The root's round takes W slots, and is not counted.
    num_slots = tree.depth.size - config.leaves_per_round
    has_slot = tree.simulations < num_slots
    return ~tree.is_done & ~is_over & has_leaf & has_slot

  def commit(tree, config):
    priority_NA = priority_fn(tree, config)
    lowest = jnp.finfo(priority_NA.dtype).min
    return lines.commit_best(tree, jnp.maximum(priority_NA, lowest))

  return Searcher(
    moves.whole_play,
    lines.begin,
    is_searching,
    select,
    lines.settle,
    commit,
    priority_fn,
  )
