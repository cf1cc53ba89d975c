"""A thread plays on devices of its own while others learn."""

import dataclasses
import json
import signal
import time
import types

import numpy as np
import pytest
from etils import epath

from qstar_jax import checkpoint
from qstar_jax.config import MeshConfig
from qstar_jax.errors import UserError
from qstar_jax.replay import EMPTY_CURSOR, ReplayReader, ReplayWindow
from qstar_jax.training import split_mode
from qstar_jax.training.preemption import PreemptionFlag
from qstar_jax.training.progress import Progress
from qstar_jax.training.self_play import Round
from qstar_jax.training.setup import make_meshes
from qstar_jax.training.split_mode import Split
from qstar_jax.validation import validate_for_devices
from tests.replay.conftest import random_tree
from tests.training.recorder import Recorder

pytest_plugins = ["tests.training.micro_run"]


def _iterations(run_dir):
  lines = (run_dir / "metrics.jsonl").read_text().splitlines()
  records = map(json.loads, lines)
  return [record for record in records if record["kind"] == "iteration"]


@pytest.mark.parametrize(
  ("number", "code"),
  [
    (signal.SIGTERM, 75),
    pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
  ],
)
def test_a_run_on_two_devices(qstar, micro_yaml, tmp_path, number, code):
  """Cut and run again, it learns from every tree once, within its bound."""
  run_dir = tmp_path / "run"
  # After ten steps of the warm start come six an iteration.
  options = {
    "--run-mode": "split",
    "--mesh.actor-devices": 1,
    "--replay.max-staleness": 11,
    "--replay.reanalyse-share": 0.25,
    "--curriculum.replay-share": 0.25,
    "--curriculum.proposer-problems": 4,
    "--evaluation.every-iterations": 9,
  }
  words = [word for option in options.items() for word in option]
  command = ("train", micro_yaml, "--run-dir", run_dir, "--json", *words)
  fault = {
    "folder": str(run_dir / "replay"),
    "at": 70,
    "delay": 0.02,
    "signal": number,
  }
  finished = qstar(*command, num_devices=2, fault=fault)
  assert finished.code == code, finished.err
  finished = qstar(*command, num_devices=2)
  assert finished.code == 0, finished.err
  iterations = _iterations(run_dir)
  assert [r["iteration"] for r in iterations] == [1, 2, 3]
  trees = ReplayReader(run_dir / "replay")
  assert [trees[i].sequence for i in range(len(trees))] == list(range(48))
  ages = [
    10 + 6 * (i // 16) - trees[i].params_version for i in range(len(trees))
  ]
  assert set(ages[:16]) == {0}
  assert set(ages) <= {0, 6}
  for record in iterations:
    assert record["replay_max_staleness"] <= 11
    assert record["trees"] == 16 * record["iteration"]
    assert record["logprob_drift"] < 1e-4
    assert np.isfinite(record["loss"])
  assert checkpoint.latest_meta(run_dir)["progress"]["num_trees"] == 48


class _SelfPlay:
  """Plays trees of noise, and fails at the third round."""

  def __init__(self, setup, params, window, notes, flag):
    assert params == "placed"
    self.curriculum = types.SimpleNamespace(load_state_dict=self.rounds)
    self._notes = notes
    self.flag = flag
    self.loaded = None

  def rounds(self, state):
    self.loaded = state

  def play(self, params, *, index, first_sequence, params_version, **_):
    if index == 2:
      raise UserError("the verifier is gone")
    self._notes.log({"kind": "warning", "step": -1, "message": f"of {index}"})
    self._notes.progress("self_play", 1, 1)
    records = [
      random_tree(first_sequence + i, params_version=params_version)
      for i in range(16)
    ]
    metrics = {"solve_rate": 0.5, "seconds_play": 1.0}
    return Round(records, 5, metrics, {"rounds": index + 1})


@pytest.fixture
def trainer(micro_config, tmp_path, monkeypatch):
  """What the mode needs of one."""
  monkeypatch.setattr(split_mode, "SelfPlay", _SelfPlay)
  return types.SimpleNamespace(
    config=micro_config,
    replay_dir=epath.Path(tmp_path) / "replay",
    window=ReplayWindow(micro_config.replay, seed=0),
    progress=Progress(),
    reporter=Recorder(),
    flag=PreemptionFlag(),
    actor_setup=types.SimpleNamespace(place=lambda params: "placed"),
  )


def test_what_the_thread_plays_and_says_reaches_the_learner(trainer):
  progress = trainer.progress
  with Split(trainer) as source:
    source.start_anew()
    assert source.state_dict() == {"replay": EMPTY_CURSOR, "curriculum": None}
    source.publish(lambda: "params", 10)
    for iteration in range(2):
      metrics = source.bring(progress, 10 + 6 * iteration)
      progress.iteration += 1
      assert metrics["trees"] == 16 * progress.iteration
      assert metrics["tokens"] == 5 * progress.iteration
      assert metrics["actor_seconds_play"] == 1.0
      assert "seconds_play" not in metrics
      assert source.state_dict()["curriculum"] == {"rounds": iteration + 1}
    assert trainer.window.metrics(22)["size"] == 32
    messages = [(r["step"], r["message"]) for r in trainer.reporter.records]
    assert messages == [(10, "of 0"), (16, "of 1")]
    # What ends the thread ends the run.
    with pytest.raises(UserError, match="the verifier is gone"):
      source.bring(progress, 22)


def test_params_are_published_as_often_as_they_are_to(trainer, monkeypatch):
  placed = []
  place = lambda params: placed.append(params) or "placed"  # noqa: E731
  monkeypatch.setattr(trainer.actor_setup, "place", place)
  play = dataclasses.replace(
    trainer.config.self_play, publish_every_iterations=3
  )
  trainer.config = dataclasses.replace(trainer.config, self_play=play)
  with Split(trainer) as source:
    # It goes on from a checkpoint in between.
    trainer.progress.iteration = 4
    for iteration in range(4, 11):
      source.publish(lambda iteration=iteration: iteration, iteration)
      trainer.progress.iteration += 1
  assert placed == [4, 6, 9]


def _bring_all(source, trainer):
  """As the loop does; the rounds that were begun by the end, of how many."""
  config, progress = trainer.config, trainer.progress
  progress.warm_steps = config.warm_start.steps
  source.publish(lambda: "params", 10)
  while not progress.is_done(config):
    source.bring(progress, 10)
    progress.iteration += 1
    bound = config.max_tokens
    progress.is_over = progress.is_over or 0 < bound <= progress.num_tokens
    source.publish(lambda: "params", 10)
  thread = source._queue._thread
  thread.join(10)
  assert not thread.is_alive()


@pytest.mark.parametrize(
  ("bounds", "num_rounds"),
  [
    ({"num_iterations": 2}, 2),
    # A round takes five tokens.
    ({"num_iterations": 9, "max_tokens": 5}, 1),
    ({"num_iterations": 9, "max_tokens": 6}, 2),
  ],
)
def test_nothing_is_played_that_nobody_learns_from(
  trainer, monkeypatch, bounds, num_rounds
):
  begun = []
  play = _SelfPlay.play

  def play_and_note(self, params, *, index, **options):
    begun.append(index)
    return play(self, params, index=index, **options)

  monkeypatch.setattr(_SelfPlay, "play", play_and_note)
  self_play = dataclasses.replace(trainer.config.self_play, max_lead=9)
  trainer.config = dataclasses.replace(
    trainer.config, self_play=self_play, **bounds
  )
  with Split(trainer) as source:
    source.start_anew()
    _bring_all(source, trainer)
    assert begun == [*range(num_rounds)]


def test_the_thread_ends_with_the_run_s_time(trainer, monkeypatch):
  """That bound is not known before: what is being played then is given up."""

  def play_for_ever(self, *_, index, **options):
    while index:
      self.flag.check()
      time.sleep(0.001)
    return Round([], 5, {}, {})

  monkeypatch.setattr(_SelfPlay, "play", play_for_ever)
  with Split(trainer) as source:
    source.start_anew()
    trainer.progress.warm_steps = trainer.config.warm_start.steps
    source.publish(lambda: "params", 10)
    source.bring(trainer.progress, 10)
    trainer.progress.is_over = True
    source.publish(lambda: "params", 16)
    source._queue._thread.join(10)
    assert not source._queue._thread.is_alive()


def test_the_meshes_share_no_device():
  learner, player = make_meshes(MeshConfig(fsdp=2, model=2, actor_devices=4))
  assert dict(learner.shape) == {"data": 1, "fsdp": 2, "model": 2}
  assert dict(player.shape) == {"data": 2, "fsdp": 1, "model": 2}
  assert not set(learner.devices.flat) & set(player.devices.flat)
  one, other = make_meshes(MeshConfig())
  assert one is other


@pytest.mark.parametrize(
  ("actor_devices", "message"),
  [
    (8, "mesh.actor_devices is 8: must be below 8"),
    (
      6,
      r"self_play.batch_size is 8: must be divisible by mesh.data \* .* = 6; ",
    ),
  ],
)
def test_devices_that_do_not_do(micro_config, actor_devices, message):
  mesh = dataclasses.replace(micro_config.mesh, actor_devices=actor_devices)
  config = dataclasses.replace(micro_config, run_mode="split", mesh=mesh)
  with pytest.raises(UserError, match=message):
    validate_for_devices(config, 8)
