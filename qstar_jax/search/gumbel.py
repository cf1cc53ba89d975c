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

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np

from qstar_jax import improvement
from qstar_jax.config import SearchConfig
from qstar_jax.search import moves
from qstar_jax.search.tree import NodeStats, SearchTree

_NEVER = -jnp.inf


def considered_visits(
  max_considered: int, num_simulations: int
) -> tuple[int, ...]:
  """Sequential halving as a visit count per simulation.

  Simulation i goes to the best candidate that has exactly the i-th number of
  visits: `considered_visits(4, 8)` is (0, 0, 0, 0, 1, 1, 2, 2).

  Args:
    max_considered: candidates in the first phase.
    num_simulations: length of the schedule.

  Returns:
    The visit counts.
  """
  if max_considered <= 1:
    return tuple(range(num_simulations))
  num_phases = math.ceil(math.log2(max_considered))
  visits = [0] * max_considered
  num_considered = max_considered
  sequence: list[int] = []
  while len(sequence) < num_simulations:
    rounds = max(1, num_simulations // (num_phases * num_considered))
    for _ in range(rounds):
      sequence += visits[:num_considered]
      for i in range(num_considered):
        visits[i] += 1
    num_considered = max(2, num_considered // 2)
  return tuple(sequence[:num_simulations])


def schedule(config: SearchConfig) -> np.ndarray:
  """int32 table: row m in 0..A is the halving over m candidates.

  It has a column for each simulation, and one where there are none.
  """
  num_columns = max(config.num_simulations, 1)
  rows = [
    considered_visits(min(m, config.max_considered), num_columns)
    for m in range(config.num_candidates + 1)
  ]
  return np.asarray(rows, np.int32)


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


def select_root(
  tree: SearchTree, stats: NodeStats, config: SearchConfig
) -> chex.Array:
  """The root candidate of the next simulation (one tree).

  Args:
    tree: says which simulation of the move it is, and the visits before the
      move, which its halving does not count.
    stats: of the root.
    config: of the search.

  Returns:
    int32 candidate; one that is open, if any is.
  """
  visits_A = stats.visits - tree.move_visits
  num_considered = jnp.sum(stats.is_open | (visits_A > 0))
  table = jnp.asarray(schedule(config))
  wanted = table[num_considered, tree.simulations]
  score_A = tree.noise + stats.prior_logits + _scaled_q(stats, config)
  is_wanted = stats.is_open & (visits_A == wanted)
  # Candidates may close before they reach the visits the schedule counts on.
  allowed = jnp.where(jnp.any(is_wanted), is_wanted, stats.is_open)
  return jnp.argmax(jnp.where(allowed, score_A, _NEVER)).astype(jnp.int32)


def select_interior(stats: NodeStats, config: SearchConfig) -> chex.Array:
  """The candidate to go down to below the root (one tree), eq. 14."""
  policy = improvement.improved_policy(
    stats.prior_logits,
    stats.q,
    stats.visits,
    maxvisit_init=config.maxvisit_init,
    value_scale=config.value_scale,
  )
  lag_A = policy - stats.visits / (1 + jnp.sum(stats.visits))
  return jnp.argmax(jnp.where(stats.is_open, lag_A, _NEVER)).astype(jnp.int32)


def choose(
  tree: SearchTree, stats: NodeStats, config: SearchConfig
) -> chex.Array:
  """The candidate to commit (one tree): best of the halving's survivors.

  Args:
    tree: knows the move's noise, and the visits before the move.
    stats: of the root.
    config: of the search.

  Returns:
    int32 candidate.
  """
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
