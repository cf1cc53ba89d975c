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
_LARGEST_NUMBER = 99
_TARGET = 24
_EXAMPLE = "4 9 10 13"


@dataclasses.dataclass(frozen=True)
class Game24(NumberGame):
  """Four numbers 1 to 13, e.g. `4 9 10 13`. See `number_game` for the rules.

  Related problems differ from the game in one thing: another target, or larger
  numbers. Random play may have both; the prompt always names the target.
  Difficulty is 3, the number of operations.

  Attributes:
    max_target: largest of the other targets, 24 to 999999.
    max_number: largest of the larger numbers, 13 (none are larger) to 99.
    integers_only: sampled hands can be solved, and random play goes, with
      positive integers throughout; otherwise fractions and negatives occur.
      The rules do not depend on it.
  """

  name: ClassVar[str] = "game24"
  version: ClassVar[int] = 1

  max_target: int = 100
  max_number: int = _MAX_NUMBER
  integers_only: bool = False

  def __post_init__(self):
    if not _TARGET <= self.max_target <= MAX_TARGET:
      raise UserError(
        f"domain.options.max_target is {self.max_target}: need {_TARGET} to "
        f"{MAX_TARGET}"
      )
    if not _MAX_NUMBER <= self.max_number <= _LARGEST_NUMBER:
      raise UserError(
        f"domain.options.max_number is {self.max_number}: need {_MAX_NUMBER} "
        f"to {_LARGEST_NUMBER}"
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
    return self._sample(rng, _MAX_NUMBER)

  def sample_related(
    self, rng: np.random.Generator, difficulty: int
  ) -> Problem:
    """The game with another target or, every other time, larger numbers.

    Raises:
      UserError: difficulty is not 3.
    """
    self._check_difficulty(difficulty)
    if self._is_wide(rng):
      return self._sample(rng, self.max_number)
    return super().sample_related(rng, difficulty)

  def _sample(self, rng: np.random.Generator, max_number: int) -> Problem:
    """Independent uniform numbers that can make 24."""
    for _ in range(MAX_DRAWS):
      numbers = _draw(rng, max_number)
      if can_reach(tuple(sorted(numbers)), _TARGET, self.integers_only):
        return self._make_problem(numbers, _TARGET)
    raise self._no_target()

  def parse(self, text: str) -> Problem:
    """The problem written `4 9 10 13` or `4 9 10 13 -> 24`.

    Other targets read too, and numbers up to max_number, since random play has
    them.

    Raises:
      UserError: malformed, or not four numbers from 1 to max_number.
    """
    numbers, target = parse_problem(text, _EXAMPLE)
    if len(numbers) != _NUM_NUMBERS or max(numbers) > self.max_number:
      raise UserError(
        f"{text.strip()!a} is no game of 24: write {_NUM_NUMBERS} numbers from "
        f"1 to {self.max_number}, as in `{_EXAMPLE}`"
      )
    return self._make_problem(numbers, _TARGET if target is None else target)

  def split_key(self, problem: Problem) -> str:
    """The sorted hand: a held-out hand is excluded with any target."""
    return spaced(sorted(problem.payload["numbers"]))

  def _draw_numbers(
    self, rng: np.random.Generator, difficulty: int
  ) -> list[int]:
    return _draw(rng, _MAX_NUMBER)

  def _draw_played_numbers(
    self, rng: np.random.Generator, difficulty: int
  ) -> list[int]:
    return _draw(rng, self.max_number if self._is_wide(rng) else _MAX_NUMBER)

  def _is_wide(self, rng: np.random.Generator) -> bool:
    """Whether a hand may have larger numbers; nothing drawn if none may."""
    return self.max_number > _MAX_NUMBER and rng.random() < 0.5


def _draw(rng: np.random.Generator, max_number: int) -> list[int]:
  """Independent uniform numbers."""
  return rng.integers(1, max_number, size=_NUM_NUMBERS, endpoint=True).tolist()
