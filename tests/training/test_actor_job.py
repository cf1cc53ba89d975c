"""An actor of the mode `files`: what it plays, when, and after a kill."""

import types

import pytest
from etils import epath

from qstar_jax import configuration
from qstar_jax.cli.main import main
from qstar_jax.config import ExperimentConfig, ReplayConfig, SelfPlayConfig
from qstar_jax.errors import UserError
from qstar_jax.replay import ReplayReader
from qstar_jax.training import actor_job, waiting
from qstar_jax.training.metrics_log import read_metrics
from qstar_jax.training.preemption import Preempted, PreemptionFlag
from qstar_jax.training.self_play import Round
from qstar_jax.training.watch import Status
from tests.replay.conftest import random_tree

pytest_plugins = ["tests.training.micro_run"]

_SHARD = 4
_CONFIG = ExperimentConfig(
  run_mode="files",
  self_play=SelfPlayConfig(problems_per_iteration=8, max_lead=1),
  replay=ReplayConfig(shard_trees=_SHARD),
)
_ACTOR = 2


def test_an_actor_is_held_to_its_own_batch(micro_yaml, tmp_path, monkeypatch):
  """And a learner to its own, on eight devices."""
  started = []
  monkeypatch.setattr(actor_job, "run", lambda *args, **_: started.append(args))
  flags = [str(micro_yaml), "--run-dir", str(tmp_path / "run")]
  flags += ["--learner.batch-size", "12"]
  assert main(["actor", *flags]) == 0
  assert len(started) == 1
  assert main(["learner", *flags]) == 2


def _status(step, counted=0, *, is_warm=True, is_done=False, player=None):
  player = step if player is None else player
  return Status(step, player, is_warm, is_done, {_ACTOR: counted})


class _Watch:
  """Sees these statuses, one after another."""

  def __init__(self, statuses):
    self._statuses = list(statuses)

  def status(self):
    if len(self._statuses) > 1:
      return self._statuses.pop(0)
    return self._statuses[0]

  def load(self, step, mesh):
    return types.SimpleNamespace(params=f"params {step}", step=step)


class _SelfPlay:
  """Plays nothing, and notes what it was to play."""

  def __init__(self, played, *_, actor_id):
    assert actor_id == _ACTOR
    self.curriculum = self
    self.state = None
    self._played = played

  def load_state_dict(self, state):
    self.state = state

  def play(self, params, *, params_version, step, index, **plays):
    assert params == f"params {params_version}"
    first = plays["first_sequence"]
    assert plays["num_plays"] == _SHARD
    self._played.append((index, first, params_version, self.state))
    self.state = {"rounds": index + 1}
    records = [
      random_tree(first + i, actor_id=_ACTOR, params_version=params_version)
      for i in range(_SHARD)
    ]
    return Round(records, 10, {"solve_rate": 0.5}, self.state)


@pytest.fixture
def run_dir(tmp_path):
  return epath.Path(tmp_path) / "run"


@pytest.fixture
def act(run_dir, monkeypatch):
  """Runs the actor; what it played, and what ended it."""
  monkeypatch.setattr(waiting, "_LOCAL", 0.001)
  setup = types.SimpleNamespace(place=lambda params: params)
  monkeypatch.setattr(actor_job.setup_lib, "of_checkpoint", lambda *_: setup)

  def run(*statuses, flag=None):
    played = []
    watch = _Watch(statuses)
    monkeypatch.setattr(actor_job, "RunWatch", lambda *_: watch)
    monkeypatch.setattr(
      actor_job,
      "SelfPlay",
      lambda *args, **kwargs: _SelfPlay(played, *args, **kwargs),
    )
    flag = flag or PreemptionFlag()
    actor_job.run(_CONFIG, run_dir, _ACTOR, flag, is_terminal=False)
    return played

  return run


def test_it_plays_with_the_newest_player_until_the_run_is_done(act, run_dir):
  played = act(
    None,
    _status(0, is_warm=False),
    _status(10),
    *[_status(16, counted=8)] * 2,
    *[_status(22, counted=8, player=16)] * 2,
    _status(28, is_done=True),
  )
  # Index, first tree, version, and the state of the curriculum.
  assert played == [(0, 0, 16, None), (1, 4, 16, {"rounds": 1})]
  reader = ReplayReader(run_dir / "replay")
  assert [reader[i].sequence for i in range(len(reader))] == list(range(8))
  log = read_metrics(run_dir / "actors" / "actor_00002")
  assert [(r["kind"], r["step"], r["trees"]) for r in log] == [
    ("self_play", 16, 4),
    ("self_play", 16, 8),
  ]
  assert [r["tokens"] for r in log] == [10, 20]


def test_it_is_ahead_by_no_more_than_it_may(act, capsys):
  played = act(*[_status(10)] * 20, _status(16, 8, is_done=True))
  assert [first for _, first, *_ in played] == [0, 4]
  assert "waiting for the learner" in capsys.readouterr().err
  # Once they are counted there is room for as many.
  played = act(*[_status(16, 8)] * 20, _status(22, is_done=True))
  assert [first for _, first, *_ in played] == [8, 12]


def test_it_goes_on_after_a_kill(act, run_dir):
  act(*[_status(10)] * 4, _status(16, is_done=True))
  log = read_metrics(run_dir / "actors" / "actor_00002")
  played = act(*[_status(16, 8)] * 4, _status(22, is_done=True))
  assert played[0] == (2, 8, 16, {"rounds": 2})
  more = read_metrics(run_dir / "actors" / "actor_00002")
  assert more[: len(log)] == log
  assert more[len(log)]["tokens"] == 30


def test_it_can_be_stopped_while_it_waits(act):
  flag = PreemptionFlag()
  flag.set()
  with pytest.raises(Preempted):
    act(None, flag=flag)
  with pytest.raises(Preempted):
    act(*[_status(10)] * 99, flag=flag)


def test_the_run_of_another_config_is_refused(act, run_dir):
  other = ExperimentConfig(run_mode="files", seed=7)
  configuration.claim_run_dir(run_dir, other)
  with pytest.raises(UserError, match="seed is 0, was 7"):
    act(_status(10))
  assert not (run_dir / "replay").exists()
