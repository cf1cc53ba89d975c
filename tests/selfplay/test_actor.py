"""An iteration of self-play."""

import dataclasses

import numpy as np
import pytest

from qstar_jax.config import (
  CurriculumConfig,
  ExperimentConfig,
  ReplayConfig,
  SelfPlayConfig,
)
from qstar_jax.domains.splits import TrainingProblems
from qstar_jax.records import Outcome, Verdict
from qstar_jax.replay import ReplayWindow
from qstar_jax.selfplay.actor import play_iteration, summarise
from qstar_jax.selfplay.curriculum import Curriculum

NUM_PROBLEMS = 16


def play(
  tiny,
  *,
  seed=0,
  first_sequence=40,
  on_turn=lambda done: None,
  stored=(),
  reanalyse_share=0.0,
  curriculum=None,
  **of_curriculum,
):
  config = ExperimentConfig(
    seed=seed,
    text=tiny.text,
    search=tiny.searches["value"],
    self_play=SelfPlayConfig(NUM_PROBLEMS, tiny.num_trees),
    replay=ReplayConfig(reanalyse_share=reanalyse_share),
    curriculum=CurriculumConfig(**of_curriculum),
  )
  window = ReplayWindow(config.replay, seed=0)
  for record in stored:
    window.add(record)
  held_out = [tiny.problem("1 1 -> 1")]
  _, params = tiny.network()
  return play_iteration(
    tiny.player("value", 1),
    params,
    TrainingProblems.without(tiny.domain, held_out),
    curriculum or Curriculum(CurriculumConfig(), 1, 2),
    window,
    tiny.vocabulary,
    np.random.default_rng(7),
    config=config,
    params_version=5,
    first_sequence=first_sequence,
    num_plays=NUM_PROBLEMS,
    actor_id=2,
    on_turn=on_turn,
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
  assert {played.problem.difficulty for played in iteration} == {1, 2}
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


def keys(iteration):
  return [played.record.problem_key for played in iteration]


@pytest.fixture(scope="module")
def reanalysed(iteration, tiny):
  """A quarter of the plays are of stored problems; one of those is held out."""
  secret = dataclasses.replace(
    iteration[0].record, prompt="1 1 -> 1\n", sequence=9
  )
  stored = [secret, *(played.record for played in iteration[:3])]
  return list(play(tiny, stored=stored, reanalyse_share=0.25))


def test_stored_problems_are_searched_again(reanalysed, iteration, tiny):
  again = [played for played in reanalysed if played.origin == "reanalysed"]
  assert sorted(keys(again)) == sorted(keys(iteration[:3]))
  # Their trees are new ones, and what is left of the plays is new problems.
  sequences = [played.record.sequence for played in reanalysed]
  assert sequences == list(range(40, 40 + NUM_PROBLEMS))
  assert {played.record.params_version for played in again} == {5}
  assert tiny.problem("1 1 -> 1").key not in keys(reanalysed)
  assert {played.origin for played in iteration} == {"new"}


def test_reanalysis_can_be_repeated(reanalysed, iteration, tiny):
  stored = [played.record for played in iteration]
  runs = [
    list(play(tiny, stored=stored, reanalyse_share=0.5)) for _ in range(2)
  ]
  assert all(map(same_play, *runs))
  assert keys(runs[0]) == keys(runs[1])
  # Drawn, not taken from one end.
  again = keys(runs[0])[: NUM_PROBLEMS // 2]
  assert again != keys(iteration)[: NUM_PROBLEMS // 2]
  assert again != keys(iteration)[NUM_PROBLEMS // 2 :]


def test_problems_of_the_table_come_again(iteration, tiny):
  curriculum = Curriculum(CurriculumConfig(), 1, 2)
  known = {p.key: p for p in tiny.problems[:2]}
  for problem in known.values():
    curriculum.table.update(problem, 0.5, prior=0.5, is_solvable=True)
  stored = [played.record for played in iteration]
  found = list(
    play(
      tiny,
      stored=stored,
      reanalyse_share=0.25,
      curriculum=curriculum,
      replay_share=0.5,
    )
  )
  # There are two to be had, each once, and new ones take the others' place.
  origins = [played.origin for played in found]
  assert origins == ["reanalysed"] * 4 + ["repeated"] * 2 + ["new"] * 10
  assert set(keys(found)[4:6]) == set(known)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_share_is_of_related_problems(tiny, monkeypatch, share):
  drawn = {"sample": [], "sample_related": []}
  for name, of in drawn.items():
    original = getattr(TrainingProblems, name)

    def spy(self, rng, difficulty, of=of, original=original):
      of.append(original(self, rng, difficulty))
      return of[-1]

    monkeypatch.setattr(TrainingProblems, name, spy)
  found = list(play(tiny, related_share=share))
  related = [problem.key for problem in drawn["sample_related"]]
  assert sorted(keys(found)) == sorted(
    related + [problem.key for problem in drawn["sample"]]
  )
  assert bool(drawn["sample"]) == (share < 1)
  assert len(related) > share * NUM_PROBLEMS / 2


def test_rates_are_of_new_problems(iteration):
  def scored(score, origin):
    result = dataclasses.replace(
      iteration[0].result,
      verdict=Verdict(Outcome.WRONG, score),
      any_score=score + 0.25,
      mean_score=score / 2,
    )
    return iteration[0]._replace(result=result, origin=origin)

  again = [scored(0.5, "reanalysed"), scored(0.25, "reanalysed")]
  new = [scored(0.0, "new"), scored(0.5, "new")]
  of_new = {"solve_rate": 0.25, "any_score": 0.5, "mean_score": 0.125}
  assert summarise([*again, *new, scored(1.0, "repeated")]) == {
    **of_new,
    "reanalysed": 2,
    "reanalysed_solve_rate": 0.375,
    "repeated": 1,
    "repeated_solve_rate": 1.0,
  }
  assert summarise(new) == {**of_new, "reanalysed": 0, "repeated": 0}
  assert set(summarise(again)) == {
    "reanalysed",
    "reanalysed_solve_rate",
    "repeated",
  }


def test_stops_between_turns(tiny):
  class Stop(Exception):
    pass

  calls = []

  def on_turn(done):
    calls.append(done)
    if len(calls) == 2:
      raise Stop

  with pytest.raises(Stop):
    list(play(tiny, on_turn=on_turn))
  assert len(calls) == 2


def test_tells_how_many_plays_are_done(tiny):
  calls = []
  recorded = list(play(tiny, on_turn=calls.append))
  assert calls == sorted(calls) and calls[-1] == len(recorded)
