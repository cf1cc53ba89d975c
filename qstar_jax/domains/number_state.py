"""States, steps and answers of number games: their exact rules.

Game and grammar are described in `number_game`.
"""

import dataclasses
import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable
from typing import Self

from qstar_jax.domains import expressions
from qstar_jax.domains.expressions import Expression, Number, ParseError
from qstar_jax.domains.step_domain import IllegalStep

ANSWER = "Answer: "
_NUMBER = r"-?[0-9]+(?:/[0-9]+)?"
_STEP = re.compile(
  rf"({_NUMBER}) ([-+*/]) ({_NUMBER}) = ({_NUMBER})"
  rf" \(left: ({_NUMBER}(?: {_NUMBER})*)\)"
)

# (a, op, b): the values that a step combines.
Move = tuple[Number, str, Number]


@dataclasses.dataclass(frozen=True)
class State:
  """A line so far.

  Attributes:
    target: to be reached.
    left: the numbers left.
    trees: how each of them came about, from the problem's numbers.
    moves: the operations so far.
    is_answered: the line has its `Answer:` line.
  """

  target: int
  left: tuple[Number, ...]
  trees: tuple[Expression, ...]
  moves: tuple[Move, ...] = ()
  is_answered: bool = False

  @property
  def numbers(self) -> list[int]:
    """The problem's numbers."""
    return [leaf for tree in self.trees for leaf in expressions.leaves(tree)]

  @property
  def is_terminal(self) -> bool:
    """Whether the line is finished."""
    return len(self.left) == 1

  def after(self, move: Move) -> Self:
    """The state after a move; IllegalStep if it cannot be made."""
    a, op, b = move
    left, trees, operands = list(self.left), list(self.trees), []
    for value in (a, b):
      if value not in left:
        raise IllegalStep(self._missing(value))
      index = left.index(value)
      operands.append(trees.pop(index))
      del left[index]
    try:
      result = expressions.apply(op, a, b)
    except ZeroDivisionError:
      raise IllegalStep(f"{a} / {b} divides by zero") from None
    tree = expressions.Operation(op, *operands)
    return dataclasses.replace(
      self,
      left=(*left, result),
      trees=(*trees, tree),
      moves=(*self.moves, move),
    )

  def _missing(self, value: Number) -> str:
    """Why `value` cannot be used as often as a step does."""
    gone = {number for a, _, b in self.moves for number in (a, b)}
    if value in gone or value in self.left:
      return f"reuses {value}: the numbers left are {spaced(self.left)}"
    return f"{value} is not among the numbers left: {spaced(self.left)}"


def spaced(numbers: Iterable[Number]) -> str:
  """Numbers as text, separated by spaces."""
  return " ".join(map(str, numbers))


# A tree's lines share their beginnings, and a batch's candidates are alike.
@functools.lru_cache(maxsize=1 << 16)
def advance(state: State, step: str) -> State:
  """The state after a step or answer.

  Raises:
    ParseError: the text does not follow the grammar.
    IllegalStep: it breaks a rule.
  """
  if state.is_answered:
    raise IllegalStep("the line is finished: nothing follows its answer")
  if step.startswith(ANSWER):
    return _after_answer(state, step.removeprefix(ANSWER))
  match = _STEP.fullmatch(step)
  if not match:
    raise ParseError(_why_no_step(step))
  a, b, result = (expressions.read_number(match[i]) for i in (1, 3, 4))
  listed = [expressions.read_number(word) for word in match[5].split(" ")]
  if state.is_terminal:
    raise IllegalStep(f"the line is finished: {state.left[0]} is left")
  after = state.after((a, match[2], b))
  if result != after.left[-1]:
    raise IllegalStep(f"{a} {match[2]} {b} is {after.left[-1]}, not {result}")
  _compare("the list left", listed, after.left)
  return after


def legal_moves(state: State) -> list[Move]:
  """The moves, each once; `+` and `*` take the smaller operand first."""
  moves: dict[Move, None] = {}
  for a, b in itertools.combinations(sorted(state.left), 2):
    for op in "+*":
      moves[a, op, b] = None
    for op in "-/":
      moves[a, op, b] = moves[b, op, a] = None
  return [(a, op, b) for a, op, b in moves if op != "/" or b != 0]


def write_step(move: Move, left: tuple[Number, ...]) -> str:
  """The text of a move; `left` is what it leaves, its result last.

  The numbers left are written in order of size: one state, one writing, so that
  what a network learns of one order it need not learn again for the others.
  """
  a, op, b = move
  return f"{a} {op} {b} = {left[-1]} (left: {spaced(sorted(left))})"


def _compare(
  what: str, given: list[Number], expected: Iterable[Number]
) -> None:
  """IllegalStep unless `given` are the `expected` numbers in any order."""
  missing = Counter(expected) - Counter(given)
  extra = Counter(given) - Counter(expected)
  rule = f"it should have {spaced(expected)}"
  if missing:
    raise IllegalStep(f"{what} omits {next(iter(missing))}: {rule}")
  for value in extra:
    verb = "reuses" if value in expected else "has an unknown"
    raise IllegalStep(f"{what} {verb} {value}: {rule}")


def _after_answer(state: State, equation: str) -> State:
  """The state after an answer; IllegalStep or ParseError if refused."""
  text, equals, target = equation.partition("=")
  if not equals:
    raise ParseError(f"expected = in {expressions.quote(equation)}")
  tree = expressions.read_expression(text)
  right_side = expressions.read_number(target.strip(" "))
  # Before its value is computed: this bounds the work.
  _compare("the answer", expressions.leaves(tree), state.numbers)
  moves: list[Move] = []
  try:
    value = expressions.evaluate(tree, moves)
  except ZeroDivisionError:
    raise IllegalStep("the answer divides by zero") from None
  if value != state.target:
    written = expressions.write(tree, keep_grouping=True)
    raise IllegalStep(f"{written} is {value}, not {state.target}")
  if right_side != state.target:
    raise IllegalStep(f"the right-hand side is {right_side}, not {value}")
  _check_goes_on(state, moves)
  return dataclasses.replace(
    state, left=(state.target,), trees=(tree,), is_answered=True
  )


def _check_goes_on(state: State, moves: list[Move]) -> None:
  """IllegalStep unless an answer of these `moves` continues the line so far."""
  if state.is_terminal:
    if state.left[0] != state.target:
      raise IllegalStep(
        f"the line ended at {state.left[0]}, not {state.target}"
      )
    return
  rest = list(map(_unordered, moves))
  for a, op, b in state.moves:
    if _unordered((a, op, b)) not in rest:
      raise IllegalStep(f"the answer does without the step {a} {op} {b}")
    rest.remove(_unordered((a, op, b)))
  if not _can_play(state, rest):
    raise IllegalStep("the answer does not go on from the steps before it")


def _unordered(move: Move) -> Move:
  """The move with operands of `+` and `*` sorted."""
  a, op, b = move
  return (b, op, a) if op in "+*" and b < a else move


def _can_play(state: State, moves: list[Move]) -> bool:
  """Whether the moves can be made in some order."""
  for index, move in enumerate(moves):
    try:
      after = state.after(move)
    except IllegalStep:
      continue
    if _can_play(after, moves[:index] + moves[index + 1 :]):
      return True
  return not moves


def _why_no_step(step: str) -> str:
  """Why the text is not a step of the grammar."""
  for character in step:
    if character not in "0123456789+-*/=(): left":
      return f"character {expressions.quote(character)} is not part of a step"
  return (
    f"{expressions.quote(step)} is not a step: write `a + b = c (left: d c)`"
  )
