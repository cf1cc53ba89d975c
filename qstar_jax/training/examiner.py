"""Evaluation while a run trains: what its player can do by now."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import nnx

from qstar_jax.config import ExperimentConfig
from qstar_jax.evaluation.evaluate import Evaluation, evaluate
from qstar_jax.records import Domain, Problem
from qstar_jax.search.tree import UNLIMITED
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
    climber: Player | None,
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
      climber: has room for the largest of `evaluation.ladder_budgets`; None if
        there are none.
      problems: held out.
      judge_steps: params -> figures of their PRM on held-out labels; None if
        there are none.
      reporter: gets a record of every evaluation.
      flag: may stop it.
    """
    self.players = players
    self._config = config
    self._domain = domain
    self._climber = climber
    self._problems = problems
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
    settings = self._config.evaluation
    if problems := self._problems[: settings.num_problems]:
      for searcher, player in self.players.items():
        result = self._play(player, params, problems, searcher)
        record = {"kind": "evaluation", **where, "searcher": searcher}
        self._reporter.log(record | _figures(result))
    problems = self._problems[: settings.ladder_problems]
    for budget in settings.ladder_budgets:
      name = f"{budget} tokens"
      result = self._play(self._climber, params, problems, name, budget)
      record = {"kind": "ladder", **where, "budget": budget}
      self._reporter.log(record | _figures(result))
    if self._judge_steps is not None:
      figures = self._judge_steps(params)
      self._reporter.log({"kind": "step_evaluation", **where, **figures})
    return time.monotonic() - start

  def _play(
    self,
    player: Player,
    params: nnx.State,
    problems: Sequence[Problem],
    name: str,
    token_budget: int = UNLIMITED,
  ) -> Evaluation:
    def on_progress(done):
      self._flag.check()
      self._reporter.progress(f"evaluate {name}", done, len(problems))

    return evaluate(
      player,
      params,
      self._domain,
      problems,
      seed=self._config.seed,
      token_budget=token_budget,
      on_progress=on_progress,
    )


def _figures(result: Evaluation) -> dict[str, Any]:
  """What to log of an evaluation."""
  return {
    "problems": result.problems,
    "top1": result.top1,
    "any": result.any,
    "mean": result.mean,
    "ci95": list(result.ci95),
    "tokens_per_problem": result.tokens_per_problem,
    "terminal_value": "value",
  }
