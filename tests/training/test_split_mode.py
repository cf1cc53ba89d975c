"""A thread plays on four devices while four others learn."""

import dataclasses

import numpy as np
import pytest
from etils import epath

from qstar_jax import checkpoint
from qstar_jax.errors import UserError
from qstar_jax.replay import ReplayReader
from qstar_jax.selfplay import actor
from qstar_jax.training import loop
from qstar_jax.training.preemption import Preempted, PreemptionFlag
from qstar_jax.training.trainer import Trainer
from qstar_jax.validation import validate_for_devices
from tests.training.recorder import Recorder

pytest_plugins = ["tests.training.micro_run"]


@pytest.fixture
def config(micro_config):
  replace = dataclasses.replace
  return replace(
    micro_config,
    run_mode="split",
    mesh=replace(micro_config.mesh, actor_devices=4),
    # The trees of an iteration are as old as the one before it.
    replay=replace(micro_config.replay, max_staleness=6, reanalyse_share=0.25),
    curriculum=replace(
      micro_config.curriculum, replay_share=0.25, proposer_problems=4
    ),
    evaluation=replace(micro_config.evaluation, every_iterations=9),
  )


def _train(config, run_dir, reporter, flag=None):
  loop.train(config, run_dir, reporter, flag or PreemptionFlag())
  return [r for r in reporter.records if r["kind"] == "iteration"]


def _assert_whole(config, run_dir, iterations):
  """Every tree once, none older than the bound, and all of them learned."""
  assert [r["iteration"] for r in iterations] == [1, 2, 3]
  trees = ReplayReader(run_dir / "replay")
  assert [trees[i].sequence for i in range(len(trees))] == list(range(48))
  for record in iterations:
    assert record["replay_max_staleness"] <= config.replay.max_staleness
    assert record["trees"] == 16 * record["iteration"]
    assert record["logprob_drift"] < 1e-4
    assert np.isfinite(record["loss"])
  assert loop.is_done(config, run_dir)


def test_a_run_ends_with_every_tree_in_its_bound(config, tmp_path):
  run_dir = epath.Path(tmp_path)
  iterations = _train(config, run_dir, Recorder())
  _assert_whole(config, run_dir, iterations)
  trees = ReplayReader(run_dir / "replay")
  # After ten steps of the warm start, six an iteration.
  ages = [
    10 + 6 * (i // 16) - trees[i].params_version for i in range(len(trees))
  ]
  assert set(ages[:16]) == {0}
  assert set(ages[16:]) <= {0, 6}


class _Impatient(Recorder):
  """Asks to stop when the second iteration has been logged."""

  def __init__(self):
    super().__init__()
    self.flag = PreemptionFlag()

  def log(self, record):
    super().log(record)
    if record.get("iteration") == 2 and record["kind"] == "iteration":
      self.flag.set()


def test_stopped_and_started_again(config, tmp_path):
  run_dir = epath.Path(tmp_path)
  reporter = _Impatient()
  with pytest.raises(Preempted):
    _train(config, run_dir, reporter, reporter.flag)
  assert checkpoint.latest_meta(run_dir)["progress"]["iteration"] == 2
  iterations = _train(config, run_dir, reporter)
  _assert_whole(config, run_dir, iterations)


def test_an_error_of_the_actor_ends_the_run(config, tmp_path, monkeypatch):
  def fail(*_, **__):
    raise UserError("the verifier is gone")

  monkeypatch.setattr(actor, "play_iteration", fail)
  with pytest.raises(UserError, match="the verifier is gone"):
    _train(config, epath.Path(tmp_path), Recorder())


def test_the_meshes_share_no_device(config, tmp_path):
  trainer = Trainer(config, epath.Path(tmp_path), Recorder(), PreemptionFlag())
  learner, player = (
    set(setup.mesh.devices.flat)
    for setup in (trainer.setup, trainer.actor_setup)
  )
  assert (len(learner), len(player)) == (4, 4)
  assert not learner & player


@pytest.mark.parametrize(
  ("actor_devices", "batch_size", "message"),
  [
    (8, 8, "mesh.actor_devices is 8: must be below 8"),
    (6, 8, "self_play.batch_size is 8: must be divisible by the 6"),
  ],
)
def test_devices_that_do_not_do(config, actor_devices, batch_size, message):
  config = dataclasses.replace(
    config,
    mesh=dataclasses.replace(config.mesh, actor_devices=actor_devices),
    self_play=dataclasses.replace(config.self_play, batch_size=batch_size),
  )
  with pytest.raises(UserError, match=message):
    validate_for_devices(config, 8)
