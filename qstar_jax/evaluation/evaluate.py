"""Plays a set of problems and sums up how it went."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qstar_jax.records import Domain, Problem
from qstar_jax.selfplay import plays
from qstar_jax.selfplay.player import Batch, Player

_NUM_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Scores over problems, each in [0, 1].

  Attributes:
    problems: how many.
    top1: mean score of the committed line, the player's one answer.
    any: mean of the best score among each tree's finished lines.
    mean: mean over problems of the mean score of the tree's finished lines.
    ci95: bootstrap 95 % interval of top1, over problems.
    tokens_per_problem: generated and prefilled.
    results: per problem, in order.
  """

  problems: int
  top1: float
  any: float
  mean: float
  ci95: tuple[float, float]
  tokens_per_problem: float
  results: list[plays.PlayResult]


def bootstrap_ci95(scores: Sequence[float], seed: int) -> tuple[float, float]:
  """Percentile bootstrap interval of the mean, over problems.

  Args:
    scores: one per problem, at least one.
    seed: of the resampling.

  Returns:
    (low, high).
  """
  values = np.asarray(scores, np.float64)
  rng = np.random.default_rng(seed)
  picks = rng.integers(values.size, size=(_NUM_RESAMPLES, values.size))
  low, high = np.percentile(values[picks].mean(axis=1), [2.5, 97.5])
  return float(low), float(high)


def evaluate(
  player: Player,
  params: Any,
  domain: Domain,
  problems: Sequence[Problem],
  *,
  batch_size: int,
  seed: int,
  on_progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
  """Plays every problem once.

  Args:
    player: of at least batch_size trees.
    params: of the network.
    domain: verifies the lines.
    problems: at least one.
    batch_size: problems per batch.
    seed: of the play: problem i is played with seed + i.
    on_progress: called with the number of problems done; may raise to stop.

  Returns:
    The evaluation.
  """
  batches = (
    Batch(
      list(problems[start : start + batch_size]),
      list(range(seed + start, seed + min(start + batch_size, len(problems)))),
    )
    for start in range(0, len(problems), batch_size)
  )
  results: list[plays.PlayResult] = []
  for played in player.play_batches(params, batches):
    results += [
      plays.result(domain, played, row) for row in range(len(played.problems))
    ]
    on_progress(len(results))
  top1 = [result.verdict.score for result in results]
  return Evaluation(
    problems=len(results),
    top1=float(np.mean(top1)),
    any=float(np.mean([result.any_score for result in results])),
    mean=float(np.mean([result.mean_score for result in results])),
    ci95=bootstrap_ci95(top1, seed),
    tokens_per_problem=float(np.mean([result.tokens for result in results])),
    results=results,
  )
