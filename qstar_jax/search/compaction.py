"""Gives up what a play has left behind, so that a tree needs less room.

Once a step is committed nothing is expanded beside it. What is neither on the
committed line nor below the root goes, and the nodes that stay move together:
in the tree to the front, in the store's ring to just behind the next block to
be written, so that a node's block follows from its index as before.
"""

import chex
import jax
import jax.numpy as jnp

from qstar_jax.search import tree as tree_lib
from qstar_jax.search.tree import NONE, SearchTree


def _is_kept(tree: SearchTree, max_steps: int) -> chex.Array:
  """bool [N], nodes of the committed line and at or below the root."""
  node_N = jnp.arange(tree.depth.size)

  def up(_, carry):
    is_above_N, node = carry
    above = jnp.where(node == NONE, NONE, tree.parent[node])
    return is_above_N | (node_N == node), above

  nowhere_N = jnp.zeros_like(node_N, bool)
  is_above_N, _ = jax.lax.fori_loop(
    0, max_steps, up, (nowhere_N, tree.root_parent)
  )
  is_kept_N = is_above_N | tree_lib.is_below_root(tree, max_steps)
  # What is done rests as it is, holes and all.
  return jnp.where(tree.is_done, node_N < tree.num_nodes, is_kept_N)


def compact(
  tree: SearchTree, num_slots: int, max_steps: int
) -> tuple[SearchTree, chex.Array]:
  """Moves the nodes that are kept to the front, in their order (one tree).

  Args:
    tree: one tree, between two rounds.
    num_slots: W; holes fill up the last round.
    max_steps: D.

  Returns:
    The tree, and int32 [N], a permutation: which node each one was.
  """
  node_N = jnp.arange(tree.depth.size)
  is_kept_N = _is_kept(tree, max_steps)
  num_kept = jnp.sum(is_kept_N)
  num_nodes = jnp.where(
    tree.is_done, tree.num_nodes, -(-num_kept // num_slots) * num_slots
  )
  source_N = jnp.argsort(~is_kept_N)
  target_N = jnp.where(is_kept_N, jnp.argsort(source_N), NONE)
  is_used_N = node_N < num_kept

  def moved(name, empty):
    value = tree[name]
    if name in ("parent", "child"):
      value = jnp.where(value == NONE, NONE, target_N[value])
    is_used = jnp.reshape(is_used_N, (-1,) + (1,) * (value.ndim - 1))
    return jnp.where(is_used, value[source_N], empty)

  empty = tree_lib.empty_nodes(*tree.tokens.shape)
  by_node = {name: moved(name, field) for name, field in empty.items()}
  num_dropped = tree.num_made - num_nodes
  by_node["serial"] = jnp.where(
    is_used_N, by_node["serial"], node_N + num_dropped
  )
  roots = {
    name: jnp.where(tree[name] == NONE, NONE, target_N[tree[name]])
    for name in ("root_parent", "root_node")
  }
  tree = tree.replace(
    num_nodes=num_nodes, num_dropped=num_dropped, **by_node, **roots
  )
  return tree, source_N
