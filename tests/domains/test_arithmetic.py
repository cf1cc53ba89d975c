"""Arithmetic: which operations are ready, and how a step is written."""

import numpy as np
import pytest

from qstar_jax.domains.arithmetic import Arithmetic
from qstar_jax.errors import UserError
from qstar_jax.records import Outcome

DOMAIN = Arithmetic()


def test_the_line_of_the_documentation():
  problem = DOMAIN.parse("3 + 4 * (2 - 7)")
  assert problem.prompt == "3 + 4 * (2 - 7) -> ?\n"
  assert problem.difficulty == 3
  line = (
    "2 - 7 = -5 (left: 3 + 4 * -5)",
    "4 * -5 = -20 (left: 3 + -20)",
    "3 + -20 = -17 (left: -17)",
  )
  assert DOMAIN.verify(problem, line).outcome == Outcome.CORRECT
  assert DOMAIN.answer(problem, line) == "-17"
  assert DOMAIN.solve(problem) == line


@pytest.mark.parametrize(
  ("last", "answer"),
  [
    ("3 + -5 = 9 (left: 9)", "9"),
    ("3 + -6 = -3 (left: -3)", "-3"),
    ("3 + -5 = 9 (left: 3 + 9)", ""),
    ("3 + -5 = 9", ""),
  ],
)
def test_the_answer_of_a_wrong_line_is_what_it_says(last, answer):
  problem = DOMAIN.parse("3 + 2 - 7")
  assert not DOMAIN.check_step(problem, (), last).is_legal
  assert DOMAIN.answer(problem, (last,)) == answer


@pytest.mark.parametrize(
  ("problem", "expected"),
  [
    ("8 - 3 + 2", ["8 - 3 = 5 (left: 5 + 2)"]),
    ("8 - (3 + 2)", ["3 + 2 = 5 (left: 8 - 5)"]),
    ("2 * 3 * 4", ["2 * 3 = 6 (left: 6 * 4)"]),
    (
      "1 + 2 + 3 * 4",
      ["1 + 2 = 3 (left: 3 + 3 * 4)", "3 * 4 = 12 (left: 1 + 2 + 12)"],
    ),
    # The same operation twice can be evaluated in two places.
    (
      "(1 + 2) * (1 + 2)",
      ["1 + 2 = 3 (left: 3 * (1 + 2))", "1 + 2 = 3 (left: (1 + 2) * 3)"],
    ),
    # In two places with one result: one step.
    ("2 * 2 - 2 * 2", None),
  ],
)
def test_ready_operations(problem, expected):
  steps = DOMAIN.legal_steps(DOMAIN.parse(problem))
  if expected is not None:
    assert steps == expected
  assert len(set(steps)) == len(steps)


@pytest.mark.parametrize(
  ("step", "reason", "outcome"),
  [
    (
      "3 + 2 = 5 (left: 8 - 5)",
      "`3 + 2` is not ready to evaluate in 8 - 3 + 2",
      Outcome.WRONG,
    ),
    ("8 - 3 = 4 (left: 4 + 2)", "8 - 3 is 5, not 4", Outcome.WRONG),
    (
      "8 - 3 = 5 (left: 5 - 2)",
      "what is left is written 5 + 2",
      Outcome.WRONG,
    ),
    ("8 - 3 = 5 (left: (5) + 2)", "is written 5 + 2", Outcome.WRONG),
    ("8 - 3 = 5 (left: 5+2)", "is written 5 + 2", Outcome.WRONG),
    ("8 - 3 = 5 (left: 7)", "is written 5 + 2", Outcome.WRONG),
    ("8 - 3 = 5 (left: 5 + )", "expected a number", Outcome.UNPARSEABLE),
    ("8 - 3 = 5 (left: )", "expected a number", Outcome.UNPARSEABLE),
    ("8 - 3 = 5", "is not a step", Outcome.UNPARSEABLE),
    ("8-3 = 5 (left: 5 + 2)", "is not a step", Outcome.UNPARSEABLE),
    ("8 / 3 = 5 (left: 5 + 2)", "is not a step", Outcome.UNPARSEABLE),
    ("08 - 3 = 5 (left: 5 + 2)", "written 8", Outcome.UNPARSEABLE),
    ("8 - 3 = \u0665 (left: 5 + 2)", "is not a step", Outcome.UNPARSEABLE),
    ("8 - 3 = 5 (left: \u0665 + 2)", "'\\u0665' is not", Outcome.UNPARSEABLE),
    ("8 - 3 = 5 (left: 5 + 2)\n", "is not a step", Outcome.UNPARSEABLE),
    (f"8 - 3 = 5 (left: {'(' * 900}", "is not a step", Outcome.UNPARSEABLE),
    (f"8 - 3 = 5 (left: {'(' * 900})", "nest deeper", Outcome.UNPARSEABLE),
    ("9" * 10_000, "has 10000 characters, over 1000", Outcome.UNPARSEABLE),
  ],
)
def test_refused_with_a_reason(step, reason, outcome):
  problem = DOMAIN.parse("8 - 3 + 2")
  verdict = DOMAIN.verify(problem, (step,))
  assert reason in verdict.reason
  assert verdict.outcome == outcome
  assert not DOMAIN.check_step(problem, (), step).is_legal
  assert not DOMAIN.solvable(problem, (step,))


def test_parse_normalises_brackets():
  assert DOMAIN.parse("(3)+((4*5))").key == "3 + 4 * 5"
  assert DOMAIN.parse("3 + (4 - 5)").key == "3 + (4 - 5)"
  assert DOMAIN.parse("3 * -4 -> ?\n").prompt == "3 * -4 -> ?\n"


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("", "expected a number"),
    ("5", "1 to 8 operations"),
    ("1" + " + 1" * 9, "1 to 8 operations"),
    ("4 / 2", "+ - * only"),
    ("10000 + 1", "at most 9999"),
    ("1 + 1 -> 2", "character '>'"),
    ("__import__('os')", "character '_'"),
    ("(" * 1_000_000, "nest deeper"),
  ],
)
def test_malformed_problem(text, reason):
  with pytest.raises(UserError) as info:
    DOMAIN.parse(text)
  assert reason in str(info.value)
  assert len(str(info.value)) < 200


def test_generated_problems_keep_their_bounds():
  rng = np.random.default_rng(0)
  domain = Arithmetic(max_number=5, max_value=10)
  keys = set()
  for _ in range(300):
    problem, steps = domain.random_play(rng, 3)
    keys.add(problem.key)
    for step in steps:
      result = int(step.split(" = ")[1].split(" ")[0])
      assert abs(result) <= 10
  assert len(keys) > 200
  assert {c for key in keys for c in key} == set("12345+-*() ")


def test_impossible_bound_is_a_user_error():
  class Fixed(np.random.Generator):
    """Always the largest number: 9 + 9 is over 9."""

    def integers(self, low, high=None, endpoint=False):
      del endpoint
      return 0 if high is None else high

  rng = Fixed(np.random.PCG64(0))
  with pytest.raises(UserError, match="max_value is 9: none of"):
    Arithmetic(max_value=9).sample(rng, 1)
