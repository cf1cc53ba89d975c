"""Rejection sampling: lines are sampled until the verifier accepts one.

Lines are those of `best_of_n`. The search asks the verifier, whatever the
evaluation says of other searches, and its results are marked so.
"""

import dataclasses

import chex
import jax.numpy as jnp

from qstar_jax.config import SearchConfig
from qstar_jax.search import lanes, lines
from qstar_jax.search.algorithms import best_of_n
from qstar_jax.search.tree import SearchTree


def is_searching(
  tree: SearchTree, config: SearchConfig, max_steps: int
) -> chex.Array:
  """No line has been accepted yet."""
  is_accepted = lines.is_finished(tree) & (tree.score == 1)
  goes_on = lanes.SEARCHER.is_searching(tree, config, max_steps)
  return goes_on & ~jnp.any(is_accepted)


SEARCHER = lanes.SEARCHER._replace(is_searching=is_searching)


def for_evaluation(config: SearchConfig) -> SearchConfig:
  """One candidate a step, at temperature 1, with the verifier."""
  config = best_of_n.for_evaluation(config)
  return dataclasses.replace(config, terminal_value="outcome")
