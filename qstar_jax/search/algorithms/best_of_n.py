"""Best of N (Cobbe et al. 2021, arXiv:2110.14168): N lines, sampled apart.

Committed is the finished line of best score: of the PRM over its steps
(`utility: prm`; `aggregate` says whether the least, the product, the mean or
the last), or of V at its end (`utility: value`, `aggregate: last`). With
`choose_by` the lines vote: the most frequent answer, by samples (self-
consistency, Wang et al. 2023, arXiv:2203.11171) or by their scores added up, or
its shortest line.

Deviations: none; lines are `num_lines`, `beam_width` of them at a time, and as
many as the budget of tokens allows.
"""

import dataclasses

from qstar_jax.config import SearchConfig
from qstar_jax.search import lanes

SEARCHER = lanes.SEARCHER


def for_evaluation(config: SearchConfig) -> SearchConfig:
  """One candidate a step, at temperature 1."""
  return dataclasses.replace(
    config,
    num_candidates=1,
    leaves_per_round=min(config.beam_width, config.num_lines),
    temperature=1.0,
  )
