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
from qstar_jax.search.searcher import Pick, Searcher
from qstar_jax.search.tree import SearchTree


def select(
  tree: SearchTree, slot: chex.Array, config: SearchConfig, max_steps: int
) -> Pick:
  """The next of the level's best."""
  if config.tot_scoring == "value":
    return beam.select(tree, slot, config, max_steps)
  votes = tree.sampled.astype("float32")
  return beam.select_by(votes, tree, slot, config, max_steps)


def is_searching(tree, config, max_steps):
  """The first of the level's best can be expanded."""
  return ~tree.is_done & (select(tree, 0, config, max_steps).width > 0)


SEARCHER = Searcher(
  beam.num_nodes, lines.begin, is_searching, select, lines.settle, lines.commit
)


def for_evaluation(config: SearchConfig) -> SearchConfig:
  """As many leaves at once as are kept of a level."""
  return dataclasses.replace(config, leaves_per_round=config.beam_width)
