"""Q* as published (Wang et al. 2024, arXiv:2406.14283): f = g + lambda h.

g is any aggregate of the scores along the line (`aggregate`), of the PRM in
evaluation, of what `utility` says in self-play; h is a value to go. With
`heuristic: value` it is V of the line. With `max_q` it is the best V among the
line's own candidates, which have to be sampled to know it: a line stands in the
queue under V until it is expanded, then under its best candidate, and its
candidates join the queue when it comes first again, none with a higher f than
it had then (pathmax, Mero 1984, since g may grow along a line). With `token_q`
it is Q of the line's last token. The search stops when a finished line comes
first; where the verifier has judged one, g and h are its score. No optimality
is claimed.

With `policy_cost` c, c log pi of the line is part of g; see `astar`.

Deviations: the paper trains a Q network of its own; here Q of a candidate is V
after it, transitions being deterministic, or that of the token-Q heads. Scores
are probabilities in [0, 1], not sums of rewards.
"""

import dataclasses

import chex
import jax.numpy as jnp

from qstar_jax.config import SearchConfig
from qstar_jax.search import frontier, lines
from qstar_jax.search.algorithms import astar
from qstar_jax.search.tree import NONE, SearchTree


def priority(tree: SearchTree, config: SearchConfig) -> chex.Array:
  """f, float32 [N, A]; a candidate's by `max_q` no more than its node's."""
  estimate = lines.estimate(tree, config)
  worth = jnp.where(tree.outcome >= 0, tree.score, estimate)
  # A verdict is all there is to say: what it calls wrong comes last.
  g_NA = lines.score(tree) - lines.policy_cost(tree, config)
  f_NA = g_NA + config.heuristic_weight * worth
  if config.heuristic != "max_q":
    return f_NA
  # In the queue before its candidates: they come no earlier than it does.
  best_N = jnp.max(jnp.where(tree.count > 0, worth, 0.0), axis=-1)
  g_N = g_NA[tree.parent, tree.candidate]
  f_N = g_N + config.heuristic_weight * best_N
  f_N = jnp.where(tree.parent == NONE, jnp.inf, f_N)
  return jnp.minimum(f_NA, f_N[:, None])


SEARCHER = frontier.make_searcher(priority, astar.is_over)


def for_evaluation(config: SearchConfig) -> SearchConfig:
  """The scores that g is made of."""
  return dataclasses.replace(config, utility="prm")
