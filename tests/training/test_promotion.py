"""Behind a gate: who plays, what is kept, and when the learner goes back."""

import dataclasses

import jax
import numpy as np
import pytest
from etils import epath

from qstar_jax import checkpoint
from qstar_jax.config import EvaluationConfig, GateConfig
from qstar_jax.errors import UserError
from qstar_jax.evaluation import gate
from qstar_jax.evaluation.gate import Decision, Trial
from qstar_jax.replay import ReplayReader
from qstar_jax.training import loop
from qstar_jax.training.preemption import PreemptionFlag
from qstar_jax.training.promotion import Promotion
from tests.training.recorder import Recorder

pytest_plugins = ["tests.training.micro_run"]

_ACCEPTED = Trial(Decision.ACCEPTED, 17, 0, 3, 3.1)
_REFUSED = Trial(Decision.REFUSED, 0, 14, 6, -3.1)
_OPEN = Trial(Decision.OPEN, 3, 3, 94, -0.1)


@pytest.fixture
def decide(monkeypatch):
  """Has trials end one after another as they are told to."""

  def with_trials(*trials):
    left = iter(trials)
    monkeypatch.setattr(gate, "try_candidate", lambda *_: next(left))

  return with_trials


def _promotion(max_refusals=2):
  return Promotion(
    GateConfig(every_iterations=1, max_refusals=max_refusals),
    *(None, None, []),
    {"w": np.zeros(2)},
    10,
  )


def test_the_player_changes_when_a_candidate_is_accepted(decide):
  promotion = _promotion()
  candidate = {"w": np.ones(2)}
  decide(_OPEN, _ACCEPTED, _REFUSED)
  results = [
    promotion.try_candidate(candidate, step, None, None)
    for step in (16, 22, 28)
  ]
  assert [r.is_accepted for r in results] == [False, True, False]
  assert not any(r.goes_back for r in results)
  assert promotion.step == 22
  np.testing.assert_array_equal(promotion.params["w"], 1)
  assert promotion.rating == pytest.approx(_ACCEPTED.elo_difference)
  assert [r.metrics["player"] for r in results] == [10, 10, 22]
  assert promotion.refusals == 1


def test_the_learner_goes_back_after_so_many_refusals(decide):
  promotion = _promotion()
  decide(*[_REFUSED, _OPEN] * 2, _REFUSED, _ACCEPTED, _REFUSED)
  goes_back = [
    promotion.try_candidate({"w": np.ones(2)}, step, None, None).goes_back
    for step in range(7)
  ]
  assert goes_back == [False, True] * 2 + [False] * 3
  promotion = _promotion(max_refusals=0)
  decide(*[_REFUSED] * 9)
  assert not any(
    promotion.try_candidate({}, step, None, None).goes_back for step in range(9)
  )


def test_its_state_is_restored(decide):
  promotion = _promotion()
  decide(_ACCEPTED, _REFUSED)
  for step in (16, 22):
    promotion.try_candidate({"w": np.ones(2)}, step, None, None)
  other = _promotion()
  other.load_state_dict(promotion.state_dict())
  assert other.state_dict() == promotion.state_dict()
  assert (other.step, other.refusals) == (16, 1)


def _train(config, run_dir, flag=None):
  reporter = Recorder()
  loop.train(config, run_dir, reporter, flag or PreemptionFlag())
  return reporter.records


def _params(run_dir, step):
  loaded = checkpoint.load(run_dir / "checkpoints" / str(step))
  return jax.device_get(jax.tree.leaves(loaded.params))


@pytest.fixture
def config(micro_config):
  replace = dataclasses.replace
  return replace(
    micro_config,
    num_iterations=4,
    gate=GateConfig(
      every_iterations=1, pool_problems=8, num_problems=8, max_refusals=2
    ),
    evaluation=replace(
      micro_config.evaluation,
      every_iterations=9,
      ladder_budgets=(200, 600),
      ladder_problems=4,
    ),
    checkpoint=replace(micro_config.checkpoint, keep=1),
  )


def test_a_run_plays_what_was_accepted(config, decide, tmp_path):
  run_dir = epath.Path(tmp_path)
  decide(_ACCEPTED, _REFUSED, _OPEN, _REFUSED)
  records = _train(config, run_dir)
  # Six steps an iteration, after ten of the warm start.
  trials = [r for r in records if r["kind"] == "trial"]
  assert [r["step"] for r in trials] == [16, 22, 28, 34]
  assert [r["player"] for r in trials] == [10, 16, 16, 16]
  trees = ReplayReader(run_dir / "replay")
  versions = [trees[i].params_version for i in range(0, len(trees), 16)]
  assert versions == [10, 16, 16, 16]
  # The player's checkpoint outlives newer ones, and is what a run stands for.
  steps = {int(path.name) for path in (run_dir / "checkpoints").iterdir()}
  assert steps == {16, 34}
  assert checkpoint.load(run_dir).step == 16
  # Before training, after the warm start, and at the end.
  rungs = [r for r in records if r["kind"] == "ladder"]
  assert [r["budget"] for r in rungs] == [200, 600] * 3
  for rung in rungs:
    assert rung["problems"] == 4
    assert 0 < rung["tokens_per_problem"] <= rung["budget"]
  # What played is what should have played.
  iterations = [r for r in records if r["kind"] == "iteration"]
  assert max(r["logprob_drift"] for r in iterations) < 1e-4


def test_a_learner_that_went_back_learns_on_from_the_player(
  config, decide, tmp_path
):
  config = dataclasses.replace(
    config,
    num_iterations=2,
    gate=dataclasses.replace(config.gate, max_refusals=1),
    learner=dataclasses.replace(config.learner, ema_decay=0.0),
  )
  run_dir = epath.Path(tmp_path)
  decide(_ACCEPTED, _REFUSED)
  _train(config, run_dir)
  player, newest = _params(run_dir, 16), _params(run_dir, 22)
  for a, b in zip(player, newest, strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_run_that_was_cut_knows_its_player(config, decide, tmp_path):
  trials = [_ACCEPTED, _REFUSED, _ACCEPTED, _OPEN]
  whole, cut = epath.Path(tmp_path / "whole"), epath.Path(tmp_path / "cut")
  decide(*trials)
  _train(config, whole)
  decide(*trials[:2])
  with pytest.raises((StopIteration, RuntimeError)):
    _train(config, cut)
  decide(*trials[2:])
  _train(config, cut)
  for step in (28, 34):
    for a, b in zip(_params(whole, step), _params(cut, step), strict=True):
      np.testing.assert_array_equal(a, b)
  assert checkpoint.load(cut).step == checkpoint.load(whole).step == 28
  assert checkpoint.latest_meta(cut) == checkpoint.latest_meta(whole)


@pytest.mark.parametrize(
  ("changes", "name"),
  [
    ({"gate": GateConfig(every_iterations=1, token_budget=9)}, "gate.token"),
    (
      {"evaluation": EvaluationConfig(ladder_budgets=(9, 900))},
      "evaluation.ladder_budgets",
    ),
  ],
)
def test_a_budget_too_small_for_a_line_is_refused_at_once(
  micro_config, tmp_path, changes, name
):
  config = dataclasses.replace(micro_config, **changes)
  with pytest.raises(UserError, match=f"{name}.* has 9: a line may take"):
    _train(config, epath.Path(tmp_path))
