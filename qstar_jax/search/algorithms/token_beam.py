"""Beam search over tokens, with V or token-Q as heuristic.

Of all lines one token longer the W best go on, by the log-probability of the
line plus `heuristic_weight` times log V, or log Q of its last token
(`heuristic: token_q`): beam search (Lowerre 1976) with the
future estimated by a value network (He et al. 2017, "Decoding with value
networks for neural machine translation", NeurIPS 30). With weight 0 it is plain
beam search. A step of the tree is a token.

Deviations: those of `beam`; the num_candidates most likely tokens of a line
stand for the vocabulary; scores are not divided by length.
"""

import dataclasses

import chex

from qstar_jax.config import SearchConfig
from qstar_jax.search import lines
from qstar_jax.search.algorithms import astar, beam
from qstar_jax.search.tree import SearchTree


def score(tree: SearchTree, config: SearchConfig) -> chex.Array:
  """log pi of the line + lambda log V or Q, float32 [N, A]."""
  heuristic_NA = astar.log_score(lines.estimate(tree, config))
  return tree.line_log_prob + config.heuristic_weight * heuristic_NA


def commit(tree: SearchTree, config: SearchConfig) -> SearchTree:
  """The finished line of best score."""
  return lines.commit_best(tree, score(tree, config))


SEARCHER = beam.make_searcher(score, commit)


def for_evaluation(config: SearchConfig) -> SearchConfig:
  """As many leaves at once as the beam is wide, over the likeliest tokens."""
  return dataclasses.replace(
    config,
    leaves_per_round=config.beam_width,
    proposal="stochastic_beam",
    temperature=0.0,
  )
