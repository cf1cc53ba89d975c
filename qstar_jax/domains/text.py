"""Text without rules: problems and steps of datasets."""

import dataclasses
from typing import NoReturn

import numpy as np

from qstar_jax.errors import UserError
from qstar_jax.records import Outcome, Problem, StepCheck, Verdict


@dataclasses.dataclass(frozen=True)
class Text:
  """A domain whose problems come from data: any line is a problem.

  Every step is legal, only the end token finishes a line, and no answer is
  verified: its verdict is TIMEOUT, which labels and teaches nothing. A run on
  it learns from labelled lines and plays nothing.
  """

  name = "text"
  version = 1
  # Nothing can be sampled.
  difficulties = range(0)

  def parse(self, text: str) -> Problem:
    """The problem of a text, whose line breaks become spaces.

    Raises:
      ValueError: there is no text.
    """
    line = " ".join(text.split())
    if not line:
      raise ValueError("the problem has no text; write one")
    return Problem(self.name, line + "\n", line, {}, 1)

  def split_key(self, problem: Problem) -> str:
    return problem.key

  def check_step(
    self, problem: Problem, steps: tuple[str, ...], step: str
  ) -> StepCheck:
    """Legal, whatever it is."""
    del problem, steps, step
    return StepCheck(is_legal=True, is_terminal=False)

  def verify(self, problem: Problem, steps: tuple[str, ...]) -> Verdict:
    """No verdict."""
    del problem, steps
    return Verdict(Outcome.TIMEOUT, 0.0, "nothing verifies the answers of text")

  def answer(self, problem: Problem, steps: tuple[str, ...]) -> str:
    """The last step."""
    del problem
    return steps[-1] if steps else ""

  def sample(self, rng: np.random.Generator, difficulty: int) -> Problem:
    """UserError: there is nothing to sample from."""
    del rng, difficulty
    _refuse()

  def random_play(
    self, rng: np.random.Generator, difficulty: int
  ) -> tuple[Problem, tuple[str, ...]]:
    """UserError: there are no rules to play by."""
    del rng, difficulty
    _refuse()


def _refuse() -> NoReturn:
  raise UserError(
    "domain text samples no problems, they come from data: name problems "
    "(--problems FILE), or set what asks for samples to 0: "
    "self_play.problems_per_iteration, warm_start.steps and "
    "domain.held_out_problems"
  )
