"""Game of 24: make 24 from four numbers 1 to 13."""

import dataclasses
from typing import ClassVar

import numpy as np

from qstar_jax.domains.number_game import (
  MAX_TARGET,
  NumberGame,
  parse_problem,
  spaced,
)
from qstar_jax.domains.reachability import can_reach
from qstar_jax.domains.step_domain import MAX_DRAWS
from qstar_jax.errors import UserError
from qstar_jax.records import Problem

_NUM_NUMBERS = 4
_MAX_NUMBER = 13
_TARGET = 24
_EXAMPLE = "4 9 10 13"


@dataclasses.dataclass(frozen=True)
class Game24(NumberGame):
  """Four numbers 1 to 13, e.g. `4 9 10 13`. See `number_game` for the rules.

  The target is 24 in sampled problems, and any integer in related ones and in
  random play; the prompt always names it. Difficulty is 3, the number of
  operations.

  Attributes:
    max_target: largest of the other targets, 24 to 999999.
    integers_only: sampled hands can be solved, and random play goes, with
      positive integers throughout; otherwise fractions and negatives occur.
      The rules do not depend on it.
  """

  name: ClassVar[str] = "game24"
  version: ClassVar[int] = 1

  max_target: int = 100
  integers_only: bool = False

  def __post_init__(self):
    if not _TARGET <= self.max_target <= MAX_TARGET:
      raise UserError(
        f"domain.options.max_target is {self.max_target}: need {_TARGET} to "
        f"{MAX_TARGET}"
      )

  @property
  def difficulties(self) -> range:
    """3 only."""
    return range(_NUM_NUMBERS - 1, _NUM_NUMBERS)

  def sample(self, rng: np.random.Generator, difficulty: int) -> Problem:
    """Independent uniform numbers that can make 24.

    Raises:
      UserError: difficulty is not 3.
    """
    self._check_difficulty(difficulty)
    for _ in range(MAX_DRAWS):
      numbers = self._draw_numbers(rng, difficulty)
      if can_reach(tuple(sorted(numbers)), _TARGET, self.integers_only):
        return self._make_problem(numbers, _TARGET)
    raise self._no_target()

  def parse(self, text: str) -> Problem:
    """The problem written `4 9 10 13` or `4 9 10 13 -> 24`.

    Other targets read too, since random play has them.

    Raises:
      UserError: malformed, or not four numbers from 1 to 13.
    """
    numbers, target = parse_problem(text, _EXAMPLE)
    if len(numbers) != _NUM_NUMBERS or max(numbers) > _MAX_NUMBER:
      raise UserError(
        f"{text.strip()!a} is no game of 24: write {_NUM_NUMBERS} numbers from "
        f"1 to {_MAX_NUMBER}, as in `{_EXAMPLE}`"
      )
    return self._make_problem(numbers, _TARGET if target is None else target)

  def split_key(self, problem: Problem) -> str:
    """The sorted hand: a held-out hand is excluded with any target."""
    return spaced(sorted(problem.payload["numbers"]))

  def _draw_numbers(
    self, rng: np.random.Generator, difficulty: int
  ) -> list[int]:
    numbers = rng.integers(1, _MAX_NUMBER, size=difficulty + 1, endpoint=True)
    return numbers.tolist()
