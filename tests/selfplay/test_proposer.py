"""Which problems the proposer keeps, by players whose skill is a number."""

import types

import numpy as np
import pytest

from qstar_jax.config import CurriculumConfig
from qstar_jax.domains.splits import TrainingProblems
from qstar_jax.records import Problem
from qstar_jax.selfplay import plays
from qstar_jax.selfplay.curriculum import Curriculum
from qstar_jax.selfplay.proposer import Proposer

TRIES = 8
TOKENS = 7


class Domain:
  """Problem i has hardness i % 100; nine of ten have no solution at all."""

  def sample(self, rng, difficulty):
    number = int(rng.integers(10_000))
    return Problem("toy", f"{number}\n", f"#{number}", {}, difficulty)

  def split_key(self, problem):
    return problem.key


def number_of(problem):
  return int(problem.key[1:])


def is_solvable(problem):
  return number_of(problem) % 10 == 0


def solves(skill, problem, seed):
  hardness = number_of(problem) % 100 / 100
  luck = np.random.default_rng([seed, number_of(problem)]).random()
  return is_solvable(problem) and hardness + luck < skill


class Player:
  """Its params are its skill, in [0, 2]: at 2 it solves what can be solved."""

  def __init__(self):
    self.played = []

  def play(self, params, jobs, on_turn):
    skill = float(params)
    for done, job in enumerate(jobs):
      on_turn(done)
      self.played.append((skill, *job[:2]))
      yield skill, job.problem, job.seed


@pytest.fixture(autouse=True)
def result(monkeypatch):
  def of_play(domain, played):
    verdict = types.SimpleNamespace(score=float(solves(*played)))
    return types.SimpleNamespace(verdict=verdict, tokens=TOKENS)

  monkeypatch.setattr(plays, "result", of_play)


def make(skill, num_problems=400, table_problems=1000):
  config = CurriculumConfig(
    replay_share=0.5,
    table_problems=table_problems,
    proposer_problems=num_problems,
    proposer_tries=TRIES,
  )
  player = Player()
  return (
    Proposer(player, np.float64(skill), config),
    player,
    Curriculum(config, 1, 3),
    TrainingProblems(Domain(), frozenset({"#10", "#20", "#30"})),
  )


def test_keeps_what_is_solved_sometimes_and_was_less_often():
  proposer, player, curriculum, problems = make(0.5)
  metrics = proposer.propose(
    np.float64(1.0), problems, curriculum, np.random.default_rng(0)
  )
  wins = {}
  for skill, problem, seed in player.played:
    won = wins.setdefault(problem.key, {}).setdefault(skill, {})
    won[seed] = solves(skill, problem, seed)
  expected = {}
  for key, by_skill in wins.items():
    rate = np.mean(list(by_skill[1.0].values()))
    # The earlier player is not asked where its answer makes no difference.
    assert (0.5 in by_skill) == (0 < rate < 1)
    if 0.5 in by_skill:
      assert list(by_skill[0.5]) == list(by_skill[1.0])
      if np.mean(list(by_skill[0.5].values())) < rate:
        expected[key] = rate * (1 - rate)
  assert len(expected) > 5
  assert curriculum.table.weights() == pytest.approx(expected)
  assert metrics == {
    "proposed": len(expected),
    "proposer_solve_rate": pytest.approx(
      np.mean([list(w[1.0].values()) for w in wins.values()])
    ),
    "proposer_tokens": TOKENS * len(player.played),
  }


def test_the_player_is_the_earlier_one_of_the_next_time():
  proposer, player, curriculum, problems = make(0.5)
  rng = np.random.default_rng(0)
  proposer.propose(np.float64(1.0), problems, curriculum, rng)
  assert float(proposer.earlier) == 1.0
  # One that has learned nothing since proposes nothing.
  metrics = proposer.propose(np.float64(1.0), problems, curriculum, rng)
  assert metrics["proposed"] == 0
  assert {skill for skill, *_ in player.played} == {0.5, 1.0}


def test_proposals_go_towards_harder_problems():
  proposer, _, curriculum, problems = make(0.2, table_problems=20)
  rng = np.random.default_rng(0)
  hardness = []
  for skill in (0.5, 0.9, 1.3, 1.7):
    proposer.propose(np.float64(skill), problems, curriculum, rng)
    keys = list(curriculum.table.weights())
    assert keys
    hardness.append(np.mean([int(key[1:]) % 100 for key in keys]))
  assert hardness == sorted(hardness)


def test_unsolvable_problems_never_dominate():
  """They are nine of ten candidates, and never in the table."""
  proposer, player, curriculum, problems = make(0.2, num_problems=60)
  rng = np.random.default_rng(0)
  repeated = []
  for skill in np.linspace(0.3, 1.9, 12):
    proposer.propose(skill, problems, curriculum, rng)
    repeated += curriculum.table.draw(8, rng)
  tried = {problem.key for _, problem, _ in player.played}
  assert np.mean([int(key[1:]) % 10 != 0 for key in tried]) > 0.8
  assert len(repeated) > 50
  assert all(map(is_solvable, repeated))


def test_a_player_that_solves_nothing_proposes_nothing():
  proposer, player, curriculum, problems = make(0.0, num_problems=30)
  metrics = proposer.propose(
    np.float64(0.0), problems, curriculum, np.random.default_rng(0)
  )
  assert metrics["proposed"] == 0 and len(curriculum.table) == 0
  assert metrics["proposer_tokens"] == TOKENS * len(player.played)


def test_held_out_problems_are_not_tried():
  proposer, player, curriculum, problems = make(0.5, num_problems=10_000)
  proposer.propose(
    np.float64(1.0), problems, curriculum, np.random.default_rng(0)
  )
  tried = {problem.key for _, problem, _ in player.played}
  assert len(tried) > 5000
  assert not tried & problems.held_out_keys
  # And none twice, though the generator made some twice.
  assert sum(skill == 1.0 for skill, *_ in player.played) == TRIES * len(tried)


def test_a_stop_leaves_everything_as_it_was():
  proposer, _, curriculum, problems = make(0.5)
  calls = []

  def check_stop():
    calls.append(None)
    if len(calls) == 400 * TRIES + 5:
      raise InterruptedError

  with pytest.raises(InterruptedError):
    proposer.propose(
      np.float64(1.0), problems, curriculum, np.random.default_rng(0),
      check_stop,
    )  # fmt: skip
  assert float(proposer.earlier) == 0.5 and len(curriculum.table) == 0
