"""Plays a set of problems and sums up how it went."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qstar_jax.evaluation.metrics import bootstrap_ci95
from qstar_jax.records import Domain, Problem
from qstar_jax.search.tree import UNLIMITED
from qstar_jax.selfplay import plays
from qstar_jax.selfplay.player import Job, Played, Player


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Scores over problems, each in [0, 1].

  Attributes:
    problems: how many.
    top1: mean score of the committed line, the player's one answer.
    any: mean of the best score among each tree's finished lines.
    mean: mean over problems of the mean score of the tree's finished lines.
    ci95: bootstrap 95 % interval of top1, over problems and seeds.
    tokens_per_problem: generated and prefilled.
    results: of every play: all problems in order, then with the next seed.
  """

  problems: int
  top1: float
  any: float
  mean: float
  ci95: tuple[float, float]
  tokens_per_problem: float
  results: list[plays.PlayResult]


def evaluate(
  player: Player,
  params: Any,
  domain: Domain,
  problems: Sequence[Problem],
  *,
  seed: int,
  num_seeds: int = 1,
  token_budget: int = UNLIMITED,
  on_progress: Callable[[int], None] = lambda done: None,
  on_play: Callable[[Played], None] = lambda played: None,
) -> Evaluation:
  """Plays every problem, once or several times.

  Args:
    player: of the network.
    params: of the network.
    domain: verifies the lines.
    problems: at least one.
    seed: of the play: problem i is played with seed + i the first time.
    num_seeds: how often each problem is played, each time with other seeds.
    token_budget: of each play.
    on_progress: see `on_turn` of `Player.play`.
    on_play: called with every finished play.

  Returns:
    The evaluation.
  """
  queue = [problem for _ in range(num_seeds) for problem in problems]
  jobs = (
    Job(problem, job_seed, token_budget)
    for job_seed, problem in enumerate(queue, start=seed)
  )
  results: list[plays.PlayResult] = []
  for played in player.play(params, jobs, on_progress):
    results.append(plays.result(domain, played))
    on_play(played)
  top1 = np.array([result.verdict.score for result in results])
  return Evaluation(
    problems=len(problems),
    top1=float(np.mean(top1)),
    any=float(np.mean([result.any_score for result in results])),
    mean=float(np.mean([result.mean_score for result in results])),
    ci95=bootstrap_ci95(top1.reshape(num_seeds, -1).T, seed),
    tokens_per_problem=float(np.mean([result.tokens for result in results])),
    results=results,
  )
