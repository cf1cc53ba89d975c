"""PUCT, the search of AlphaZero (Silver et al., Science 2018).

Down the tree goes the candidate of largest Q + U,

    U(a) = c P(a) sqrt(N) / (1 + N(a)),   N = 1 + sum_b N(b),
    c = puct_init + log((N + puct_base + 1) / puct_base),

with Dirichlet noise in the root's P; the most visited candidate is committed.
With `forced_playouts` = k > 0 a candidate of the root that was visited goes
first until it has sqrt(k P(a) N) visits (Wu 2019, arXiv:1902.10565); what this
adds is taken out of the policy target, see `improvement.visit_policy`.

Deviations from the paper:
  - candidates are sampled from the policy, not all actions: P is the prior over
    the sample (`improvement.candidate_prior_logits`);
  - every candidate has a network value from birth, so no Q is ever missing and
    a visit backs up the value of the node under its improved policy;
  - finished subtrees are never selected; a candidate that is finished is chosen
    by its Q among the most visited, since its visits say nothing.
With `mctx_mode` all three are off, Q is rescaled by the least and largest of
the node, unvisited candidates count as its least, and `mctx.muzero_policy` is
reproduced.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from qstar_jax import improvement
from qstar_jax.config import SearchConfig
from qstar_jax.search import moves
from qstar_jax.search.tree import SearchTree
from qstar_jax.search.values import NodeStats, node_stats

_NEVER = -jnp.inf


def noise(
  key: chex.PRNGKey, num_candidates: int, config: SearchConfig
) -> chex.Array:
  """Dirichlet noise of a move's root, float32 [A], sums to 1."""
  alpha = jnp.full((num_candidates,), config.dirichlet_alpha)
  return jax.random.dirichlet(key, alpha)


def _rescaled_q(
  tree: SearchTree, node: chex.Array, visits: chex.Array
) -> chex.Array:
  """Q in [0, 1] between the node's least and largest, as MuZero has it."""
  seen = visits > 0
  q = tree.value_sum[node] / jnp.maximum(visits, 1)
  total = tree.raw_value[node] + jnp.sum(tree.value_sum[node])
  of_node = total / (1 + jnp.sum(visits))
  known = jnp.where(seen, q, of_node)
  low = jnp.minimum(of_node, jnp.min(known))
  high = jnp.maximum(of_node, jnp.max(known))
  return (jnp.where(seen, q, low) - low) / jnp.maximum(high - low, 1e-8)


def _select(
  tree: SearchTree,
  node: chex.Array,
  prior_A: chex.Array,
  stats: NodeStats,
  config: SearchConfig,
) -> chex.Array:
  visits = stats.visits
  score_A = _rescaled_q(tree, node, visits) if config.mctx_mode else stats.q
  score_A += improvement.puct_bonus(
    prior_A,
    visits,
    puct_init=config.puct_init,
    puct_base=config.puct_base,
  )
  return jnp.argmax(jnp.where(stats.is_open, score_A, _NEVER)).astype(jnp.int32)


def select_root(tree: SearchTree, config: SearchConfig) -> chex.Array:
  """The root candidate of the next simulation (one tree), int32."""
  stats = node_stats(tree, tree.root_node, config)
  noise_A = jnp.where(stats.is_valid, tree.noise, 0.0)
  # A move without noise has none to mix in.
  share = jnp.where(jnp.any(noise_A > 0), config.dirichlet_share, 0.0)
  noise_A /= jnp.maximum(jnp.sum(noise_A), 1e-8)
  prior_A = jax.nn.softmax(stats.prior_logits)
  mixed_A = (1 - share) * prior_A + share * noise_A
  chosen = _select(tree, tree.root_node, mixed_A, stats, config)
  if not config.forced_playouts:
    return chosen
  forced_A = improvement.num_forced(
    mixed_A, stats.visits, config.forced_playouts
  )
  is_forced = stats.is_open & (stats.visits > 0) & (stats.visits < forced_A)
  first = jnp.argmax(is_forced).astype(jnp.int32)
  return jnp.where(jnp.any(is_forced), first, chosen)


def select_interior(
  tree: SearchTree, node: chex.Array, config: SearchConfig
) -> chex.Array:
  """The candidate to go down to below the root (one tree), int32."""
  stats = node_stats(tree, node, config)
  prior_A = jax.nn.softmax(stats.prior_logits)
  return _select(tree, node, prior_A, stats, config)


def choose(tree: SearchTree, config: SearchConfig) -> chex.Array:
  """The candidate to commit (one tree): most visits, then Q, then prior."""
  stats = node_stats(tree, tree.root_node, config)
  visits_A = stats.visits - tree.move_visits
  most = jnp.max(jnp.where(stats.is_valid, visits_A, 0))
  is_chosen = stats.is_valid & (visits_A == most)
  if not config.mctx_mode:
    # Without a visit, and closed from birth: as good as its value says.
    is_chosen |= stats.is_valid & ~stats.is_open
  q_A = jnp.where(is_chosen, stats.q, _NEVER)
  is_best = is_chosen & (q_A == jnp.max(q_A))
  score_A = jnp.where(is_best, stats.prior_logits, _NEVER)
  return jnp.argmax(score_A).astype(jnp.int32)


SEARCHER = moves.make_searcher(
  moves.Rules(noise, select_root, select_interior, choose)
)


def for_evaluation(config: SearchConfig) -> SearchConfig:
  """No noise at the root."""
  return dataclasses.replace(config, dirichlet_share=0.0)
