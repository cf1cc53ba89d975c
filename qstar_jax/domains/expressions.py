"""Arithmetic expressions as text: reading, writing, exact values.

The grammar, in ASCII; spaces are free between tokens and nowhere else:

  expression = term { ("+" | "-") term }
  term       = factor { ("*" | "/") factor }
  factor     = integer | "(" expression ")"
  integer    = [ "-" ] digits

Operators are binary, `*` and `/` bind tighter and equals group to the left. A
minus sign is part of an integer where an operand is due and a digit follows at
once, so `4 - -3` reads and `-(3)` does not. Integers have no leading zeros.

Nothing here is ever evaluated as code: reading is recursive descent, values
are exact rationals.
"""

import dataclasses
from collections.abc import Callable
from fractions import Fraction

# A value: `int` where it arose as one (fast), else `Fraction`. The two compare,
# hash and print alike: `str` gives `6`, `-3` or `8/3`, in lowest terms.
Number = int | Fraction

# Bounds that keep reading and exact arithmetic far below a millisecond.
MAX_DIGITS = 40
MAX_DEPTH = 50
MAX_INTEGERS = 100

_DIGITS = frozenset("0123456789")
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}


class ParseError(ValueError):
  """Text that does not follow a grammar; the message is one line."""


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
  """A binary operation of an expression tree.

  Attributes:
    op: one of `+ - * /`.
    left: first operand.
    right: second operand.
  """

  op: str
  left: "Expression"
  right: "Expression"


Expression = int | Operation


def quote(text: str) -> str:
  """`text` for a one-line message: ASCII, quoted, cut to 40 characters."""
  return ascii(text if len(text) <= 40 else text[:37] + "...")


def apply(op: str, a: Number, b: Number) -> Number:
  """The exact value of `a op b`; ZeroDivisionError for division by zero."""
  if op == "+":
    return a + b
  if op == "-":
    return a - b
  if op == "*":
    return a * b
  quotient = Fraction(a, b)
  return quotient.numerator if quotient.denominator == 1 else quotient


def evaluate(
  tree: Expression, log: list[tuple[Number, str, Number]] | None = None
) -> Number:
  """The exact value of `tree`; ZeroDivisionError for division by zero.

  Args:
    tree: the expression.
    log: if given, `(a, op, b)` of every operation is appended, operands first.
  """
  if isinstance(tree, int):
    return tree
  a = evaluate(tree.left, log)
  b = evaluate(tree.right, log)
  if log is not None:
    log.append((a, tree.op, b))
  return apply(tree.op, a, b)


def leaves(tree: Expression) -> list[int]:
  """The integers of `tree`, from left to right."""
  if isinstance(tree, int):
    return [tree]
  return leaves(tree.left) + leaves(tree.right)


def write(tree: Expression, *, keep_grouping: bool) -> str:
  """`tree` as text, with single spaces around operators.

  Args:
    tree: the expression.
    keep_grouping: write the brackets that make the text read back as the same
      tree. Otherwise those that its value needs: `4 + 5 - 2` for 4 + (5 - 2).
  """
  if isinstance(tree, int):
    return str(tree)

  def operand(child: Expression, needs_brackets: bool) -> str:
    text = write(child, keep_grouping=keep_grouping)
    return f"({text})" if needs_brackets else text

  def precedence(child: Expression) -> int:
    return 3 if isinstance(child, int) else _PRECEDENCE[child.op]

  own = _PRECEDENCE[tree.op]
  tight_right = keep_grouping or tree.op in "-/"
  left = operand(tree.left, precedence(tree.left) < own)
  right = operand(tree.right, precedence(tree.right) < own + tight_right)
  return f"{left} {tree.op} {right}"


def read_integer(text: str) -> int:
  """The integer written as `text`: digits, perhaps after a minus sign.

  Raises:
    ParseError: other characters, a leading zero, `-0`, or over MAX_DIGITS.
  """
  digits = text[1:] if text[:1] == "-" else text
  if not digits or not _DIGITS.issuperset(digits):
    raise ParseError(f"{quote(text)} is not an integer in the digits 0 to 9")
  if len(digits) > MAX_DIGITS:
    raise ParseError(f"{quote(text)} has over {MAX_DIGITS} digits")
  value = int(text)
  if str(value) != text:
    raise ParseError(f"{text} should be written {value}")
  return value


def read_number(text: str) -> Number:
  """The rational written as `text`: an integer, or `8/3` in lowest terms.

  Raises:
    ParseError: not of this form, not in lowest terms, or over MAX_DIGITS.
  """
  if "/" not in text:
    return read_integer(text)
  numerator, _, denominator = text.partition("/")
  divisor = read_integer(denominator)
  if divisor == 0:
    raise ParseError(f"{text} divides by zero")
  value = Fraction(read_integer(numerator), divisor)
  if str(value) != text:
    raise ParseError(f"{text} should be written {value}")
  return value


def read_expression(text: str) -> Expression:
  """The tree of `text`.

  Raises:
    ParseError: the text does not follow the grammar, nests brackets deeper than
      MAX_DEPTH or has over MAX_INTEGERS integers.
  """
  for character in text:
    if character not in _DIGITS and character not in "+-*/() ":
      raise ParseError(
        f"character {quote(character)} is not allowed: use digits, + - * / ( )"
      )
  reader = _Reader(text)
  tree = reader.expression()
  if reader.peek():
    raise ParseError(f"expected an operator at {reader.rest()}")
  return tree


class _Reader:
  """Recursive descent over one text, one method per rule of the grammar."""

  def __init__(self, text: str):
    self._text = text
    self._at = 0
    self._depth = 0
    self._num_integers = 0

  def peek(self) -> str:
    """The next character that is no space; empty at the end."""
    while self._text[self._at : self._at + 1] == " ":
      self._at += 1
    return self._text[self._at : self._at + 1]

  def rest(self) -> str:
    """What is left to read, for messages."""
    rest = self._text[self._at :]
    return quote(rest) if rest else "the end"

  def expression(self) -> Expression:
    """Reads `expression`."""
    return self._chain("+-", lambda: self._chain("*/", self.factor))

  def _chain(
    self, operators: str, operand: Callable[[], Expression]
  ) -> Expression:
    """Reads operands joined by `operators`, grouped to the left."""
    tree = operand()
    while (op := self.peek()) and op in operators:
      self._at += 1
      tree = Operation(op, tree, operand())
    return tree

  def factor(self) -> Expression:
    """Reads `factor`."""
    if self.peek() != "(":
      return self.integer()
    self._depth += 1
    if self._depth > MAX_DEPTH:
      raise ParseError(f"brackets nest deeper than {MAX_DEPTH}")
    self._at += 1
    tree = self.expression()
    if self.peek() != ")":
      raise ParseError(f"expected ) at {self.rest()}")
    self._at += 1
    self._depth -= 1
    return tree

  def integer(self) -> int:
    """Reads `integer`."""
    start = self._at
    end = start + (self._text[start : start + 1] == "-")
    while self._text[end : end + 1] in _DIGITS:
      end += 1
    if end == start or self._text[start:end] == "-":
      raise ParseError(f"expected a number or ( at {self.rest()}")
    self._num_integers += 1
    if self._num_integers > MAX_INTEGERS:
      raise ParseError(f"over {MAX_INTEGERS} numbers")
    self._at = end
    return read_integer(self._text[start:end])
