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
  """Problems whose solve rate is believed to be so."""
  table = ProblemTable(max_problems, decay)
  for number, rate in enumerate(rates):
    play(table, number, rate, prior=rate)
  return table


def play(table, number, score, *, prior=0.5, is_solvable=True):
  table.update(problem(number), score, prior=prior, is_solvable=is_solvable)


def test_weights_by_hand():
  table = ProblemTable(10, decay=0.9)
  # (0.9 * 0.5 + 1) / 1.9 = 0.76316, then (0.9 * 1.45 + 0) / 2.71 = 0.48155.
  play(table, 0, 1.0)
  assert table.weights() == pytest.approx({"#0": 0.76316 * 0.23684}, abs=1e-5)
  play(table, 0, 0.0, prior=0.9)
  assert table.weights() == pytest.approx({"#0": 0.48155 * 0.51845}, abs=1e-5)
  # The network's word tells problems apart that were played once:
  # (0.9 * 0.95 + 1) / 1.9 = 0.97632.
  play(table, 1, 1.0, prior=0.95)
  assert table.weights()["#1"] == pytest.approx(0.97632 * 0.02368, abs=1e-5)


def test_a_problem_enters_when_a_line_has_solved_it():
  table = ProblemTable(10, decay=0.9)
  play(table, 0, 0.0, is_solvable=False)
  assert len(table) == 0
  play(table, 0, 0.0, is_solvable=True)
  play(table, 0, 0.0, is_solvable=False)
  # (0.9^2 * 0.5) / (0.81 + 0.9 + 1) = 0.14945.
  assert table.weights() == pytest.approx({"#0": 0.14945 * 0.85055}, abs=1e-5)


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_what_always_ends_alike_fades(score):
  table = table_of([0.5])
  weights = []
  for _ in range(40):
    play(table, 0, score, is_solvable=score > 0)
    weights.append(table.weights()["#0"])
  # Two plays at one half, discounted, among n that end alike.
  rates = [
    0.5 * (0.9**n + 0.9 ** (n + 1)) / sum(0.9**i for i in range(n + 2))
    for n in range(1, 41)
  ]
  np.testing.assert_allclose(weights, [p * (1 - p) for p in rates])
  assert weights[-1] < 0.002


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
  play(table, 0, 0.5)
  play(table, 9, 0.5)
  assert list(table.weights()) == ["#2", "#3", "#0", "#9"]
  # One that is not kept pushes nobody out.
  play(table, 8, 0.0, is_solvable=False)
  assert len(table) == 4


def test_unsolvable_problems_never_dominate():
  """Nine of ten new problems have no solution; of the others half of the plays
  are solved. Half of the plays are drawn from the table."""
  rng = np.random.default_rng(0)
  table = ProblemTable(50, 0.9)
  played = []
  for iteration in range(30):
    repeated = table.draw(10, rng)
    new = [problem(100 * iteration + i) for i in range(20 - len(repeated))]
    for each in [*repeated, *new]:
      is_solvable = each.payload["n"][0] % 10 == 0
      score = float(is_solvable and rng.random() < 0.5)
      table.update(each, score, prior=0.5, is_solvable=is_solvable)
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
    play(table, number, rate, is_solvable=number % 2 == 0)
  assert len(table) <= max_problems
  assert all(0 < weight <= 0.2500001 for weight in table.weights().values())
  other = ProblemTable(max_problems, 0.9)
  other.load_state_dict(json.loads(json.dumps(table.state_dict())))
  assert other.state_dict() == table.state_dict()
  draws = [t.draw(3, np.random.default_rng(1)) for t in (table, other)]
  assert draws[0] == draws[1]
  # And both go on alike.
  for each in (table, other):
    play(each, 1, 0.3)
  assert other.weights() == table.weights()
