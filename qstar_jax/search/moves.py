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
from qstar_jax.search import tree as tree_lib
from qstar_jax.search.searcher import Pick, Searcher, step_down
from qstar_jax.search.tree import NONE, NodeStats, SearchTree


class Rules(NamedTuple):
  """How candidates are chosen; all functions are of one tree.

  Attributes:
    noise: (key, num_candidates, config) -> float32 [A], of a move's root.
    select_root: (tree, stats, config) -> candidate of the root.
    select_interior: (stats, config) -> candidate of a node below it.
    choose: (tree, stats, config) -> candidate to commit.
  """

  noise: Callable[[chex.PRNGKey, int, SearchConfig], chex.Array]
  select_root: Callable[[SearchTree, NodeStats, SearchConfig], chex.Array]
  select_interior: Callable[[NodeStats, SearchConfig], chex.Array]
  choose: Callable[[SearchTree, NodeStats, SearchConfig], chex.Array]


def is_searching(
  tree: SearchTree, config: SearchConfig, max_steps: int
) -> chex.Array:
  """The root is not expanded yet, or has simulations left and a use for them."""
  del max_steps
  is_expanded = tree.root_node != NONE
  has_simulations = tree.simulations < config.num_simulations
  can_simulate = has_simulations & jnp.any(tree.is_open[tree.root_node])
  return ~tree.is_done & (~is_expanded | can_simulate)


def make_searcher(rules: Rules) -> Searcher:
  """The searcher that follows the rules."""

  def begin(tree, key, config):
    is_expanded = tree.root_node != NONE
    visits = jnp.where(is_expanded, tree.visits[tree.root_node], 0)
    return tree.replace(
      noise=rules.noise(key, tree.noise.shape[0], config),
      simulations=jnp.zeros_like(tree.simulations),
      move_visits=visits,
    )

  def descend(tree, config):
    stats = tree_lib.node_stats(tree, tree.root_node, config)
    candidate = rules.select_root(tree, stats, config)

    def child(edge):
      return tree.child[edge[0], edge[1]]

    def down(edge):
      node = child(edge)
      stats = tree_lib.node_stats(tree, node, config)
      return jnp.stack([node, rules.select_interior(stats, config)])

    return jax.lax.while_loop(
      lambda edge: child(edge) != NONE,
      down,
      jnp.stack([tree.root_node, candidate]),
    )

  def select(tree, slot, config, max_steps):
    del slot, max_steps
    at_root = jnp.stack([tree.root_parent, tree.root_candidate])
    # Where there is no root to descend from this ends at a wrong place, but it
    # ends: a child's index is above its parent's.
    edge = jnp.where(tree.root_node == NONE, at_root, descend(tree, config))
    return Pick(edge, jnp.int32(config.num_candidates))

  def commit(tree, config):
    stats = tree_lib.node_stats(tree, tree.root_node, config)
    chosen = rules.choose(tree, stats, config)
    edge = jnp.stack([tree.root_node, chosen])
    # With every candidate pruned the line ends at an illegal step.
    is_last = tree.is_terminal[edge[0], edge[1]] | ~jnp.any(stats.is_valid)
    return step_down(tree, edge, is_last)

  return Searcher(begin, is_searching, select, tree_lib.backup, commit)
