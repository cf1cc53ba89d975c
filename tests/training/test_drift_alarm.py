"""The alarm is silent when the params are those that played, and only then."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from etils import epath

from qstar_jax.errors import UserError
from qstar_jax.learner.drift import DriftMeter
from qstar_jax.selfplay import actor
from qstar_jax.training.alternate import Alternate
from qstar_jax.training.drift_alarm import DriftAlarm
from qstar_jax.training.preemption import PreemptionFlag
from qstar_jax.training.trainer import Trainer
from tests.training.recorder import Recorder

pytest_plugins = ["tests.training.micro_run"]


def _perturbed(params):
  """Heads and embeddings of another network."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: x + 0.3 * rng.standard_normal(x.shape, np.float32), params
  )


@pytest.fixture(scope="module")
def trainer(micro_config, tmp_path_factory):
  """A trainer whose average lags far behind its params."""
  run_dir = epath.Path(tmp_path_factory.mktemp("run"))
  trainer = Trainer(micro_config, run_dir, Recorder(), PreemptionFlag())
  state = trainer.state
  trainer.state = state._replace(average=_perturbed(state.params))
  return trainer


@pytest.fixture
def play(trainer):
  """Plays an iteration, with the params given or those that should play."""

  with Alternate(trainer) as source:
    yield functools.partial(_play_with, trainer, source)


def _play_with(trainer, source, monkeypatch, params=None, **learner):
  def stale_iteration(player, fresh, *args, **kwargs):
    used = fresh if params is None else params
    return play_iteration(player, used, *args, **kwargs)

  play_iteration = actor.play_iteration
  monkeypatch.setattr(actor, "play_iteration", stale_iteration)
  learner = dataclasses.replace(trainer.config.learner, **learner)
  config = dataclasses.replace(trainer.config, learner=learner)
  alarm = _alarm(trainer, config)
  monkeypatch.setattr(source.self_play, "drift_alarm", alarm)
  trainer.reporter.records.clear()
  source.publish(lambda: trainer.played, trainer.played_step)
  return source.bring(trainer.progress, trainer.played_step)


def _alarm(trainer, config):
  setup = trainer.setup
  return DriftAlarm(setup.graphdef, config, setup.mesh, trainer.reporter)


def test_silent_for_a_fresh_actor(play, trainer, monkeypatch):
  metrics = play(monkeypatch)
  assert metrics["logprob_drift"] < 1e-3
  assert abs(metrics["drift_ratio"] - 1) < 1e-3
  assert (
    abs(metrics["drift_kl_k1"]) < 1e-3 and abs(metrics["drift_kl_k3"]) < 1e-3
  )
  assert metrics["drift_alarm"] == 0
  assert trainer.reporter.records == []


def test_fires_for_a_stale_one(play, trainer, monkeypatch):
  """The params that are trained are not those that should play: the average."""
  metrics = play(monkeypatch, trainer.state.params)
  assert metrics["logprob_drift"] > trainer.config.learner.max_drift
  assert metrics["drift_kl_k3"] > 0.1
  assert metrics["drift_alarm"] == 1
  (record,) = trainer.reporter.records
  assert record["kind"] == "warning"
  assert "learner.max_drift" in record["message"]


def test_fires_for_an_actor_that_missed_the_last_steps(
  micro_config, tmp_path, monkeypatch
):
  """It plays an older checkpoint's params; the newest are silent."""
  learner = dataclasses.replace(micro_config.learner, learning_rate=0.02)
  config = dataclasses.replace(micro_config, learner=learner)
  run_dir = epath.Path(tmp_path)
  trainer = Trainer(config, run_dir, Recorder(), PreemptionFlag())
  older = jax.tree.map(np.asarray, trainer.published)
  trainer.warm_start()
  older = trainer.setup.place(older)
  with Alternate(trainer) as source:
    with monkeypatch.context() as patch:
      metrics = _play_with(trainer, source, patch, older)
    assert metrics["logprob_drift"] > config.learner.max_drift
    assert metrics["drift_alarm"] == 1
    metrics = _play_with(trainer, source, monkeypatch)
    assert metrics["drift_alarm"] == 0


def test_stops_where_it_is_to(play, trainer, monkeypatch):
  with pytest.raises(UserError, match="logprob_drift is"):
    play(monkeypatch, trainer.state.params, on_drift="stop")
  assert trainer.reporter.records == []
  # And goes on where there is nothing to fear.
  assert play(monkeypatch, on_drift="stop", max_drift=0.0)


def test_what_is_no_number_is_an_alarm(trainer, micro_config, monkeypatch):
  alarm = _alarm(trainer, micro_config)
  drift = {"logprob_drift": float("nan")}
  monkeypatch.setattr(DriftMeter, "measure", lambda *_: drift)
  trainer.reporter.records.clear()
  rng = np.random.default_rng(0)
  metrics = alarm.measure(None, [], trainer.window, rng, step=3)
  assert metrics["drift_alarm"] == 1
  assert trainer.reporter.records[0]["step"] == 3
