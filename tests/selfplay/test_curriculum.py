"""Which difficulties come more often."""

import json

import numpy as np
import pytest

from qstar_jax.config import CurriculumConfig
from qstar_jax.records import Problem
from qstar_jax.selfplay.curriculum import Curriculum


def curriculum(uniform_share=0.25, decay=0.9, difficulties=(2, 4)):
  config = CurriculumConfig(uniform_share=uniform_share, decay=decay)
  return Curriculum(config, *difficulties)


def test_starts_uniform():
  fresh = curriculum()
  assert fresh.solve_rates() == {2: 0.5, 3: 0.5, 4: 0.5}
  np.testing.assert_allclose(fresh.probabilities(), 1 / 3)


def test_prefers_what_is_solved_half_of_the_time():
  taught = curriculum()
  taught.update([(2, 1.0)] * 9 + [(2, 0.0)] + [(3, 1.0), (3, 0.0)])
  # p (1 - p) is 0.09, 0.25, and 0.25 where nothing is known.
  expected = 0.25 / 3 + 0.75 * np.array([0.09, 0.25, 0.25]) / 0.59
  np.testing.assert_allclose(taught.probabilities(), expected)


def test_the_past_fades():
  taught = curriculum(decay=0.5)
  taught.update([(2, 1.0)] * 4)
  taught.update([(2, 0.0)])
  # Four plays count half: 2 solved of 3.
  assert taught.solve_rates()[2] == pytest.approx(2 / 3)


def test_graded_scores_count_in_part():
  taught = curriculum()
  taught.update([(3, 0.25), (3, 0.75)])
  assert taught.solve_rates()[3] == pytest.approx(0.5)


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_nothing_is_forgotten_when_all_is_solved_or_none(score):
  taught = curriculum(uniform_share=0.0)
  taught.update([(difficulty, score) for difficulty in (2, 3, 4)])
  np.testing.assert_allclose(taught.probabilities(), 1 / 3)


def test_draws_by_the_probabilities():
  taught = curriculum(uniform_share=0.0)
  taught.update([(2, 1.0), (4, 1.0)])
  rng = np.random.default_rng(0)
  assert {taught.draw(rng) for _ in range(20)} == {3}
  rng = np.random.default_rng(0)
  drawn = np.array([curriculum().draw(rng) for _ in range(3000)])
  for difficulty in (2, 3, 4):
    assert abs((drawn == difficulty).mean() - 1 / 3) < 0.03


def test_state_round_trip():
  taught, other = curriculum(), curriculum()
  taught.update([(2, 1.0), (2, 0.0), (4, 0.3)])
  problem = Problem("toy", "1 2 -> 3\n", "1 2 3", {}, 1)
  taught.table.update(problem, 0.5, prior=0.5, is_solvable=True)
  state = json.loads(json.dumps(taught.state_dict()))
  other.load_state_dict(state)
  assert other.solve_rates() == taught.solve_rates()
  # And both go on alike.
  for one in (taught, other):
    one.update([(2, 1.0), (3, 0.0)])
  np.testing.assert_array_equal(other.probabilities(), taught.probabilities())
  assert other.state_dict() == taught.state_dict()
  assert other.table.weights() == {"1 2 3": 0.25}


def test_a_state_without_a_table_has_an_empty_one():
  taught = curriculum()
  state = taught.state_dict()
  del state["table"]
  taught.load_state_dict(state)
  assert len(taught.table) == 0
