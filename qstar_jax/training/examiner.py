"""Evaluation while a run trains: what its player can do by now."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import nnx

from qstar_jax.config import ExperimentConfig
from qstar_jax.evaluation.evaluate import evaluate
from qstar_jax.records import Domain, Problem
from qstar_jax.selfplay.player import Player
from qstar_jax.training.preemption import PreemptionFlag
from qstar_jax.training.reporting import Reporter


class Examiner:
  """Plays held-out problems with every searcher, and judges labelled steps.

  Attributes:
    players: that play, by searcher.
  """

  def __init__(
    self,
    config: ExperimentConfig,
    domain: Domain,
    players: Mapping[str, Player],
    problems: Sequence[Problem],
    judge_steps: Callable[[nnx.State], dict[str, Any]] | None,
    reporter: Reporter,
    flag: PreemptionFlag,
  ):
    """Compiles nothing yet.

    Args:
      config: of the run.
      domain: scores the lines.
      players: by searcher.
      problems: held out; those after `evaluation.num_problems` are not played.
      judge_steps: params -> figures of their PRM on held-out labels; None if
        there are none.
      reporter: gets a record of every evaluation.
      flag: may stop it.
    """
    self.players = players
    self._config = config
    self._domain = domain
    self._problems = problems[: config.evaluation.num_problems]
    self._judge_steps = judge_steps
    self._reporter = reporter
    self._flag = flag

  def examine(self, params: nnx.State, **where: str | int) -> float:
    """Evaluates and reports.

    Args:
      params: of the player.
      **where: `phase`, `iteration` and `step` of the run, for the records.

    Returns:
      The seconds it took.
    """
    start = time.monotonic()
    if self._problems:
      for searcher, player in self.players.items():
        self._play(searcher, player, params, where)
    if self._judge_steps is not None:
      figures = self._judge_steps(params)
      self._reporter.log({"kind": "step_evaluation", **where, **figures})
    return time.monotonic() - start

  def _play(self, searcher, player, params, where) -> None:
    def on_progress(done):
      self._flag.check()
      self._reporter.progress(f"evaluate {searcher}", done, len(self._problems))

    result = evaluate(
      player,
      params,
      self._domain,
      self._problems,
      seed=self._config.seed,
      on_progress=on_progress,
    )
    self._reporter.log(
      {
        "kind": "evaluation",
        **where,
        "searcher": searcher,
        "problems": result.problems,
        "top1": result.top1,
        "any": result.any,
        "mean": result.mean,
        "ci95": list(result.ci95),
        "tokens_per_problem": result.tokens_per_problem,
        "terminal_value": "value",
      }
    )
