"""What a search algorithm decides; `driver` does everything else.

A searcher is pure functions of one tree, traced and vmapped. A round asks
`select` for a leaf W times, expands all of them, and calls `settle` for each
new node. Where `is_searching` says no the tree takes a `commit`: one step, from
which the search goes on, or a whole line, which ends it.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax.numpy as jnp

from qstar_jax.config import SearchConfig
from qstar_jax.search.tree import NONE, SearchTree


class Pick(NamedTuple):
  """What to expand next in one tree.

  Attributes:
    edge: int32 [2], (node, candidate); (NONE, NONE) is the problem itself.
    width: int32 scalar, candidates to sample there, at most A; 0 is no pick.
  """

  edge: chex.Array
  width: chex.Array


class Searcher(NamedTuple):
  """One algorithm.

  Attributes:
    num_nodes: (config, max_steps) -> N, room for a whole play; divides by W.
    begin: (tree, key, config, max_steps) -> tree, at the start of a move; the
      key is the move's own.
    is_searching: (tree, config, max_steps) -> bool scalar, there is something
      to expand before the next commit.
    select: (tree, slot, config, max_steps) -> Pick, asked of searching trees
      only; slot is 0 to W - 1, and nodes picked for earlier slots of the round
      are linked already, without candidates.
    settle: (tree, node, config, max_steps) -> tree, after the round's new
      candidates have entered; node may be NONE or a hole, which change nothing.
    commit: (tree, config) -> tree, of a tree that is not searching.
    priority: (tree, config) -> float32 [N, A], f of a searcher that expands the
      candidate of largest f; None of others.
  """

  num_nodes: Callable[[SearchConfig, int], int]
  begin: Callable[[SearchTree, chex.PRNGKey, SearchConfig, int], SearchTree]
  is_searching: Callable[[SearchTree, SearchConfig, int], chex.Array]
  select: Callable[[SearchTree, chex.Array | int, SearchConfig, int], Pick]
  settle: Callable[[SearchTree, chex.Array, SearchConfig, int], SearchTree]
  commit: Callable[[SearchTree, SearchConfig], SearchTree]
  priority: Callable[[SearchTree, SearchConfig], chex.Array] | None = None


def step_down(
  tree: SearchTree, edge: chex.Array, is_last: chex.Array
) -> SearchTree:
  """The tree with one more step committed, where it was not done.

  Args:
    tree: one tree.
    edge: int32 [2], (node, candidate) below the current root, or further down:
      the steps between are committed with it.
    is_last: bool scalar, nothing follows.

  Returns:
    The tree; the candidate is its root.
  """
  node, candidate = edge
  new = {
    "root_parent": node,
    "root_candidate": candidate,
    "root_depth": tree.depth[node] + 1,
    "root_node": tree.child[node, candidate],
    "is_done": tree.is_done | is_last,
  }
  return tree.replace(
    **{
      name: jnp.where(tree.is_done, tree[name], value)
      for name, value in new.items()
    }
  )


def best_edge(score_NA: chex.Array) -> chex.Array:
  """int32 [2]: first of the largest scores; (NONE, NONE) if all are -inf."""
  index = jnp.argmax(score_NA)
  edge = jnp.stack(jnp.unravel_index(index, score_NA.shape)).astype(jnp.int32)
  return jnp.where(jnp.isneginf(jnp.max(score_NA)), NONE, edge)
