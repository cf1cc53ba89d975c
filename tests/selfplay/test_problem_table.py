"""Which problems the table keeps, and how often they come again."""

import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from qstar_jax.records import Problem
from qstar_jax.selfplay.problem_table import ProblemTable


def problem(number):
  return Problem("toy", f"{number}\n", f"#{number}", {"n": [number]}, 1)


def table_of(rates, max_problems=100, decay=0.9):
  table = ProblemTable(max_problems, decay)
  for number, rate in enumerate(rates):
    table.update(problem(number), rate)
  return table


def test_weights_by_hand():
  table = table_of([0.0, 0.5, 0.1, 1.0])
  assert table.weights() == pytest.approx({"#1": 0.25, "#2": 0.09})
  # (0.9 * 0.5 + 4 * 0.75) / (0.9 + 4) = 0.70408.
  table.update(problem(1), 0.75, plays=4)
  assert table.weights()["#1"] == pytest.approx(0.70408 * 0.29592, abs=1e-5)


def test_a_problem_whose_luck_has_ended_fades():
  table = table_of([0.5])
  weights = []
  for _ in range(40):
    table.update(problem(0), 0.0)
    weights.append(table.weights()["#0"])
  # The discounted share of one half among n failures: 0.9^n 0.5 / (sum of
  # 0.9^i for i up to n).
  rates = [
    0.5 * 0.9**n / sum(0.9**i for i in range(n + 1)) for n in range(1, 41)
  ]
  np.testing.assert_allclose(weights, [p * (1 - p) for p in rates])
  assert weights[-1] < 0.001


def test_problems_come_by_their_weights():
  rates = [0.5, 0.1, 0.9, 0.25, 0.0]
  table = table_of(rates)
  rng = np.random.default_rng(0)
  num_draws = 10_000
  drawn = [table.draw(1, rng)[0].key for _ in range(num_draws)]
  weights = np.array([0.25, 0.09, 0.09, 0.1875])
  expected = num_draws * weights / weights.sum()
  counts = np.array([drawn.count(f"#{i}") for i in range(4)])
  assert counts.sum() == num_draws
  # 3 degrees of freedom: above 16.3 once in a thousand.
  assert ((counts - expected) ** 2 / expected).sum() < 16.3


def test_a_draw_has_no_problem_twice():
  table = table_of([0.5, 0.1, 0.9, 0.25, 0.0])
  drawn = table.draw(10, np.random.default_rng(0))
  assert sorted(p.key for p in drawn) == ["#0", "#1", "#2", "#3"]
  assert len(table.draw(2, np.random.default_rng(0))) == 2
  assert table_of([0.0, 1.0]).draw(2, np.random.default_rng(0)) == []


def test_those_played_last_stay():
  table = table_of([0.5] * 4, max_problems=4)
  table.update(problem(0), 0.5)
  table.update(problem(9), 0.5)
  assert list(table.weights()) == ["#2", "#3", "#0", "#9"]
  # One that is not kept pushes nobody out.
  table.update(problem(8), 0.0)
  assert len(table) == 4


def test_unsolvable_problems_never_dominate():
  """Nine of ten new problems have no solution; the others are solved by half
  of the lines. Half of the plays are drawn from the table."""
  rng = np.random.default_rng(0)
  table = ProblemTable(50, 0.9)
  played = []
  for iteration in range(30):
    repeated = table.draw(10, rng)
    new = [problem(100 * iteration + i) for i in range(20 - len(repeated))]
    for each in [*repeated, *new]:
      is_solvable = each.payload["n"][0] % 10 == 0
      table.update(each, rng.binomial(20, 0.5) / 20 if is_solvable else 0.0)
    played += [each.payload["n"][0] % 10 == 0 for each in repeated]
  assert len(played) > 200
  assert all(played)


@hypothesis.given(
  st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1)), max_size=40),
  st.integers(1, 4),
)
def test_a_table_is_bounded_and_survives_json(updates, max_problems):
  table = ProblemTable(max_problems, 0.9)
  for number, rate in updates:
    table.update(problem(number), rate)
  assert len(table) <= max_problems
  assert all(0 < weight <= 0.25 for weight in table.weights().values())
  other = ProblemTable(max_problems, 0.9)
  other.load_state_dict(json.loads(json.dumps(table.state_dict())))
  assert other.state_dict() == table.state_dict()
  draws = [t.draw(3, np.random.default_rng(1)) for t in (table, other)]
  assert draws[0] == draws[1]
  # And both go on alike.
  for each in (table, other):
    each.update(problem(1), 0.3)
  assert other.weights() == table.weights()
