"""Expressions: reading against Python's own parser, writing, bounds."""

import ast
from fractions import Fraction

import hypothesis
import pytest
from hypothesis import strategies as st

from qstar_jax.domains import expressions
from qstar_jax.domains.expressions import Operation, ParseError

trees = st.recursive(
  st.integers(-20, 20),
  lambda inner: st.builds(Operation, st.sampled_from("+-*/"), inner, inner),
  max_leaves=12,
)


def value_by_python(text):
  """The exact value of an expression of our own making, by Python's parser."""

  def walk(node):
    if isinstance(node, ast.Constant):
      return Fraction(node.value)
    if isinstance(node, ast.UnaryOp):
      return -walk(node.operand)
    a, b = walk(node.left), walk(node.right)
    return {
      ast.Add: lambda: a + b,
      ast.Sub: lambda: a - b,
      ast.Mult: lambda: a * b,
      ast.Div: lambda: a / b,
    }[type(node.op)]()

  return walk(ast.parse(text, mode="eval").body)


@hypothesis.given(trees, st.booleans())
def test_written_expression_has_the_value_of_the_tree(tree, keep_grouping):
  text = expressions.write(tree, keep_grouping=keep_grouping)
  try:
    value = expressions.evaluate(tree)
  except ZeroDivisionError:
    with pytest.raises(ZeroDivisionError):
      value_by_python(text)
    return
  assert value == value_by_python(text)
  assert value == expressions.evaluate(expressions.read_expression(text))


@hypothesis.given(trees)
def test_grouping_reads_back_as_the_same_tree(tree):
  text = expressions.write(tree, keep_grouping=True)
  assert expressions.read_expression(text) == tree
  packed = text.replace(" ", "")
  assert expressions.read_expression(packed) == tree


@pytest.mark.parametrize(
  ("tree", "kept", "needed"),
  [
    (
      Operation("+", 4, Operation("-", 5, 2)),
      "4 + (5 - 2)",
      "4 + 5 - 2",
    ),
    (Operation("-", 4, Operation("+", 5, 2)), "4 - (5 + 2)", "4 - (5 + 2)"),
    (Operation("*", 4, Operation("/", 5, 2)), "4 * (5 / 2)", "4 * 5 / 2"),
    (Operation("/", 4, Operation("*", 5, 2)), "4 / (5 * 2)", "4 / (5 * 2)"),
    (Operation("*", Operation("+", 1, 2), 3), "(1 + 2) * 3", "(1 + 2) * 3"),
    (Operation("+", Operation("*", 1, 2), 3), "1 * 2 + 3", "1 * 2 + 3"),
  ],
)
def test_brackets(tree, kept, needed):
  assert expressions.write(tree, keep_grouping=True) == kept
  assert expressions.write(tree, keep_grouping=False) == needed


def test_equals_group_to_the_left_and_products_bind_tighter():
  def value(text):
    return expressions.evaluate(expressions.read_expression(text))

  assert value("8 - 3 - 2") == 3
  assert value("8 / 4 / 2") == 1
  assert value("2 + 3 * 4") == 14
  assert value("4 - -3") == 7
  assert value("4--3") == 7
  assert value("1 / 3") == Fraction(1, 3)


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("", "expected a number or ( at the end"),
    ("2**3*3*1", r"expected a number or \( at '\*3\*3\*1'"),
    ("4!*1*1*1", "character '!' is not allowed"),
    ("7//2*3", "expected a number or ( at '/2*3'"),
    ("\u0661 + 2", r"character '\u0661' is not allowed"),
    ("\u00b2", r"character '\xb2' is not allowed"),
    ("1.5", "character '.' is not allowed"),
    ("1\n", r"character '\n' is not allowed"),
    ("1\t+ 2", r"character '\t' is not allowed"),
    ("__import__", "character '_' is not allowed"),
    ("1 2", "expected an operator at '2'"),
    ("(1 + 2", "expected ) at the end"),
    ("1 + 2)", "expected an operator at ')'"),
    ("()", "expected a number or ( at ')'"),
    ("- 3", "expected a number or ( at '- 3'"),
    ("-(3)", "expected a number or ( at '-(3)'"),
    ("+3", "expected a number or ( at '+3'"),
    ("2 +", "expected a number or ( at the end"),
    ("2(3)", "expected an operator at '(3)'"),
    ("007", "007 should be written 7"),
    ("-0", "-0 should be written 0"),
    ("1" * 41, "has over 40 digits"),
    ("(" * 51 + "1" + ")" * 51, "brackets nest deeper than 50"),
    ("1" + "+1" * 100, "over 100 numbers"),
  ],
)
def test_malformed_expression_is_refused(text, reason):
  with pytest.raises(ParseError) as info:
    expressions.read_expression(text)
  assert reason.replace("\\(", "(").replace("\\*", "*") in str(info.value)


def test_bounds_are_not_off_by_one():
  assert expressions.read_expression("1" * 40) == int("1" * 40)
  assert expressions.read_expression("(" * 50 + "1" + ")" * 50) == 1
  assert expressions.read_expression("+".join(["(1)"] * 60))
  tree = expressions.read_expression("1" + "+1" * 99)
  assert expressions.evaluate(tree) == 100


@hypothesis.given(st.fractions())
def test_numbers_read_back(value):
  assert expressions.read_number(str(value)) == value


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("6/4", "6/4 should be written 3/2"),
    ("4/2", "4/2 should be written 2"),
    ("3/1", "3/1 should be written 3"),
    ("1/0", "divides by zero"),
    ("1/-2", "1/-2 should be written -1/2"),
    ("1/2/3", "not an integer"),
    ("04", "04 should be written 4"),
    ("\u0664", "not an integer"),
    ("", "not an integer"),
    ("-", "not an integer"),
    ("1_000", "not an integer"),
    (" 1", "not an integer"),
  ],
)
def test_malformed_number_is_refused(text, reason):
  with pytest.raises(ParseError, match=reason):
    expressions.read_number(text)
