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
from qstar_jax.search import compaction, searchers
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
    round: int32 [B], rounds so far, the same for all trees of a device.
    rng_key: [B] keys, one per tree, never used twice: folded with the number of
      nodes made.
  """

  tree: SearchTree
  store: Store
  round: chex.Array
  rng_key: chex.PRNGKey

  @property
  def num_nodes(self) -> int:
    """N."""
    return self.tree.depth.shape[1]

  def block(self, config: SearchConfig) -> chex.Array:
    """int32 scalar, the first of the W blocks that this round writes.

    The blocks of the store are a ring, which all trees go round together. Nodes
    of a tree are counted from its own beginning: it may have taken the place of
    one that was done. Before the ring comes back to its first block it has come
    to its end, or is compacted.
    """
    return self.round[0] * config.leaves_per_round % self.num_nodes


def num_nodes_needed(config: SearchConfig, max_steps: int) -> int:
  """N, room for a whole play of at most `max_steps` moves; divides by W."""
  return searchers.load(config).num_nodes(config, max_steps)


def begin_move(
  state: SearchState, config: SearchConfig, max_steps: int
) -> SearchState:
  """Starts a move at the roots (batched)."""
  begin = searchers.load(config).begin

  def one_tree(tree, key):
    # Expansions fold in numbers >= 0; moves take the other half.
    key = jax.random.fold_in(key, -1 - tree.root_depth)
    return begin(tree, key, config, max_steps)

  return state._replace(tree=jax.vmap(one_tree)(state.tree, state.rng_key))


def is_searching(
  tree: SearchTree, config: SearchConfig, max_steps: int
) -> chex.Array:
  """[B] bool, the tree has something to expand before its next commit."""
  searcher = searchers.load(config)
  return jax.vmap(lambda t: searcher.is_searching(t, config, max_steps))(tree)


def _select(
  tree: SearchTree, config: SearchConfig, max_steps: int
) -> tuple[SearchTree, chex.Array, chex.Array]:
  """Selects and links W leaves per tree.

  Returns:
    The trees, the leaves as candidate indices [B, W], their widths [B, W].
  """
  searcher = searchers.load(config)

  def one_tree(tree, w, is_simulating):
    is_active = searcher.is_searching(tree, config, max_steps)
    edge, width = searcher.select(tree, w, config, max_steps)
    width = jnp.where(is_active, width, 0)
    tree = tree_lib.link(tree, tree.num_nodes + w, edge, width, max_steps)
    index = edge[0] * config.num_candidates + edge[1]
    index = jnp.where(edge[0] == NONE, PROBLEM, index)
    index = jnp.where(width > 0, index, NOTHING)
    # Lost slots count: a move then takes a known number of rounds.
    tree = tree.replace(simulations=tree.simulations + is_simulating)
    return tree, (index, width)

  is_simulating_B = is_searching(tree, config, max_steps)
  is_simulating_B &= tree.root_node != NONE

  def one_slot(tree, w):
    return jax.vmap(one_tree, in_axes=(0, None, 0))(tree, w, is_simulating_B)

  # A loop: many leaves would make a program that compiles for minutes.
  slots = jnp.arange(config.leaves_per_round)
  tree, (leaf_WB, width_WB) = jax.lax.scan(one_slot, tree, slots)
  return tree, leaf_WB.T, width_WB.T


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
    The state with linked, empty nodes; leaf_BW, by serial numbers instead of
    indices; the expansion.
  """
  tree, leaf_BW, width_BW = _select(state.tree, config, max_steps)
  keys = jax.vmap(jax.random.fold_in)(state.rng_key, tree.num_made)
  block = state.block(config)
  # From a tree's own count of nodes to that of the ring.
  shift_B = (block - tree.num_nodes) * config.num_candidates
  num_candidates = state.num_nodes * config.num_candidates
  in_ring_BW = (leaf_BW + shift_B[:, None]) % num_candidates
  expansion, store = expand_fn(
    params,
    keys,
    state.store,
    jnp.where(leaf_BW < 0, leaf_BW, in_ring_BW),
    width_BW,
    block,
  )
  chex.assert_shape(expansion.count, (*leaf_BW.shape, config.num_candidates))
  node_BW, candidate_BW = jnp.divmod(leaf_BW, config.num_candidates)
  line_BW = jax.vmap(tree_lib.line_index)(tree, node_BW, candidate_BW)
  line_BW = jnp.where(leaf_BW < 0, leaf_BW, line_BW)
  return state._replace(tree=tree, store=store), line_BW, expansion


def insert_and_backup(
  state: SearchState,
  expansion: Expansion,
  judgement: Judgement,
  config: SearchConfig,
  max_steps: int,
) -> SearchState:
  """Second half of a round: the new candidates enter the trees."""
  settle = searchers.load(config).settle

  def insert(tree, expansion, judgement):
    return tree_lib.insert(tree, expansion, judgement, config, max_steps)

  def settle_slot(w, tree):
    # The trees of a batch that are done have made nothing.
    node = jnp.where(tree.is_done, tree_lib.NONE, tree.num_nodes + w)
    return settle(tree, node, config, max_steps)

  tree = jax.vmap(insert)(state.tree, expansion, judgement)
  tree = jax.lax.fori_loop(
    0,
    config.leaves_per_round,
    lambda w, tree: jax.vmap(settle_slot, in_axes=(None, 0))(w, tree),
    tree,
  )
  num_new_B = jnp.where(tree.is_done, 0, config.leaves_per_round)
  tree = tree.replace(num_nodes=tree.num_nodes + num_new_B)
  return state._replace(tree=tree, round=state.round + 1)


def commit(state: SearchState, config: SearchConfig) -> SearchState:
  """Commits what every unfinished tree has chosen: its new root."""
  commit = searchers.load(config).commit
  tree = jax.vmap(lambda tree: commit(tree, config))(state.tree)
  return state._replace(tree=tree)


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
    lambda state: jnp.any(is_searching(state.tree, config, max_steps)),
    lambda state: search_round(params, state, expand_fn, config, max_steps),
    state,
  )


def advance(
  state: SearchState, config: SearchConfig, max_steps: int
) -> SearchState:
  """Commits in every tree whose move is over, until it searches or is done.

  Trees go from move to move on their own: none waits for another's search.
  """

  def is_waiting(tree):
    return ~tree.is_done & ~is_searching(tree, config, max_steps)

  def next_move(state):
    after = begin_move(commit(state, config), config, max_steps)
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
      "move_simulations",
      "move_width",
      "move_visits",
      "noise",
    )
    old, new = state.tree, after.tree
    changed = {name: keep(old[name], new[name]) for name in names}
    return state._replace(tree=old.replace(**changed))

  state = jax.lax.while_loop(
    lambda state: jnp.any(is_waiting(state.tree)), next_move, state
  )
  return _make_room(state, config, max_steps) if config.compact else state


def _make_room(
  state: SearchState, config: SearchConfig, max_steps: int
) -> SearchState:
  """Compacts all trees at once if one of them has no room for a round."""
  num_slots, num_nodes = config.leaves_per_round, state.num_nodes
  block, position_N = state.block(config), jnp.arange(num_nodes)

  def in_ring(source_N, before, after):
    """A permutation of blocks from one of nodes; see `SearchState.block`."""
    index_N = (position_N - block + after) % num_nodes
    return (block - before + source_N[index_N]) % num_nodes

  def compact(_, state):
    old = state.tree
    tree, source_BN = jax.vmap(
      lambda tree: compaction.compact(tree, num_slots, max_steps)
    )(old)
    source_BN = jax.vmap(in_ring)(source_BN, old.num_nodes, tree.num_nodes)
    store = state.store.move_blocks(source_BN)
    return state._replace(tree=tree, store=store)

  is_full_B = ~state.tree.is_done
  is_full_B &= state.tree.num_nodes + num_slots > num_nodes
  # A loop and not a branch: those may copy what they leave as it is.
  times = jnp.any(is_full_B).astype(jnp.int32)
  return jax.lax.fori_loop(0, times, compact, state)


def play(
  params: Any,
  state: SearchState,
  expand_fn: ExpandFn,
  config: SearchConfig,
  max_steps: int,
  num_done: chex.Array | int | None = None,
) -> SearchState:
  """Whole plays on the device: search, commit, repeat to the end.

  Args:
    params: handed to expand_fn.
    state: of trees that are searching, with room for `num_nodes_needed` nodes,
      or done; consumed.
    expand_fn: samples candidates.
    config: of the search.
    max_steps: D.
    num_done: int32 scalar, stops when as many trees are done; default all.

  Returns:
    The state; of trees that are done the committed line is finished.
  """
  num_done = state.tree.is_done.size if num_done is None else num_done
  return jax.lax.while_loop(
    lambda state: jnp.sum(state.tree.is_done) < num_done,
    lambda state: advance(
      search_round(params, state, expand_fn, config, max_steps),
      config,
      max_steps,
    ),
    state,
  )
