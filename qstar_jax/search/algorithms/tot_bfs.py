"""Tree of Thoughts, breadth first (Yao et al. 2023, arXiv:2305.10601, alg. 1).

At each level the b best candidates of all are expanded (`beam_width`). With
`tot_scoring: value` best is by line score, which is `beam`. With `vote` it is
by votes: how often the policy came to the candidate, of all it was asked.

Deviations: the paper asks a language model for values and votes in words; here
the network's heads score, and the samples themselves vote. See `beam` for the
others.
"""

import dataclasses

import chex

from qstar_jax.config import SearchConfig
from qstar_jax.search import lines
from qstar_jax.search.algorithms import beam
from qstar_jax.search.tree import SearchTree


def rank(tree: SearchTree, config: SearchConfig) -> chex.Array:
  """Line scores, or votes; float32 [N, A]."""
  if config.tot_scoring == "value":
    return lines.score(tree)
  return tree.sampled.astype("float32")


SEARCHER = beam.make_searcher(rank, lines.commit)


def for_evaluation(config: SearchConfig) -> SearchConfig:
  """As many leaves at once as are kept of a level."""
  return dataclasses.replace(config, leaves_per_round=config.beam_width)
