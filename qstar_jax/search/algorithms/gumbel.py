"""Gumbel MuZero over sampled steps (Danihelka et al., ICLR 2022).

At the root: Gumbel noise and sequential halving over the candidates. Below it:
the deterministic rule that keeps visits close to the improved policy.

Deviations from the paper:
  - candidates are sampled from the policy, not all actions: the prior is over
    the sample (`improvement.candidate_prior_logits`);
  - every candidate has a network value from birth, so no Q is ever missing and
    a visit backs up the value of the node under its improved policy;
  - finished subtrees are never selected; a candidate that is finished stays in
    the final choice whatever its visits, since nothing more can be learned
    about it.
With `mctx_mode` all three are off and `mctx.gumbel_muzero_policy` is
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
from qstar_jax.search.values import NodeStats, node_policy, node_stats

_NEVER = -jnp.inf


def scheduled_visits(
  num_considered: chex.Array,
  num_simulations: chex.Array,
  simulation: chex.Array,
  max_considered: int,
) -> chex.Array:
  """Sequential halving as a visit count per simulation.

  Simulation i goes to the best candidate that has exactly this number of
  visits. For 4 candidates and 8 simulations: 0, 0, 0, 0, 1, 1, 2, 2.

  Args:
    num_considered: int32, candidates in the first phase.
    num_simulations: int32, of the whole schedule.
    simulation: int32, i >= 0; the last phase goes on for ever.
    max_considered: static bound of num_considered.

  Returns:
    int32 visit count; arguments and result are scalars, or broadcast.
  """
  max_phases = max(max_considered - 1, 1).bit_length()
  num_phases = sum(
    (num_considered > 2**p) * 1 for p in range(max_phases)
  )  # The logarithm, rounded up.
  done, left = 0, simulation
  visits = simulation  # Of a single candidate.
  for p in range(max_phases):
    considered = jnp.maximum(num_considered >> p, 2)
    rounds = jnp.maximum(
      num_simulations // jnp.maximum(num_phases * considered, 1), 1
    )
    is_in_phase = (left >= 0) & (num_considered > 1)
    visits = jnp.where(is_in_phase, done + left // considered, visits)
    done += rounds
    left -= rounds * considered
  is_after = (left >= 0) & (num_considered > 1)
  return jnp.where(is_after, done + left // 2, visits)


def _scaled_q(stats: NodeStats, config: SearchConfig) -> chex.Array:
  return improvement.sigma(
    stats.q,
    stats.visits,
    maxvisit_init=config.maxvisit_init,
    value_scale=config.value_scale,
  )


def noise(
  key: chex.PRNGKey, num_candidates: int, config: SearchConfig
) -> chex.Array:
  """Gumbel noise of a move's root, float32 [A]."""
  return config.gumbel_scale * jax.random.gumbel(key, (num_candidates,))


def select_root(tree: SearchTree, config: SearchConfig) -> chex.Array:
  """The root candidate of the next simulation (one tree).

  Visits from before the move do not count in its halving.

  Returns:
    int32 candidate; one that is open, if any is.
  """
  stats = node_stats(tree, tree.root_node, config)
  visits_A = stats.visits - tree.move_visits
  num_considered = jnp.sum(stats.is_open | (visits_A > 0))
  max_considered = min(config.max_considered, config.num_candidates)
  wanted = scheduled_visits(
    jnp.minimum(num_considered, max_considered),
    tree.move_simulations,
    tree.simulations,
    max_considered,
  )
  score_A = tree.noise + stats.prior_logits + _scaled_q(stats, config)
  is_wanted = stats.is_open & (visits_A == wanted)
  # Candidates may close before they reach the visits the schedule counts on.
  allowed = jnp.where(jnp.any(is_wanted), is_wanted, stats.is_open)
  return jnp.argmax(jnp.where(allowed, score_A, _NEVER)).astype(jnp.int32)


def select_interior(
  tree: SearchTree, node: chex.Array, config: SearchConfig
) -> chex.Array:
  """The candidate to go down to below the root (one tree), eq. 14."""
  stats = node_stats(tree, node, config)
  lag_A = node_policy(stats, config) - stats.visits / (
    1 + jnp.sum(stats.visits)
  )
  return jnp.argmax(jnp.where(stats.is_open, lag_A, _NEVER)).astype(jnp.int32)


def choose(tree: SearchTree, config: SearchConfig) -> chex.Array:
  """The candidate to commit (one tree): best of the halving's survivors."""
  stats = node_stats(tree, tree.root_node, config)
  visits_A = stats.visits - tree.move_visits
  is_survivor = visits_A == jnp.max(jnp.where(stats.is_valid, visits_A, 0))
  if not config.mctx_mode:
    is_survivor |= ~stats.is_open
  score_A = tree.noise + stats.prior_logits + _scaled_q(stats, config)
  score_A = jnp.where(is_survivor & stats.is_valid, score_A, _NEVER)
  return jnp.argmax(score_A).astype(jnp.int32)


SEARCHER = moves.make_searcher(
  moves.Rules(noise, select_root, select_interior, choose)
)


def for_evaluation(config: SearchConfig) -> SearchConfig:
  """No noise at the root."""
  return dataclasses.replace(config, gumbel_scale=0.0)
