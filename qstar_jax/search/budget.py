"""How many tokens a tree may still spend, and on how many candidates.

Before anything is sampled its worst case is set aside: every candidate as long
as a step may be. A budget is therefore never exceeded, by no token. Whoever
asks also keeps what it takes to finish a line from there, one candidate a
step, so that a tree does not end with half a line.
"""

import chex
import jax.numpy as jnp

from qstar_jax.search.tree import NONE, SearchTree


def tail_tokens(tree: SearchTree, num_steps: chex.Array) -> chex.Array:
  """What it takes at most to go on for some steps, each sampled and run."""
  return 2 * tree.tokens.shape[-1] * jnp.maximum(num_steps, 0)


def room(tree: SearchTree) -> chex.Array:
  """Tokens that are neither used nor promised to leaves of this round."""
  return tree.token_budget - tree.tokens_used - tree.tokens_promised


def affordable_width(
  tree: SearchTree, edge: chex.Array, kept: chex.Array
) -> chex.Array:
  """Candidates that can be sampled at an edge, 0 to A (one tree).

  Args:
    tree: one tree.
    edge: int32 [2], (node, candidate); (NONE, NONE) is the problem itself.
    kept: int32 scalar, tokens not to touch.

  Returns:
    int32 scalar.
  """
  num_candidates, max_step_tokens = tree.tokens.shape[-2:]
  own = jnp.where(edge[0] == NONE, 0, tree.length[edge[0], edge[1]])
  width = (room(tree) - kept - own) // max_step_tokens
  return jnp.clip(width, 0, num_candidates)


def balanced_width(
  tree: SearchTree, edge: chex.Array, kept: chex.Array
) -> chex.Array:
  """Candidates that leave room for as many expansions again, int32 0 to A."""
  steps = jnp.maximum(room(tree) - kept, 0) // tree.tokens.shape[-1]
  square_root = jnp.sqrt(steps.astype(jnp.float32)).astype(jnp.int32)
  width = jnp.maximum(square_root, 1)
  return jnp.minimum(width, affordable_width(tree, edge, kept))
