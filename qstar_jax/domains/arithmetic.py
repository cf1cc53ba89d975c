"""Arithmetic: evaluate an integer expression one operation at a time.

A prompt is an expression, a step evaluates one operation whose operands are
both numbers and writes what is left:

  3 + 4 * (2 - 7) -> ?

  2 - 7 = -5 (left: 3 + 4 * -5)
  4 * -5 = -20 (left: 3 + -20)
  3 + -20 = -17 (left: -17)

Usual precedence, equals group to the left: in `8 - 3 + 2` there is no `3 + 2`.
Brackets around a single number go; all else is kept, spaces exactly as shown.
The line is finished, and correct, when one number is left.
"""

import dataclasses
import re
from typing import ClassVar

import numpy as np

from qstar_jax.domains import expressions
from qstar_jax.domains.expressions import (
  Expression,
  Operation,
  ParseError,
  quote,
)
from qstar_jax.domains.step_domain import (
  MAX_DRAWS,
  IllegalStep,
  StepDomain,
  pick,
)
from qstar_jax.errors import UserError
from qstar_jax.records import Problem

_MAX_OPERATIONS = 8
_MAX_NUMBER = 9999
_MAX_VALUE = 999_999
_OPERATORS = "+-*"
_INTEGER = r"-?[0-9]+"
_STEP = re.compile(
  rf"({_INTEGER}) ([-+*]) ({_INTEGER}) = ({_INTEGER}) \(left: (.*)\)"
)
# The number that a last step leaves; longer ones are no answer.
_LEFT_NUMBER = re.compile(r"\(left: (-?[0-9]{1,12})\)$")
# Two neighbours in the text, whether or not their operation comes first.
_NEIGHBOURS = re.compile(rf"({_INTEGER}) ([-+*]) (?=({_INTEGER}))")


@dataclasses.dataclass(frozen=True)
class Arithmetic(StepDomain):
  """Expressions of + - * over small integers, e.g. `3 + 4 * (2 - 7)`.

  Difficulty d is the number of operations, 1 to 8. An answer is a number.

  Attributes:
    max_number: numbers of generated problems are 1 to this, <= 9999.
    max_value: largest absolute value of any part of a generated problem,
      max_number to 999999.
  """

  name: ClassVar[str] = "arithmetic"
  version: ClassVar[int] = 1

  max_number: int = 9
  max_value: int = 99

  def __post_init__(self):
    if not 1 <= self.max_number <= _MAX_NUMBER:
      raise UserError(
        f"domain.options.max_number is {self.max_number}: need 1 to "
        f"{_MAX_NUMBER}"
      )
    if not self.max_number <= self.max_value <= _MAX_VALUE:
      raise UserError(
        f"domain.options.max_value is {self.max_value}: need max_number "
        f"({self.max_number}) to {_MAX_VALUE}"
      )

  @property
  def difficulties(self) -> range:
    """1 to 8 operations."""
    return range(1, _MAX_OPERATIONS + 1)

  def sample(self, rng: np.random.Generator, difficulty: int) -> Problem:
    """A random expression none of whose parts exceeds max_value.

    Raises:
      UserError: difficulty out of range, or no such expression found.
    """
    self._check_difficulty(difficulty)
    for _ in range(MAX_DRAWS):
      tree = self._draw_tree(rng, difficulty)
      if _largest_value(tree) <= self.max_value:
        return self._make_problem(tree, difficulty)
    raise UserError(
      f"domain.options.max_value is {self.max_value}: none of {MAX_DRAWS} "
      f"random expressions of {difficulty} operations stays below; raise it"
    )

  def parse(self, text: str) -> Problem:
    """The problem written `3 + 4 * (2 - 7)`, with or without ` -> ?`.

    Raises:
      UserError: malformed, too long, or a number over 9999.
    """
    text = text.strip().removesuffix("-> ?")
    try:
      tree = expressions.read_expression(text)
    except ParseError as error:
      raise UserError(
        f"{quote(text)}: {error}; write a problem as `3 + 4 * (2 - 7)`"
      ) from None
    operators = _operators(tree)
    if not 1 <= len(operators) <= _MAX_OPERATIONS or "/" in operators:
      raise UserError(
        f"{quote(text)}: an expression has 1 to {_MAX_OPERATIONS} operations, "
        "+ - * only"
      )
    if max(map(abs, expressions.leaves(tree))) > _MAX_NUMBER:
      raise UserError(f"{quote(text)}: numbers are at most {_MAX_NUMBER}")
    return self._make_problem(tree, len(operators))

  def split_key(self, problem: Problem) -> str:
    """The problem's key: the expression."""
    return problem.key

  def random_play(
    self, rng: np.random.Generator, difficulty: int
  ) -> tuple[Problem, tuple[str, ...]]:
    """A sampled problem, evaluated in a random legal order.

    Raises:
      UserError: as `sample`.
    """
    problem = self.sample(rng, difficulty)
    steps, state = [], self._begin(problem)
    while not self._is_terminal(state):
      steps.append(pick(rng, self._writings(state)))
      state = self._advance(state, steps[-1])
    return problem, tuple(steps)

  def state_key(self, problem: Problem, steps: tuple[str, ...]) -> str:
    """What legal `steps` leave of the expression."""
    return _write(self._replay(problem, steps))

  def _draw_tree(
    self, rng: np.random.Generator, num_operations: int
  ) -> Expression:
    """A random tree: uniform operators, sizes and numbers."""
    if num_operations == 0:
      return int(rng.integers(1, self.max_number, endpoint=True))
    num_left = int(rng.integers(num_operations))
    return Operation(
      pick(rng, _OPERATORS),
      self._draw_tree(rng, num_left),
      self._draw_tree(rng, num_operations - 1 - num_left),
    )

  def _make_problem(self, tree: Expression, difficulty: int) -> Problem:
    text = _write(tree)
    return Problem(
      domain=self.name,
      prompt=f"{text} -> ?\n",
      key=text,
      payload={"expression": text},
      difficulty=difficulty,
    )

  def _begin(self, problem: Problem) -> Expression:
    return expressions.read_expression(problem.payload["expression"])

  def _advance(self, state: Expression, step: str) -> Expression:
    match = _STEP.fullmatch(step)
    if not match:
      raise ParseError(
        f"{quote(step)} is not a step: write `a + b = c (left: ...)`"
      )
    a, b, result = (expressions.read_integer(match[i]) for i in (1, 3, 4))
    ready = Operation(match[2], a, b)
    if self._is_terminal(state):
      raise IllegalStep(f"the line is finished: {state} is left")
    rewritten = [after for op, after in _reductions(state) if op == ready]
    if not rewritten:
      raise IllegalStep(
        f"`{_write(ready)}` is not ready to evaluate in {_write(state)}"
      )
    value = expressions.evaluate(ready)
    if result != value:
      raise IllegalStep(f"{_write(ready)} is {value}, not {result}")
    for after in rewritten:
      if _write(after) == match[5]:
        return after
    expressions.read_expression(match[5])  # ParseError if it is none
    raise IllegalStep(f"what is left is written {_write(rewritten[0])}")

  def _is_terminal(self, state: Expression) -> bool:
    return isinstance(state, int)

  def _failure(self, state: Expression) -> str:
    if not self._is_terminal(state):
      return f"line ends with operations left: {_write(state)}"
    return ""

  def _can_finish(self, state: Expression) -> bool:
    del state
    return True  # a legal step never changes the value

  def _answer(self, state: Expression) -> str:
    return str(state)

  def _written_answer(self, step: str) -> str:
    match = _LEFT_NUMBER.search(step)
    return str(int(match[1])) if match else ""

  def _writings(self, state: Expression) -> list[str]:
    texts = (_write_step(op, after) for op, after in _reductions(state))
    return list(dict.fromkeys(texts))

  def _mistake(self, rng: np.random.Generator, state: Expression) -> str:
    kind = pick(rng, [_wrong_result, _wrong_rest, _wrong_order])
    return kind(rng, state)


def _write(tree: Expression) -> str:
  """The one writing of an expression, brackets only where they group."""
  return expressions.write(tree, keep_grouping=True)


def _write_step(ready: Operation, after: Expression, slip: int = 0) -> str:
  """The text of a step; `slip` is added to its result."""
  value = expressions.evaluate(ready) + slip
  return f"{_write(ready)} = {value} (left: {_write(after)})"


def _operators(tree: Expression) -> list[str]:
  """The operators of `tree`, from left to right."""
  if isinstance(tree, int):
    return []
  return [*_operators(tree.left), tree.op, *_operators(tree.right)]


def _largest_value(tree: Expression) -> int:
  """The largest absolute value of any part of `tree`."""
  if isinstance(tree, int):
    return abs(tree)
  return max(
    abs(expressions.evaluate(tree)),
    _largest_value(tree.left),
    _largest_value(tree.right),
  )


def _reductions(
  tree: Expression, slip: int = 0
) -> list[tuple[Operation, Expression]]:
  """Every operation that is ready, with the tree that evaluating it leaves.

  Args:
    tree: an expression.
    slip: added to the value of the operation.
  """
  if isinstance(tree, int):
    return []
  if isinstance(tree.left, int) and isinstance(tree.right, int):
    return [(tree, expressions.evaluate(tree) + slip)]
  left = [
    (ready, Operation(tree.op, after, tree.right))
    for ready, after in _reductions(tree.left, slip)
  ]
  right = [
    (ready, Operation(tree.op, tree.left, after))
    for ready, after in _reductions(tree.right, slip)
  ]
  return left + right


def _wrong_result(rng: np.random.Generator, state: Expression) -> str:
  """A slip of calculation, carried on."""
  slip = pick(rng, [-10, -2, -1, 1, 2, 10])
  return _write_step(*pick(rng, _reductions(state, slip)), slip)


def _wrong_rest(rng: np.random.Generator, state: Expression) -> str:
  """The right result, but another number of what is left changes."""
  ready, after = pick(rng, _reductions(state))
  text = _write(after)
  number = pick(rng, list(re.finditer(_INTEGER, text)))
  changed = int(number[0]) + pick(rng, [-1, 1])
  head, _, _ = _write_step(ready, after).partition("(")
  return (
    f"{head}(left: {text[: number.start()]}{changed}{text[number.end() :]})"
  )


def _wrong_order(rng: np.random.Generator, state: Expression) -> str:
  """Two neighbours evaluated although another operation comes first."""
  text = _write(state)
  ready = [op for op, _ in _reductions(state)]
  matches = [
    (match, pair)
    for match in _NEIGHBOURS.finditer(text)
    if (pair := Operation(match[2], int(match[1]), int(match[3]))) not in ready
  ]
  if not matches:
    return _wrong_result(rng, state)
  match, pair = pick(rng, matches)
  value = expressions.evaluate(pair)
  rest = f"{text[: match.start()]}{value}{text[match.end(3) :]}"
  return f"{_write(pair)} = {value} (left: {rest})"
