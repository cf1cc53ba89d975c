"""Diverse verifier tree search (Beeching et al. 2024): beams apart.

`beam_width` lines, each of its own expansions: of a step's A candidates the one
of best line score goes on, whatever the other lines do. Committed is the
finished line of best score. Source: "Scaling test-time compute with open
models", https://huggingface.co/spaces/HuggingFaceH4/blogpost-scaling-test-time-compute

Deviations: a budget of tokens lessens the lines, then the candidates.
"""

import dataclasses

from qstar_jax.config import SearchConfig
from qstar_jax.search import lanes

SEARCHER = lanes.SEARCHER


def for_evaluation(config: SearchConfig) -> SearchConfig:
  """One line a lane."""
  return dataclasses.replace(
    config, num_lines=config.beam_width, leaves_per_round=config.beam_width
  )
