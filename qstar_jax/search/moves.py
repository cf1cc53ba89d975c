"""Searches that go move by move: simulations from the root, then one step.

A simulation goes down from the root by the statistics and expands what it
arrives at. What `gumbel` and `puct` share, and how they differ, is `Rules`.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from qstar_jax.config import SearchConfig
from qstar_jax.search import budget, values
from qstar_jax.search.searcher import Pick, Searcher, step_down
from qstar_jax.search.tree import NONE, SearchTree


class Rules(NamedTuple):
  """How candidates are chosen; all functions are of one tree.

  Attributes:
    noise: (key, num_candidates, config) -> float32 [A], of a move's root.
    select_root: (tree, config) -> candidate of the root, for a simulation.
    select_interior: (tree, node, config) -> candidate of a node below it.
    choose: (tree, config) -> candidate of the root, to commit.
  """

  noise: Callable[[chex.PRNGKey, int, SearchConfig], chex.Array]
  select_root: Callable[[SearchTree, SearchConfig], chex.Array]
  select_interior: Callable[[SearchTree, chex.Array, SearchConfig], chex.Array]
  choose: Callable[[SearchTree, SearchConfig], chex.Array]


# Moves that there is room for beside the committed line, where what is left
# behind is given up: a move may keep what two have made, and do all of its own.
_ROOM_MOVES = 3


def whole_play(config: SearchConfig, max_steps: int) -> int:
  """Lost slots count as simulations: a move takes a known number of rounds."""
  rounds = 1 + config.num_simulations // config.leaves_per_round
  return max_steps * rounds * config.leaves_per_round


def room(
  num_nodes: int, num_moves: int, config: SearchConfig, max_steps: int
) -> int:
  """N, of a search whose whole plays have `num_nodes`; divides by W.

  With compaction there is room for the committed line and `num_moves`.
  """
  if not config.compact:
    return num_nodes
  rounds_on_line = -(-(max_steps - 1) // config.leaves_per_round)
  on_line = rounds_on_line * config.leaves_per_round
  return min(num_nodes, on_line + num_moves * num_nodes // max_steps)


def num_nodes(config: SearchConfig, max_steps: int) -> int:
  """N of a search by simulations."""
  whole = whole_play(config, max_steps)
  return room(whole, _ROOM_MOVES, config, max_steps)


def _simulations_left(tree: SearchTree, config: SearchConfig) -> chex.Array:
  """What there is room for in a move that begins, however much is dropped."""
  is_first = tree.root_parent == NONE
  num_below = tree.visits[tree.root_parent, tree.root_candidate]
  num_kept = tree.root_depth + jnp.where(is_first, 0, num_below)
  num_slots = config.leaves_per_round
  rounds = tree.depth.size // num_slots - -(-num_kept // num_slots)
  return num_slots * (rounds - (tree.root_node == NONE))


def kept_tokens(tree: SearchTree, max_steps: int) -> chex.Array:
  """Tokens for the steps after this move's, when nothing else is left."""
  return budget.tail_tokens(tree, max_steps - 1 - tree.root_depth)


def plan(
  tree: SearchTree, config: SearchConfig, max_steps: int
) -> tuple[chex.Array, chex.Array]:
  """Width and number of the simulations of a move that begins.

  A move may spend half of what is left. From the last step but one on it may
  spend all: its simulations see the ends of all lines, and leave nothing to
  the last move.
  """
  room = budget.room(tree) - kept_tokens(tree, max_steps)
  share = jnp.where(tree.root_depth + 2 < max_steps, room // 2, room)
  width, num_simulations = budget.balanced_simulations(tree, share, config)
  return width, jnp.minimum(num_simulations, config.num_simulations)


def is_searching(
  tree: SearchTree, config: SearchConfig, max_steps: int
) -> chex.Array:
  """The root is not expanded yet, or has simulations and a use for them."""
  del config
  is_expanded = tree.root_node != NONE
  # For the longest step, and one candidate.
  is_affordable = (
    budget.room(tree) - kept_tokens(tree, max_steps)
    >= 2 * tree.tokens.shape[-1]
  )
  can_simulate = (
    (tree.simulations < tree.move_simulations)
    & is_affordable
    & jnp.any(tree.is_open[tree.root_node])
  )
  return ~tree.is_done & (~is_expanded | can_simulate)


def make_searcher(rules: Rules) -> Searcher:
  """The searcher that follows the rules."""

  def begin(tree, key, config, max_steps):
    width, num_simulations = plan(tree, config, max_steps)
    if config.compact:
      left = _simulations_left(tree, config)
      num_simulations = jnp.minimum(num_simulations, left)
    is_expanded = tree.root_node != NONE
    visits = jnp.where(is_expanded, tree.visits[tree.root_node], 0)
    noise = rules.noise(key, tree.noise.shape[0], config)
    if config.full_search_share < 1:
      # Folded: the noise stays what it is without the option.
      coin = jax.random.uniform(jax.random.fold_in(key, 0))
      is_full = coin < config.full_search_share
      fast = jnp.minimum(num_simulations, config.fast_simulations)
      num_simulations = jnp.where(is_full, num_simulations, fast)
      noise = jnp.where(is_full, noise, 0.0)
    return tree.replace(
      noise=noise,
      simulations=jnp.zeros_like(tree.simulations),
      move_simulations=num_simulations,
      move_width=width,
      move_visits=visits,
    )

  def descend(tree, config):
    candidate = rules.select_root(tree, config)

    def child(edge):
      return tree.child[edge[0], edge[1]]

    def down(edge):
      node = child(edge)
      return jnp.stack([node, rules.select_interior(tree, node, config)])

    return jax.lax.while_loop(
      lambda edge: child(edge) != NONE,
      down,
      jnp.stack([tree.root_node, candidate]),
    )

  def select(tree, slot, config, max_steps):
    del slot
    at_root = jnp.stack([tree.root_parent, tree.root_candidate])
    # Where there is no root to descend from this ends at a wrong place, but it
    # ends: a child's index is above its parent's.
    edge = jnp.where(tree.root_node == NONE, at_root, descend(tree, config))
    affordable = budget.affordable_width(
      tree, edge, kept_tokens(tree, max_steps), config
    )
    return Pick(edge, jnp.minimum(affordable, tree.move_width))

  def commit(tree, config):
    node, chosen = tree.root_node, rules.choose(tree, config)
    # With every candidate pruned the line ends at an illegal step.
    has_choice = jnp.any(tree.count[node] > 0)
    is_last = tree.is_terminal[node, chosen] | ~has_choice
    return step_down(tree, jnp.stack([node, chosen]), is_last)

  return Searcher(num_nodes, begin, is_searching, select, values.backup, commit)
