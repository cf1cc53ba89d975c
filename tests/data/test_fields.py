"""Texts in one line, keys of problems, and numbers that are labels."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qstar_jax.data import fields
from qstar_jax.data.reading import Reason, Refusal


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("a", "a"),
    (" a  b\t", "a  b"),
    ("a\nb", "a b"),
    ("a \r\n\n  b\n", "a b"),
    ("\n\na\x0bb\u2028c", "a b c"),
  ],
)
def test_one_line(text, expected):
  assert fields.one_line(text, "text") == expected


@given(st.text())
def test_one_line_holds_no_break_and_all_the_text(text):
  try:
    line = fields.one_line(text, "text")
  except Refusal as refusal:
    assert refusal.reason == Reason.EMPTY_TEXT
    assert not text.strip()
  else:
    assert len(line.splitlines()) == 1
    assert line.split() == text.split()


def test_half_a_character_is_no_text():
  with pytest.raises(Refusal, match="half a character") as refusal:
    fields.one_line("a \ud800", "text")
  assert refusal.value.reason == Reason.NOT_TEXT


@pytest.mark.parametrize(
  ("one", "other"),
  [
    ("Find $x^2 - 1$.", "Find  $ x^2-1 $ ."),
    ("costs $\\$1.24$.\nNo tax.", "costs $1.24. No tax."),
    (r"$x = \!\sqrt{11-2x}\,$", r"$x = \sqrt{11-2x}$"),
    (r"$\dfrac12 + \tfrac34$", r"$\frac12 + \frac34$"),
    (r"$\left(1, 2\right)$", "(1,2)"),
    ("What is 5!?", "what is 5!?"),
  ],
)
def test_copies_of_a_problem_have_one_key(one, other):
  assert fields.problem_key(one) == fields.problem_key(other)


@pytest.mark.parametrize(
  ("one", "other"),
  [
    ("What is 5!?", "What is 5?"),
    ("x + 1", "x - 1"),
    ("x^{12}", "x^12"),
    (r"$a \leftarrow b$", r"$a \rightarrow b$"),
    (r"$\frac12$", r"$\sqrt12$"),
  ],
)
def test_other_problems_have_other_keys(one, other):
  assert fields.problem_key(one) != fields.problem_key(other)


@given(st.floats() | st.integers())
def test_probabilities(value):
  try:
    assert fields.take_probability({"p": value}, "p") == value
    assert 0 <= value <= 1
  except Refusal as refusal:
    assert refusal.reason == Reason.BAD_LABEL
    assert not 0 <= value <= 1


def test_a_bool_is_no_number():
  for value in (True, "1", None, [1]):
    with pytest.raises(Refusal) as refusal:
      fields.take_probability({"p": value}, "p")
    assert refusal.value.reason == Reason.WRONG_TYPE
