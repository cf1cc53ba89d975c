"""How many tokens a tree may still spend, and on how many candidates.

Before anything is sampled its worst case is set aside: every candidate as long
as a step may be. A budget is therefore never exceeded, by no token. Whoever
asks also keeps what it takes to finish a line from there, one candidate a
step, so that a tree does not end with half a line.
"""

import chex
import jax.numpy as jnp

from qstar_jax.config import SearchConfig
from qstar_jax.search import tree as tree_lib
from qstar_jax.search.tree import SearchTree


def tail_tokens(tree: SearchTree, num_steps: chex.Array) -> chex.Array:
  """What it takes at most to go on for some steps, a candidate each."""
  num_candidates, max_step_tokens = tree.tokens.shape[-2:]
  per_step = max_step_tokens * num_runs(num_candidates)
  return per_step * jnp.maximum(num_steps, 0)


def num_runs(num_candidates: int) -> int:
  """How often a step runs that is sampled and then chosen.

  An only candidate is chosen as it was sampled; see `SearchTree.tokens_used`.
  """
  return 1 if num_candidates == 1 else 2


def least_tokens(
  prompt_tokens: int, max_steps: int, max_step_tokens: int, num_candidates: int
) -> int:
  """The least budget with which a line is finished for certain."""
  runs = max_steps + (max_steps - 1) * (num_runs(num_candidates) - 1)
  return prompt_tokens + runs * max_step_tokens


def room(tree: SearchTree) -> chex.Array:
  """Tokens that are neither used nor promised to leaves of this round."""
  return tree.token_budget - tree.tokens_used - tree.tokens_promised


def _integer_root(n: chex.Array) -> chex.Array:
  """The largest integer whose square is n at most, n >= 0."""
  root = jnp.sqrt(n.astype(jnp.float32)).astype(jnp.int32)
  root -= root * root > n
  return root + ((root + 1) * (root + 1) <= n)


def _balanced(steps: chex.Array, config: SearchConfig) -> chex.Array:
  """Candidates of an expansion where so many steps are spent, 1 or more.

  w of them and steps / w expansions: w / (steps / w) is `breadth`.
  """
  scaled = jnp.clip(config.breadth * steps, 1, 1 << 30)
  return _integer_root(scaled.astype(jnp.int32))


def width_bound(tree: SearchTree, config: SearchConfig) -> chex.Array:
  """The most candidates of an expansion, int32 1 to A (one tree).

  As many as the whole budget buys in balance: what is wider leaves no room to
  look further.
  """
  num_candidates, max_step_tokens = tree.tokens.shape[-2:]
  width = _balanced(tree.token_budget // max_step_tokens, config)
  return jnp.minimum(width, num_candidates)


def lines_at_once(
  tree: SearchTree, config: SearchConfig, max_steps: int
) -> chex.Array:
  """Lines that the whole budget takes to their ends side by side, 1 or more."""
  steps = tree.token_budget // tree.tokens.shape[-1]
  return jnp.maximum(steps // max_steps // (width_bound(tree, config) + 1), 1)


def affordable_width(
  tree: SearchTree, edge: chex.Array, kept: chex.Array, config: SearchConfig
) -> chex.Array:
  """Candidates that can be sampled at an edge (one tree).

  Args:
    tree: one tree.
    edge: int32 [2], (node, candidate); (NONE, NONE) is the problem itself.
    kept: int32 scalar, tokens not to touch.
    config: of the search.

  Returns:
    int32 scalar, 0 to `width_bound`.
  """
  own = tree_lib.rerun_tokens(tree, edge)
  width = (room(tree) - kept - own) // tree.tokens.shape[-1]
  return jnp.clip(width, 0, width_bound(tree, config))


def balanced_width(
  tree: SearchTree, edge: chex.Array, kept: chex.Array, config: SearchConfig
) -> chex.Array:
  """Candidates that leave room for further expansions, at an edge."""
  width = _balanced((room(tree) - kept) // tree.tokens.shape[-1], config)
  return jnp.minimum(width, affordable_width(tree, edge, kept, config))


def balanced_simulations(
  tree: SearchTree, share: chex.Array, config: SearchConfig
) -> tuple[chex.Array, chex.Array]:
  """Width and number of expansions that a share of the tokens is spent on.

  The first expansion is one of them; each runs its leaf's step besides.

  Args:
    tree: one tree.
    share: int32 scalar, tokens.
    config: of the search.

  Returns:
    (candidates, 1 or more; expansions after the first, 0 or more), int32.
  """
  steps = jnp.maximum(share, 0) // tree.tokens.shape[-1]
  width = jnp.minimum(_balanced(steps, config), width_bound(tree, config))
  return width, jnp.maximum(steps // (1 + width) - 1, 0)
