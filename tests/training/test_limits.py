"""A run ends with the iteration in which its minutes or tokens are over."""

import dataclasses

import pytest
from etils import epath

from qstar_jax import checkpoint
from qstar_jax.training import loop
from qstar_jax.training.displays import RunStatus
from qstar_jax.training.preemption import PreemptionFlag
from tests.training.recorder import Recorder

pytest_plugins = ["tests.training.micro_run"]


class _Clock(Recorder):
  """Goes on by a minute with every iteration."""

  minutes = 0.0

  def log(self, record):
    super().log(record)
    self.minutes += record["kind"] == "iteration"


@pytest.mark.parametrize(
  ("limits", "iterations"),
  [({"max_minutes": 1.0}, 2), ({"max_tokens": 1}, 1), ({}, 3)],
)
def test_the_last_iteration_is_evaluated_and_saved(
  micro_config, tmp_path, limits, iterations
):
  run_dir = epath.Path(tmp_path)
  config = dataclasses.replace(micro_config, **limits)
  reporter = _Clock()
  loop.train(config, run_dir, reporter, PreemptionFlag())
  kinds = [record["kind"] for record in reporter.records]
  assert kinds.count("iteration") == iterations
  assert reporter.records[-2]["kind"] == "evaluation"
  meta = checkpoint.latest_meta(run_dir)
  assert meta["progress"]["iteration"] == iterations
  assert meta["progress"]["is_over"] == bool(limits)
  # Run again, it is done.
  assert loop.is_done(config, run_dir)
  seen = len(reporter.records)
  loop.train(config, run_dir, reporter, PreemptionFlag())
  assert len(reporter.records) == seen


def test_time_left_is_no_more_than_there_is(micro_config):
  config = dataclasses.replace(micro_config, num_iterations=9, max_minutes=4.0)
  status = RunStatus(config, lambda: 3.0)
  record = {"kind": "iteration", "iteration": 1, "seconds_play": 90.0}
  status.add(record | {"minutes": 3.0})
  assert status.seconds_left() == 60.0
