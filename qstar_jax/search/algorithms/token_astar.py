"""A* over tokens: largest f = log pi of the line + lambda log V.

g is the log-probability of the tokens so far, h the log of V there, or of Q of
the last token (`heuristic: token_q`), lambda is `heuristic_weight`: best-first
decoding (Meister et al. 2020, "Best-first beam search", arXiv:2007.03909) with
a look-ahead heuristic as in "A*esque decoding" (Lu et al. 2022,
arXiv:2112.08726). At the end of a finished line h is the same, or the log of
the verdict's score where the search asks the verifier.
It stops when a finished line has the largest f. A step of the tree is a token.

Deviations: those of `astar`; the num_candidates most likely tokens of a line
stand for the vocabulary; `num_simulations` bounds the expansions of the play.
"""

import dataclasses

import chex
import jax.numpy as jnp

from qstar_jax.config import SearchConfig
from qstar_jax.search import frontier
from qstar_jax.search.algorithms import astar, token_beam
from qstar_jax.search.tree import SearchTree


def priority(tree: SearchTree, config: SearchConfig) -> chex.Array:
  """f, float32 [N, A]."""
  verdict_NA = tree.line_log_prob + astar.log_score(tree.score)
  return jnp.where(
    tree.outcome >= 0, verdict_NA, token_beam.score(tree, config)
  )


SEARCHER = frontier.make_searcher(priority, astar.is_over)._replace(
  # A line has many tokens, and a play is one move.
  num_nodes=lambda config, max_steps: (
    -(-(2 * config.num_simulations + max_steps) // config.leaves_per_round)
    * config.leaves_per_round
  )
)


def for_evaluation(config: SearchConfig) -> SearchConfig:
  """Over the most likely tokens."""
  return dataclasses.replace(
    config, proposal="stochastic_beam", temperature=0.0
  )
