"""An iteration of self-play."""

import numpy as np
import pytest

from qstar_jax.config import (
  CurriculumConfig,
  ExperimentConfig,
  SelfPlayConfig,
)
from qstar_jax.domains.splits import TrainingProblems
from qstar_jax.selfplay.actor import play_iteration
from qstar_jax.selfplay.curriculum import Curriculum

NUM_PROBLEMS = 16


def play(tiny, *, seed=0, first_sequence=40, check_stop=lambda: None):
  config = ExperimentConfig(
    seed=seed,
    text=tiny.text,
    search=tiny.searches["value"],
    self_play=SelfPlayConfig(NUM_PROBLEMS, tiny.num_trees),
  )
  held_out = [tiny.problem("1 1 -> 1")]
  _, params = tiny.network()
  return play_iteration(
    tiny.player("value", 1),
    params,
    TrainingProblems.without(tiny.domain, held_out),
    Curriculum(CurriculumConfig(), 1, 2),
    tiny.vocabulary,
    np.random.default_rng(7),
    config=config,
    params_version=5,
    first_sequence=first_sequence,
    actor_id=2,
    check_stop=check_stop,
  )


@pytest.fixture(scope="module")
def iteration(tiny):
  return list(play(tiny))


def test_records_are_numbered_and_signed(iteration):
  records = [played.record for played in iteration]
  assert len(records) == NUM_PROBLEMS
  assert [r.sequence for r in records] == list(range(40, 40 + NUM_PROBLEMS))
  assert {r.actor_id for r in records} == {2}
  assert {r.params_version for r in records} == {5}
  assert {r.terminal_value for r in records} == {"value"}
  assert {r.temperature for r in records} == {1.0}


def test_problems_are_drawn_for_training(iteration, tiny):
  keys = {played.record.problem_key for played in iteration}
  assert len(keys) > 2
  assert tiny.problem("1 1 -> 1").key not in keys
  assert {played.difficulty for played in iteration} == {1, 2}
  for played in iteration:
    prompt = tiny.vocabulary.encode_prompt(played.record.prompt)
    assert played.record.prompt_tokens.tolist() == prompt


def test_record_and_result_are_of_one_play(iteration):
  for played in iteration:
    assert played.record.final_score == played.result.verdict.score
    assert len(played.record.node_parent) == played.result.expansions


def same_play(one, other):
  one, other = one.record, other.record
  return one.tokens.tolist() == other.tokens.tolist()


def test_a_play_can_be_repeated(iteration, tiny):
  again = list(play(tiny))
  assert all(map(same_play, iteration, again))


@pytest.mark.parametrize("change", [{"seed": 1}, {"first_sequence": 41}])
def test_seed_and_number_make_the_play(iteration, tiny, change):
  other = list(play(tiny, **change))
  prompts = [played.record.prompt for played in other]
  assert prompts == [played.record.prompt for played in iteration]
  assert not any(map(same_play, iteration, other))


def test_stops_between_batches(tiny):
  class Stop(Exception):
    pass

  calls = []

  def check_stop():
    calls.append(None)
    if len(calls) == 2:
      raise Stop

  with pytest.raises(Stop):
    list(play(tiny, check_stop=check_stop))
  assert len(calls) == 2
