"""Countdown: make the target from n numbers, each used once."""

import dataclasses
from typing import ClassVar

import numpy as np

from qstar_jax.domains.number_game import (
  MAX_NUMBER,
  MAX_NUMBERS,
  MAX_TARGET,
  NumberGame,
  parse_problem,
)
from qstar_jax.errors import UserError
from qstar_jax.records import Problem

_EXAMPLE = "3 5 9 -> 42"


@dataclasses.dataclass(frozen=True)
class Countdown(NumberGame):
  """Numbers and a target, e.g. `3 5 9 -> 42`. See `number_game` for the rules.

  Difficulty d is the number of operations: d + 1 numbers, d from 1 to 5.

  Attributes:
    min_number: smallest number of generated problems, >= 1.
    max_number: largest, min_number to 9999.
    max_target: largest target of generated problems, 1 to 999999.
    integers_only: generated problems can be solved, and are played, with
      positive integers throughout. The rules do not depend on it.
  """

  name: ClassVar[str] = "countdown"
  version: ClassVar[int] = 1

  min_number: int = 1
  max_number: int = 10
  max_target: int = 100
  integers_only: bool = True

  def __post_init__(self):
    if not 1 <= self.min_number <= self.max_number <= MAX_NUMBER:
      raise UserError(
        f"domain.options.min_number {self.min_number} and max_number "
        f"{self.max_number}: need 1 <= min_number <= max_number <= {MAX_NUMBER}"
      )
    if not 1 <= self.max_target <= MAX_TARGET:
      raise UserError(
        f"domain.options.max_target is {self.max_target}: need 1 to "
        f"{MAX_TARGET}"
      )

  @property
  def difficulties(self) -> range:
    """1 to 5: two to six numbers."""
    return range(1, MAX_NUMBERS)

  def sample(self, rng: np.random.Generator, difficulty: int) -> Problem:
    """Independent uniform numbers; the target uniform over those they reach.

    Raises:
      UserError: difficulty out of range, or no target up to max_target found.
    """
    return self.sample_related(rng, difficulty)

  def parse(self, text: str) -> Problem:
    """The problem written `3 5 9 -> 42`; UserError if malformed."""
    numbers, target = parse_problem(text, _EXAMPLE)
    if target is None:
      raise UserError(
        f"{text.strip()!a} has no target; write a problem as `{_EXAMPLE}`"
      )
    return self._make_problem(numbers, target)

  def split_key(self, problem: Problem) -> str:
    """The problem's key: sorted numbers and target."""
    return problem.key

  def _draw_numbers(
    self, rng: np.random.Generator, difficulty: int
  ) -> list[int]:
    numbers = rng.integers(
      self.min_number, self.max_number, size=difficulty + 1, endpoint=True
    )
    return numbers.tolist()
