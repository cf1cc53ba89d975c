"""Games of making a target from numbers: the rules of countdown and game24.

A prompt names the numbers and the target:

  4 9 10 13 -> 24

A step takes two of the numbers left, replaces them by their exact sum,
difference, product or quotient, and lists what is left (in any order):

  10 - 4 = 6 (left: 9 13 6)
  13 - 9 = 4 (left: 6 4)
  6 * 4 = 24 (left: 24)

Numbers are rationals in lowest terms: `6`, `-3`, `8/3`. Spaces are exactly as
shown. The line is finished when one number is left, and correct if that is the
target. One more line is understood, as Tree of Thoughts (Yao et al., 2023)
writes it:

  Answer: (10 - 4) * (13 - 9) = 24

It uses the problem's own numbers, each once, and equals the target. It may
follow a finished line that is correct, or finish one early; then its
operations must include those of the steps before it, in an order that starts
with them. (An answer that ignored its line would make every line solvable.)
"""

import abc
import itertools

import numpy as np

from qstar_jax.domains import expressions, mistakes
from qstar_jax.domains.number_state import (
  ANSWER,
  Move,
  State,
  advance,
  legal_moves,
  spaced,
  write_step,
)
from qstar_jax.domains.reachability import (
  can_reach,
  is_positive_integer,
  reachable_targets,
)
from qstar_jax.domains.step_domain import (
  MAX_DRAWS,
  StepDomain,
  pick,
)
from qstar_jax.errors import UserError
from qstar_jax.records import Problem

# A problem that is typed or read may have this many numbers of this size.
MAX_NUMBERS = 6
MAX_NUMBER = 9999
MAX_TARGET = 999_999


class NumberGame(StepDomain):
  """The rules and hindsight play; a subclass adds options and its hands.

  An answer is the whole line as one equation with the brackets that its value
  needs, e.g. `(10 - 4) * (13 - 9) = 24`.

  Attributes:
    max_target: largest target of generated problems.
    integers_only: in generated play every number is a positive integer. The
      rules do not depend on it: any exact step is legal.
  """

  max_target: int
  integers_only: bool

  @abc.abstractmethod
  def _draw_numbers(
    self, rng: np.random.Generator, difficulty: int
  ) -> list[int]:
    """Random numbers for a problem."""

  def _draw_played_numbers(
    self, rng: np.random.Generator, difficulty: int
  ) -> list[int]:
    """Random numbers for random play."""
    return self._draw_numbers(rng, difficulty)

  def sample_related(
    self, rng: np.random.Generator, difficulty: int
  ) -> Problem:
    """The game's random numbers; the target uniform over those they reach.

    Random play comes to some targets a hundred times as often as to others.

    Raises:
      UserError: difficulty out of range, or no target up to max_target found.
    """
    self._check_difficulty(difficulty)
    for _ in range(MAX_DRAWS):
      numbers = self._draw_numbers(rng, difficulty)
      targets = reachable_targets(
        tuple(sorted(numbers)), self.max_target, self.integers_only
      )
      if targets:
        return self._make_problem(numbers, pick(rng, targets))
    raise self._no_target()

  def random_play(
    self, rng: np.random.Generator, difficulty: int
  ) -> tuple[Problem, tuple[str, ...]]:
    """Random moves on random numbers; what they reach becomes the target.

    Args:
      rng: consumed.
      difficulty: steps of the line.

    Raises:
      UserError: difficulty out of range, or no play reaches an integer from 1
        to max_target.
    """
    self._check_difficulty(difficulty)
    for _ in range(MAX_DRAWS):
      numbers = self._draw_played_numbers(rng, difficulty)
      state = State(target=0, left=tuple(numbers), trees=tuple(numbers))
      played = []
      while not state.is_terminal:
        move = pick(rng, self._playable(state))
        state = state.after(move)
        played.append((move, state.left))
      (reached,) = state.left
      if is_positive_integer(reached) and reached <= self.max_target:
        # Most play is thrown away, and writing takes longer than playing.
        steps = tuple(itertools.starmap(write_step, played))
        return self._make_problem(numbers, int(reached)), steps
    raise self._no_target()

  def state_key(self, problem: Problem, steps: tuple[str, ...]) -> str:
    """The numbers left after legal `steps`, in order of size."""
    return spaced(sorted(self._replay(problem, steps).left))

  def _playable(self, state: State) -> list[Move]:
    """The moves that generated play may make."""
    moves = legal_moves(state)
    if not self.integers_only:
      return moves
    kept = [
      (a, op, b)
      for a, op, b in moves
      if is_positive_integer(expressions.apply(op, a, b))
    ]
    # A line that is not ours may have left the positive integers.
    return kept or moves

  def _no_target(self) -> UserError:
    """The error of a generator that finds nothing."""
    return UserError(
      f"domain.options.max_target is {self.max_target}: none of {MAX_DRAWS} "
      "random draws reaches a target that small; raise it"
    )

  def _make_problem(self, numbers: list[int], target: int) -> Problem:
    """The problem record, numbers in order of size whatever order is given."""
    numbers = sorted(numbers)
    text = f"{spaced(numbers)} -> {target}"
    return Problem(
      domain=self.name,
      prompt=f"{text}\n",
      key=text,
      payload={"numbers": numbers, "target": target},
      difficulty=len(numbers) - 1,
    )

  def _begin(self, problem: Problem) -> State:
    numbers = tuple(problem.payload["numbers"])
    return State(problem.payload["target"], left=numbers, trees=numbers)

  def _advance(self, state: State, step: str) -> State:
    return advance(state, step)

  def _is_terminal(self, state: State) -> bool:
    return state.is_terminal

  def _failure(self, state: State) -> str:
    if len(state.left) > 1:
      return f"line ends with numbers left: {spaced(state.left)}"
    if state.left[0] != state.target:
      return f"line ends at {state.left[0]}, not {state.target}"
    return ""

  def _can_finish(self, state: State) -> bool:
    return can_reach(tuple(sorted(state.left)), state.target)

  def _answer(self, state: State) -> str:
    text = expressions.write(state.trees[0], keep_grouping=False)
    return f"{text} = {state.left[0]}"

  def _written_answer(self, step: str) -> str:
    return step.removeprefix(ANSWER)

  def _writings(self, state: State) -> list[str]:
    return [
      write_step(move, state.after(move).left) for move in legal_moves(state)
    ]

  def _mistake(self, rng: np.random.Generator, state: State) -> str:
    kinds = [
      mistakes.wrong_result,
      mistakes.wrong_list,
      mistakes.wrong_operand,
    ]
    if len(state.left) == 2:
      kinds.append(mistakes.forced_target)
    return pick(rng, kinds)(rng, state, pick(rng, self._playable(state)))


def parse_problem(text: str, example: str) -> tuple[list[int], int | None]:
  """The numbers and the target of `4 9 10 13 -> 24`; None without `->`.

  Args:
    text: to read.
    example: a problem as the domain writes it, for errors.

  Raises:
    UserError: malformed, too many numbers, or a number out of range.
  """
  numbers_text, arrow, target_text = text.strip().partition("->")
  words = numbers_text.split()
  if not 2 <= len(words) <= MAX_NUMBERS:
    raise UserError(
      f"{expressions.quote(text)} has {len(words)} numbers; write 2 to "
      f"{MAX_NUMBERS} of them, as in `{example}`"
    )
  try:
    numbers = [_read_positive(word, MAX_NUMBER) for word in words]
    target = _read_positive(target_text.strip(), MAX_TARGET) if arrow else None
  except expressions.ParseError as error:
    raise UserError(f"{error}; write a problem as `{example}`") from None
  return numbers, target


def _read_positive(word: str, largest: int) -> int:
  """The integer 1 to `largest` written as `word`.

  Raises:
    ParseError: it is none.
    UserError: it is out of range.
  """
  value = expressions.read_integer(word)
  if not 1 <= value <= largest:
    raise UserError(
      f"{expressions.quote(word)} is out of range: numbers are 1 to "
      f"{MAX_NUMBER}, targets 1 to {MAX_TARGET}"
    )
  return value
