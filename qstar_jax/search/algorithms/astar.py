"""A* over steps (Hart, Nilsson and Raphael 1968): largest f = g + lambda h.

g is the sum of log R along the line, the log-probability that every step of it
is right (`path_cost: prm`), or minus the number of steps (`depth`); h is log V.
With `policy_cost` c the line's c log pi is part of g, as the search tree's own
cost is in Levin tree search (Orseau et al. 2018, arXiv:1811.10928) and PHS
(Orseau and Lelis 2021, arXiv:2103.11505): what the policy would hardly write is
more often a mistake that V and PRM take for right than a find.
At the end of a finished line h is 0, or the log of the verdict's score where
the search asks the verifier. The search stops when a finished line has the
largest f of all: it would be taken from the queue next. No better line is left
then if h is the log of the true probability, or larger.

Deviations: V is learned, so h is admissible only as far as V is not too low; a
line that failed is never taken; a budget of tokens may end the search first,
with the best finished line; W leaves may be expanded at once, W - 1 of them
before they are known to be needed.
"""

import dataclasses

import chex
import jax.numpy as jnp

from qstar_jax.config import SearchConfig
from qstar_jax.search import frontier, lines
from qstar_jax.search.tree import SearchTree

# log of the least probability that counts.
_LOWEST = 1e-6


def log_score(score: chex.Array) -> chex.Array:
  """log of a probability, no lower than that of 1e-6."""
  return jnp.log(jnp.maximum(score, _LOWEST))


def priority(tree: SearchTree, config: SearchConfig) -> chex.Array:
  """f, float32 [N, A]."""
  if config.path_cost == "depth":
    g = -(1.0 + tree.depth[:, None])
  else:
    # The search has `utility: prm` and `aggregate: product`.
    g = log_score(tree.line_score)
  g -= lines.policy_cost(tree, config)
  h = config.heuristic_weight * log_score(tree.value)
  verdict = log_score(jnp.where(tree.outcome >= 0, tree.score, 1.0))
  return g + jnp.where(lines.is_finished(tree), verdict, h)


def is_over(
  tree: SearchTree, priority_NA: chex.Array, config: SearchConfig
) -> chex.Array:
  """A finished line is the next to be taken from the queue."""
  del config
  is_open = lines.is_frontier(tree)
  best_open = jnp.max(jnp.where(is_open, priority_NA, -jnp.inf))
  finished = frontier.best_finished(tree, priority_NA)
  return (finished >= best_open) & (finished > -jnp.inf)


SEARCHER = frontier.make_searcher(priority, is_over)


def for_evaluation(config: SearchConfig) -> SearchConfig:
  """The scores that g is made of."""
  return dataclasses.replace(config, utility="prm", aggregate="product")
