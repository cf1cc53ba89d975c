"""The policy alone: one line, sampled at temperature 1."""

import dataclasses

from qstar_jax.config import SearchConfig
from qstar_jax.search import lanes

SEARCHER = lanes.SEARCHER


def for_evaluation(config: SearchConfig) -> SearchConfig:
  """One line of one candidate a step."""
  return dataclasses.replace(
    config,
    num_candidates=1,
    num_lines=1,
    leaves_per_round=1,
    temperature=1.0,
    min_p=0.0,
  )
