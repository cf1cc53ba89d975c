"""Runs a search: rounds of select, expand, insert, back up.

A *move* searches from the current root; `commit` then steps down to the chosen
candidate, whose subtree and cache are kept. `search_move` stays on the device
and takes outcomes from the network. Where a judge must look at the candidates,
the host runs the two halves of a round itself: see `selfplay.play`.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from qstar_jax.config import SearchConfig
from qstar_jax.search import gumbel
from qstar_jax.search import tree as tree_lib
from qstar_jax.search.expand import (
  NOTHING,
  PROBLEM,
  ExpandFn,
  Expansion,
  Judgement,
  Store,
  unjudged,
)
from qstar_jax.search.tree import NONE, SearchTree


class SearchState(NamedTuple):
  """A search between two rounds.

  Attributes:
    tree: B trees.
    store: what the expand function remembers of them.
    num_nodes: int32 scalar, nodes made, holes included; the next to write.
    rng_key: [B] keys, one per tree, never used twice: folded with num_nodes.
  """

  tree: SearchTree
  store: Store
  num_nodes: chex.Array
  rng_key: chex.PRNGKey


def num_nodes_needed(config: SearchConfig, max_steps: int) -> int:
  """N, room for a whole play of at most `max_steps` moves."""
  rounds = 1 + config.num_simulations // config.leaves_per_round
  return max_steps * rounds * config.leaves_per_round


def is_searching(tree: SearchTree, config: SearchConfig) -> chex.Array:
  """[B] bool, the tree has something to expand in the current move."""
  root_open_BA = jnp.take_along_axis(
    tree.is_open, tree.root_node[:, None, None], axis=1, mode="clip"
  )[:, 0]
  is_expanded = tree.root_node != NONE
  has_budget = tree.simulations < config.num_simulations
  can_simulate = has_budget & jnp.any(root_open_BA, axis=-1)
  return ~tree.is_done & (~is_expanded | can_simulate)


def begin_move(state: SearchState, config: SearchConfig) -> SearchState:
  """Starts a move at the roots: new noise, no simulations yet (batched)."""

  def one_tree(tree, key):
    # Expansions fold in node indices >= 0; noise takes the other half.
    key = jax.random.fold_in(key, -1 - tree.root_depth)
    noise = jax.random.gumbel(key, tree.gumbel.shape)
    is_expanded = tree.root_node != NONE
    visits = jnp.where(is_expanded, tree.visits[tree.root_node], 0)
    return tree.replace(
      gumbel=config.gumbel_scale * noise,
      simulations=jnp.zeros_like(tree.simulations),
      move_visits=visits,
    )

  return state._replace(tree=jax.vmap(one_tree)(state.tree, state.rng_key))


def _descend(
  tree: SearchTree, table: chex.Array, config: SearchConfig
) -> chex.Array:
  """The next candidate to expand, int32 [2] (one searching tree)."""
  stats = tree_lib.node_stats(tree, tree.root_node, config)
  candidate = gumbel.select_root(
    stats, tree.gumbel, tree.move_visits, tree.simulations, table, config
  )

  def child(edge):
    return tree.child[edge[0], edge[1]]

  def down(edge):
    node = child(edge)
    stats = tree_lib.node_stats(tree, node, config)
    return jnp.stack([node, gumbel.select_interior(stats, config)])

  return jax.lax.while_loop(
    lambda edge: child(edge) != NONE,
    down,
    jnp.stack([tree.root_node, candidate]),
  )


def _select(
  tree: SearchTree, block: chex.Array, config: SearchConfig, max_steps: int
) -> tuple[SearchTree, chex.Array]:
  """Selects and links W leaves per tree; returns candidate indices [B, W]."""
  table = jnp.asarray(gumbel.schedule(config))

  def one_tree(tree, is_active, node):
    at_root = jnp.stack([tree.root_parent, tree.root_candidate])
    # Where there is no root to descend from this ends at a wrong place, but it
    # ends: a child's index is above its parent's.
    leaf = jnp.where(
      tree.root_node == NONE, at_root, _descend(tree, table, config)
    )
    tree = tree_lib.link(tree, node, leaf, is_active, max_steps)
    index = leaf[0] * config.num_candidates + leaf[1]
    index = jnp.where(leaf[0] == NONE, PROBLEM, index)
    return tree, jnp.where(is_active, index, NOTHING)

  is_simulating_B = is_searching(tree, config) & (tree.root_node != NONE)
  leaves = []
  for w in range(config.leaves_per_round):
    is_active_B = is_searching(tree, config)
    tree, leaf_B = jax.vmap(one_tree, in_axes=(0, 0, None))(
      tree, is_active_B, block + w
    )
    # Lost slots count: a move then takes a known number of rounds.
    tree = tree.replace(simulations=tree.simulations + is_simulating_B)
    leaves.append(leaf_B)
  return tree, jnp.stack(leaves, axis=1)


def select_and_expand(
  params: Any,
  state: SearchState,
  expand_fn: ExpandFn,
  config: SearchConfig,
  max_steps: int,
) -> tuple[SearchState, chex.Array, Expansion]:
  """First half of a round, up to where a judge may look.

  Args:
    params: handed to expand_fn.
    state: consumed.
    expand_fn: samples candidates.
    config: of the search.
    max_steps: D.

  Returns:
    The state with linked, empty nodes; leaf_BW; the expansion.
  """
  block = state.num_nodes
  tree, leaf_BW = _select(state.tree, block, config, max_steps)
  keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(state.rng_key, block)
  expansion, store = expand_fn(params, keys, state.store, leaf_BW, block)
  chex.assert_shape(expansion.count, (*leaf_BW.shape, config.num_candidates))
  return state._replace(tree=tree, store=store), leaf_BW, expansion


def insert_and_backup(
  state: SearchState,
  expansion: Expansion,
  judgement: Judgement,
  config: SearchConfig,
  max_steps: int,
) -> SearchState:
  """Second half of a round: the new candidates enter the trees."""
  tree = tree_lib.insert(
    state.tree, state.num_nodes, expansion, judgement, config, max_steps
  )
  for w in range(config.leaves_per_round):
    tree = jax.vmap(
      lambda tree, node: tree_lib.backup(tree, node, config, max_steps),
      in_axes=(0, None),
    )(tree, state.num_nodes + w)
  return state._replace(
    tree=tree, num_nodes=state.num_nodes + config.leaves_per_round
  )


def commit(state: SearchState, config: SearchConfig) -> SearchState:
  """Commits the chosen candidate of every unfinished tree: its new root."""

  def one_tree(tree):
    stats = tree_lib.node_stats(tree, tree.root_node, config)
    chosen = gumbel.choose(stats, tree.gumbel, tree.move_visits, config)
    at = (tree.root_node, chosen)
    # With every candidate pruned the line ends at an illegal step.
    is_last = tree.is_terminal[at] | ~jnp.any(stats.is_valid)

    def keep(old, new):
      return jnp.where(tree.is_done, old, new)

    return tree.replace(
      root_parent=keep(tree.root_parent, tree.root_node),
      root_candidate=keep(tree.root_candidate, chosen),
      root_depth=keep(tree.root_depth, tree.root_depth + 1),
      root_node=keep(tree.root_node, tree.child[at]),
      is_done=tree.is_done | is_last,
    )

  return state._replace(tree=jax.vmap(one_tree)(state.tree))


def search_round(
  params: Any,
  state: SearchState,
  expand_fn: ExpandFn,
  config: SearchConfig,
  max_steps: int,
) -> SearchState:
  """One round on the device; outcomes come from the network. Args as `play`."""
  state, _, expansion = select_and_expand(
    params, state, expand_fn, config, max_steps
  )
  return insert_and_backup(
    state, expansion, unjudged(expansion), config, max_steps
  )


def search_move(
  params: Any,
  state: SearchState,
  expand_fn: ExpandFn,
  config: SearchConfig,
  max_steps: int,
) -> SearchState:
  """One move's search, nothing committed. Args as `play`."""
  return jax.lax.while_loop(
    lambda state: jnp.any(is_searching(state.tree, config)),
    lambda state: search_round(params, state, expand_fn, config, max_steps),
    state,
  )


def advance(state: SearchState, config: SearchConfig) -> SearchState:
  """Commits in every tree whose move is over, until it searches or is done.

  Trees go from move to move on their own: none waits for another's search.
  """

  def is_waiting(tree):
    return ~tree.is_done & ~is_searching(tree, config)

  def next_move(state):
    after = begin_move(commit(state, config), config)
    waits_B = is_waiting(state.tree)

    def keep(old, new):
      mask = jnp.reshape(waits_B, (-1,) + (1,) * (old.ndim - 1))
      return jnp.where(mask, new, old)

    names = (
      "root_parent",
      "root_candidate",
      "root_depth",
      "root_node",
      "is_done",
      "simulations",
      "move_visits",
      "gumbel",
    )
    old, new = state.tree, after.tree
    changed = {name: keep(old[name], new[name]) for name in names}
    return state._replace(tree=old.replace(**changed))

  return jax.lax.while_loop(
    lambda state: jnp.any(is_waiting(state.tree)), next_move, state
  )


def play(
  params: Any,
  state: SearchState,
  expand_fn: ExpandFn,
  config: SearchConfig,
  max_steps: int,
) -> SearchState:
  """A whole play on the device: search, commit, repeat to the end.

  Args:
    params: handed to expand_fn.
    state: at the start of the first move, with room for `num_nodes_needed`
      nodes; consumed.
    expand_fn: samples candidates.
    config: of the search.
    max_steps: D.

  Returns:
    The state with every committed line finished.
  """
  return jax.lax.while_loop(
    lambda state: ~jnp.all(state.tree.is_done),
    lambda state: advance(
      search_round(params, state, expand_fn, config, max_steps), config
    ),
    state,
  )
