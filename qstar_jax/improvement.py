"""From (prior, Q, visits) to the improved policy: shared by search and learner.

Definitions follow Gumbel MuZero (Danihelka et al., "Policy improvement by
planning with Gumbel", ICLR 2022) with one deviation: candidates are *sampled*
from the policy, so the prior is over the sample, corrected for the proposal.
All functions are pure and work on arrays [..., A] of any leading shape.
"""

import chex
import jax
import jax.numpy as jnp

# Stands for minus infinity: sums of a few of them stay finite in float32.
NEG_INF = -1e9


def candidate_prior_logits(
  log_prob: chex.Array, proposal_log_prob: chex.Array, count: chex.Array
) -> chex.Array:
  """Log prior over sampled candidates, up to a constant.

  Where samples are drawn with replacement and duplicates merged, candidate i
  stands for `count_i` draws from the proposal beta and its importance weight
  under pi is count_i * pi_i / beta_i. At temperature 1 that is the count alone.

  Where they are drawn without replacement, counts are 1 and beta_i is the
  probability that the candidate is among them: pi_i / beta_i is then the weight
  of Kool et al. 2019, "Stochastic Beams and Where to Find Them".

  Args:
    log_prob: [..., A] log pi of the candidate, nats.
    proposal_log_prob: [..., A] log beta of the candidate, nats.
    count: [..., A] int, samples merged into the candidate; 0 = no candidate.

  Returns:
    [..., A] float32 logits; `NEG_INF` where count is 0.
  """
  count = count.astype(jnp.float32)
  logits = jnp.log(jnp.maximum(count, 1.0)) + log_prob - proposal_log_prob
  return jnp.where(count > 0, logits, NEG_INF)


def sigma(
  q: chex.Array,
  visits: chex.Array,
  *,
  maxvisit_init: float,
  value_scale: float,
) -> chex.Array:
  """The monotone transform sigma(q) of Gumbel MuZero, eq. 8.

  Args:
    q: [..., A] completed Q in [0, 1].
    visits: [..., A] visits of each candidate.
    maxvisit_init: c_visit.
    value_scale: c_scale.

  Returns:
    [..., A] (c_visit + max_b visits_b) * c_scale * q, nats.
  """
  max_visits = jnp.max(visits, axis=-1, keepdims=True)
  return (maxvisit_init + max_visits) * value_scale * q


def improved_policy(
  prior_logits: chex.Array,
  q: chex.Array,
  visits: chex.Array,
  *,
  maxvisit_init: float,
  value_scale: float,
) -> chex.Array:
  """pi' = softmax(log prior + sigma(completed Q)), eq. 11.

  Args:
    prior_logits: [..., A], `NEG_INF` where there is no candidate.
    q: [..., A] completed Q: the search value, or V where unvisited.
    visits: [..., A] visits of each candidate.
    maxvisit_init: c_visit.
    value_scale: c_scale.

  Returns:
    [..., A] probabilities; 0 where there is no candidate.
  """
  scaled_q = sigma(
    q, visits, maxvisit_init=maxvisit_init, value_scale=value_scale
  )
  return jax.nn.softmax(prior_logits + scaled_q, axis=-1)


def mixed_value(
  node_value: chex.Array,
  prior_logits: chex.Array,
  q: chex.Array,
  visits: chex.Array,
) -> chex.Array:
  """The mixed value v_mix that stands for unvisited Q in Gumbel MuZero, eq. 33.

  Args:
    node_value: [...] V of the node.
    prior_logits: [..., A].
    q: [..., A], read only where visits > 0.
    visits: [..., A].

  Returns:
    [...] (V + sum(N) * prior-weighted mean Q of visited) / (1 + sum(N)).
  """
  prior = jax.nn.softmax(prior_logits, axis=-1)
  visited = visits > 0
  # A visited candidate whose prior underflowed still weighs something.
  prior = jnp.maximum(prior, jnp.finfo(prior.dtype).tiny)
  weight = jnp.where(visited, prior, 0.0)
  total = jnp.sum(weight, axis=-1, keepdims=True)
  # Divided first: a product of what is that small with Q is flushed to zero.
  weight = weight / jnp.where(total > 0, total, 1.0)
  mean_q = jnp.sum(weight * jnp.where(visited, q, 0.0), axis=-1)
  num_visits = jnp.sum(visits, axis=-1)
  return (node_value + num_visits * mean_q) / (1 + num_visits)


def puct_bonus(
  prior: chex.Array,
  visits: chex.Array,
  *,
  puct_init: float,
  puct_base: float,
) -> chex.Array:
  """U of PUCT (Silver et al., Science 2018): c P sqrt(N) / (1 + N(a)).

  Args:
    prior: [..., A] P, probabilities.
    visits: [..., A] N(a).
    puct_init: c_init.
    puct_base: c_base.

  Returns:
    [..., A] bonuses, with N = 1 + sum_b N(b) and
    c = c_init + log((N + c_base + 1) / c_base).
  """
  total = 1 + jnp.sum(visits, axis=-1, keepdims=True)
  c = puct_init + jnp.log((total + puct_base + 1) / puct_base)
  return c * prior * jnp.sqrt(total) / (1 + visits)


def num_forced(
  prior: chex.Array, visits: chex.Array, forced_playouts: float
) -> chex.Array:
  """Visits that a visited root candidate is to have: sqrt(k P(a) N).

  KataGo's forced playouts (Wu 2019, arXiv:1902.10565, section 3.2).

  Args:
    prior: [..., A] P, probabilities.
    visits: [..., A] N(a).
    forced_playouts: k.

  Returns:
    [..., A] float32, with N the sum of visits.
  """
  total = jnp.sum(visits, axis=-1, keepdims=True)
  return jnp.sqrt(forced_playouts * prior * total)


def visit_policy(
  prior_logits: chex.Array,
  q: chex.Array,
  visits: chex.Array,
  *,
  puct_init: float,
  puct_base: float,
  forced_playouts: float = 0.0,
) -> chex.Array:
  """PUCT's policy target: visits, less those that were forced.

  KataGo's policy target pruning (Wu 2019, arXiv:1902.10565, section 3.2): of
  every candidate but the most visited, c*, up to `num_forced` visits are taken
  away as long as its Q + U stays below that of c*; what is left with a single
  visit is dropped.

  Args:
    prior_logits: [..., A], `NEG_INF` where there is no candidate.
    q: [..., A] completed Q.
    visits: [..., A].
    puct_init: c_init.
    puct_base: c_base.
    forced_playouts: k; 0 takes nothing away.

  Returns:
    [..., A] probabilities; the prior where nothing was visited.
  """
  prior = jax.nn.softmax(prior_logits, axis=-1)
  kept = visits.astype(jnp.float32)
  if forced_playouts:
    bonus = puct_bonus(prior, visits, puct_init=puct_init, puct_base=puct_base)
    best = jnp.argmax(visits, axis=-1, keepdims=True)
    is_best = jnp.arange(visits.shape[-1]) == best
    bar = jnp.take_along_axis(q + bonus, best, axis=-1)
    # Q + bonus (1 + visits) / (1 + n) < bar holds for all n above this.
    gap = bar - q
    least = bonus * (1 + visits) / jnp.where(gap > 0, gap, 1.0) - 1
    least = jnp.where(gap > 0, jnp.floor(least) + 1, kept)
    forced = jnp.floor(num_forced(prior, visits, forced_playouts))
    pruned = jnp.clip(jnp.maximum(kept - forced, least), 0, kept)
    pruned = jnp.where((pruned <= 1) & (pruned < kept), 0.0, pruned)
    kept = jnp.where(is_best, kept, pruned)
  total = jnp.sum(kept, axis=-1, keepdims=True)
  return jnp.where(total > 0, kept / jnp.maximum(total, 1.0), prior)
