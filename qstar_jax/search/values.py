"""What candidates and nodes are worth: Q, the improved policy, backup.

Functions without a batch axis in their docstring work on one tree.
"""

import chex
import jax
import jax.numpy as jnp

from qstar_jax import improvement
from qstar_jax.config import SearchConfig
from qstar_jax.search import tree as tree_lib
from qstar_jax.search.tree import NONE, SearchTree


@chex.dataclass(frozen=True)
class NodeStats:
  """What selection reads at one node (or at nodes of any leading shape).

  Attributes:
    prior_logits: float32 [A], log prior + constant; `NEG_INF` = no candidate.
    q: float32 [A] completed Q, rescaled to [0, 1] per node in mctx mode.
    visits: int32 [A], pending ones included.
    is_open: bool [A].
    is_valid: bool [A], is a candidate.
  """

  prior_logits: chex.Array
  q: chex.Array
  visits: chex.Array
  is_open: chex.Array
  is_valid: chex.Array


def q_values(tree: SearchTree) -> chex.Array:
  """Q of every candidate: V counts as one virtual visit. [..., N, A]."""
  return (tree.utility + tree.value_sum) / (1 + tree.visits)


def shared_q_values(tree: SearchTree, node: chex.Array) -> chex.Array:
  """Q of a node where candidates of the same state share values (one tree).

  UCT2 of Childs, Brodeur and Kocsis, "Transpositions and move groups in Monte
  Carlo tree search", 2008: values are those of the state, visits remain those
  of the edge. What is known in full keeps its own Q: a twin may still find more
  among its own candidates, which cannot be reached from here.

  Returns:
    float32 [A].
  """
  state_A = tree.state[node]
  is_twin_ANA = state_A[:, None, None] == tree.state[None]
  total_NA = tree.utility + tree.value_sum
  total_A = jnp.sum(jnp.where(is_twin_ANA, total_NA[None], 0.0), axis=(1, 2))
  weight_NA = 1 + tree.visits
  weight_A = jnp.sum(jnp.where(is_twin_ANA, weight_NA[None], 0), axis=(1, 2))
  is_known_A = ~tree.is_open[node] & (tree.pending[node] == 0)
  is_own_A = is_known_A | (state_A == NONE)
  return jnp.where(is_own_A, q_values(tree)[node], total_A / weight_A)


def node_stats(
  tree: SearchTree, node: chex.Array, config: SearchConfig
) -> NodeStats:
  """Reads one node of one tree."""
  count = tree.count[node]
  prior_logits = improvement.candidate_prior_logits(
    tree.log_prob[node], tree.proposal_log_prob[node], count
  )
  visits = tree.visits[node]
  if config.mctx_mode:
    # A child's own V is its first backup here, and is hidden until then.
    seen_q = tree.value_sum[node] / jnp.maximum(visits, 1)
    mixed = improvement.mixed_value(
      tree.raw_value[node], prior_logits, seen_q, visits
    )
    q = jnp.where(visits > 0, seen_q, mixed)
    low, high = jnp.min(q), jnp.max(q)
    q = (q - low) / jnp.maximum(high - low, 1e-8)
  elif config.share_statistics:
    q = shared_q_values(tree, node)
  else:
    q = (tree.utility[node] + tree.value_sum[node]) / (1 + visits)
  return NodeStats(
    prior_logits=prior_logits,
    q=q,
    visits=visits + tree.pending[node],
    is_open=tree.is_open[node],
    is_valid=count > 0,
  )


def node_policy(stats: NodeStats, config: SearchConfig) -> chex.Array:
  """A node's improved policy over its candidates, [..., A]."""
  return improvement.improved_policy(
    stats.prior_logits,
    stats.q,
    stats.visits,
    maxvisit_init=config.maxvisit_init,
    value_scale=config.value_scale,
  )


def node_value(stats: NodeStats, config: SearchConfig) -> chex.Array:
  """V of a node under its improved policy; 0 where it has no candidate."""
  value = jnp.sum(node_policy(stats, config) * stats.q, axis=-1)
  return jnp.where(jnp.any(stats.is_valid, axis=-1), value, 0.0)


def backup(
  tree: SearchTree, node: chex.Array, config: SearchConfig, max_steps: int
) -> SearchTree:
  """Backs the value of a new node up to the current root (one tree).

  Candidates below which nothing can be expanded any more are closed. A closed
  candidate's subtree is known in full: its Q becomes the subtree's value, and
  its V, a guess at the same thing, counts no longer (not in mctx mode). With
  `backup: improved` that holds for every expanded candidate, closed or not.

  Args:
    tree: one tree.
    node: int32 scalar, an expanded node; a hole changes nothing.
    config: of the search.
    max_steps: D.

  Returns:
    The tree.
  """
  if config.mctx_mode:
    value = tree.raw_value[node]
  else:
    value = node_value(node_stats(tree, node, config), config)

  def up(_, carry):
    tree, node = carry
    row, candidate, above = tree_lib.edge_above(tree, node)
    is_open = jnp.any(tree.is_open[node])
    tree = tree.replace(
      visits=tree.visits.at[row, candidate].add(1, mode="drop"),
      value_sum=tree.value_sum.at[row, candidate].add(value, mode="drop"),
      pending=tree.pending.at[row, candidate].add(-1, mode="drop"),
      is_open=tree.is_open.at[row, candidate].set(is_open, mode="drop"),
    )
    if not config.mctx_mode:
      known = node_value(node_stats(tree, node, config), config)
      total = known * (1 + tree.visits[row, candidate])
      total -= tree.utility[row, candidate]
      # Another leaf of this round may be on its way up to here.
      is_known = ~is_open & ~jnp.any(tree.pending[node] > 0)
      is_known |= config.backup == "improved"
      total = jnp.where(is_known, total, tree.value_sum[row, candidate])
      tree = tree.replace(
        value_sum=tree.value_sum.at[row, candidate].set(total, mode="drop")
      )
    return tree, above

  start = jnp.where(tree.depth[node] == NONE, NONE, node)
  tree, _ = jax.lax.fori_loop(0, max_steps, up, (tree, start))
  return tree
