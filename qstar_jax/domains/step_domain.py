"""What domains of checked steps share: replay, verdicts, corrupted lines."""

import abc
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from qstar_jax.domains import expressions
from qstar_jax.errors import UserError
from qstar_jax.records import Outcome, Problem, StepCheck, Verdict

T = TypeVar("T")

# Characters of all steps of a line together; a longer line is refused unread.
MAX_LINE_CHARS = 1000

# Draws of a random problem or play before the options count as impossible.
MAX_DRAWS = 10_000


class IllegalStep(Exception):
  """A step that reads but breaks a rule; the message is one line."""


class StepDomain(abc.ABC):
  """A `Domain` whose lines are replayed step by step over an exact state.

  A subclass says what a state is, how a step changes it and what its writing
  is; this class makes of that the judging half of the `Domain` protocol. State
  is whatever the subclass likes, and is never mutated.
  """

  name: str
  version: int

  @property
  @abc.abstractmethod
  def difficulties(self) -> range:
    """The difficulties that this domain can generate."""

  @abc.abstractmethod
  def split_key(self, problem: Problem) -> str:
    """What splits are made by: held-out problems are excluded under this key.

    It is `problem.key`, or coarser where two different problems should never
    lie on two sides of a split.
    """

  @abc.abstractmethod
  def _begin(self, problem: Problem) -> Any:
    """The state before the first step."""

  @abc.abstractmethod
  def _advance(self, state: Any, step: str) -> Any:
    """The state after `step`; IllegalStep or ParseError if it is refused."""

  @abc.abstractmethod
  def _is_terminal(self, state: Any) -> bool:
    """Whether the line is finished."""

  @abc.abstractmethod
  def _failure(self, state: Any) -> str:
    """Why a line that ends here is not correct, one line; empty if it is."""

  @abc.abstractmethod
  def _can_finish(self, state: Any) -> bool:
    """Whether some legal steps finish the line correctly, or it is correct."""

  @abc.abstractmethod
  def _answer(self, state: Any) -> str:
    """The answer of a finished line, as a person would write it."""

  def _written_answer(self, step: str) -> str:
    """What the last step of a line that breaks the rules says."""
    return step

  @abc.abstractmethod
  def _writings(self, state: Any) -> list[str]:
    """The canonical writing of every legal step, each once, in fixed order."""

  @abc.abstractmethod
  def _mistake(self, rng: np.random.Generator, state: Any) -> str:
    """A step as a model might get it wrong; it may turn out to be legal."""

  def check_step(
    self, problem: Problem, steps: tuple[str, ...], step: str
  ) -> StepCheck:
    """Judges `step` after `steps`; illegal if one of those is illegal."""
    try:
      state = self._replay(problem, (*steps, step))
    except (IllegalStep, expressions.ParseError) as error:
      return StepCheck(is_legal=False, is_terminal=False, reason=str(error))
    return StepCheck(is_legal=True, is_terminal=self._is_terminal(state))

  def verify(self, problem: Problem, steps: tuple[str, ...]) -> Verdict:
    """Judges a whole line: unparseable, wrong or correct; never raises."""
    try:
      reason = self._failure(self._replay(problem, steps))
    except expressions.ParseError as error:
      return Verdict(Outcome.UNPARSEABLE, 0.0, str(error))
    except IllegalStep as error:
      return Verdict(Outcome.WRONG, 0.0, str(error))
    if reason:
      return Verdict(Outcome.WRONG, 0.0, reason)
    return Verdict(Outcome.CORRECT, 1.0)

  def answer(self, problem: Problem, steps: tuple[str, ...]) -> str:
    """The answer a line commits to, right or wrong.

    A line that breaks the rules has one too, as it is written: who counts
    answers must not learn from them which lines are legal. Empty for a legal
    line that is not finished.
    """
    try:
      state = self._replay(problem, steps)
    except (IllegalStep, expressions.ParseError):
      return self._written_answer(steps[-1])
    return self._answer(state) if self._is_terminal(state) else ""

  def solvable(self, problem: Problem, steps: tuple[str, ...] = ()) -> bool:
    """Whether `steps` are legal and a correct line starts with them. Exact."""
    try:
      return self._can_finish(self._replay(problem, steps))
    except (IllegalStep, expressions.ParseError):
      return False

  def solve(
    self, problem: Problem, steps: tuple[str, ...] = ()
  ) -> tuple[str, ...] | None:
    """Steps that finish the line correctly; None if it is not solvable."""
    if not self.solvable(problem, steps):
      return None
    line = steps
    while legal := self.legal_steps(problem, line):
      lines = ((*line, step) for step in legal)
      line = next(longer for longer in lines if self.solvable(problem, longer))
    return line[len(steps) :]

  def legal_steps(
    self, problem: Problem, steps: tuple[str, ...] = ()
  ) -> list[str]:
    """Every legal step after `steps` (all legal), in canonical writing.

    Empty once the line is finished.
    """
    return self._writings(self._replay(problem, steps))

  def corrupt(
    self, rng: np.random.Generator, problem: Problem, steps: tuple[str, ...]
  ) -> tuple[tuple[str, ...], int]:
    """A line that goes wrong, for the warm start of value and PRM.

    Args:
      rng: consumed.
      problem: the problem.
      steps: a legal line of at least one step.

    Returns:
      `(line, index)`: the first `index` of `steps`, then one illegal step of a
      kind that models write. Nothing follows it: what comes after an illegal
      step is wrong whatever it is.
    """
    states = [self._begin(problem)]
    for step in steps:
      states.append(self._advance(states[-1], step))
    # An answer line may follow a finished line, where no step can.
    index = pick(
      rng, [i for i, s in enumerate(states[:-1]) if not self._is_terminal(s)]
    )
    for _ in range(MAX_DRAWS):
      step = self._mistake(rng, states[index])
      if not self.check_step(problem, steps[:index], step).is_legal:
        return (*steps[:index], step), index
    raise RuntimeError(f"{self.name}: no illegal step found for {steps}")

  def _replay(self, problem: Problem, steps: tuple[str, ...]) -> Any:
    """The state after `steps`; IllegalStep or ParseError names the bad one."""
    num_chars = sum(len(step) for step in steps)
    if num_chars > MAX_LINE_CHARS:
      raise expressions.ParseError(
        f"line has {num_chars} characters, over {MAX_LINE_CHARS}"
      )
    state = self._begin(problem)
    for number, step in enumerate(steps, 1):
      try:
        state = self._advance(state, step)
      except (IllegalStep, expressions.ParseError) as error:
        raise type(error)(f"step {number}: {error}") from None
    return state

  def _check_difficulty(self, difficulty: int) -> None:
    """UserError unless this domain can generate `difficulty`."""
    known = self.difficulties
    if difficulty not in known:
      raise UserError(
        f"difficulty {difficulty}: {self.name} has {known[0]} to {known[-1]} "
        "(operations); set domain.min_difficulty and domain.max_difficulty "
        "within that"
      )


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
  """A uniformly random element of a sequence."""
  return items[int(rng.integers(len(items)))]
