"""What goes wrong in a run is told in a line, and nothing stored is lost."""

import dataclasses

import pytest
import yaml

from qstar_jax import checkpoint as checkpoint_lib
from qstar_jax import configuration
from qstar_jax.cli.main import main
from qstar_jax.replay import ReplayReader

pytest_plugins = ["tests.training.micro_run"]


def _assert_message(message, *parts):
  assert message.startswith("qstar train: ")
  for part in parts:
    assert part in message


def _assert_one_line(finished, *parts):
  assert finished.code == 2, finished.err
  assert finished.err.count("\n") == 1, finished.err
  _assert_message(finished.err, *parts)


def _assert_same_end(run_dir, other_dir):
  """The same trees, counters and window; nothing twice, nothing missing."""
  readers = [ReplayReader(path / "replay") for path in (run_dir, other_dir)]
  assert len(readers[0]) == len(readers[1])
  loaded = [checkpoint_lib.load(path) for path in (run_dir, other_dir)]
  assert loaded[0].meta == loaded[1].meta


def test_loss_that_is_not_finite(qstar, micro_yaml, tmp_path):
  run_dir = tmp_path / "run"
  finished = qstar(
    *("train", micro_yaml, "--run-dir", run_dir, "--json"),
    *("--learner.learning-rate", 1e30),
  )
  _assert_one_line(finished, "not finite", "lower learner.learning_rate")
  # The step that broke the parameters was never saved.
  assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["0"]
  assert checkpoint_lib.load(run_dir).step == 0


def test_no_room_for_replay(qstar, micro_yaml, micro_run, tmp_path):
  run_dir = tmp_path / "run"
  train = ("train", micro_yaml, "--run-dir", run_dir, "--json")
  # Room for everything but a shard, whose blocks have 64 KiB.
  finished = qstar(*train, max_file_bytes=60_000)
  _assert_one_line(
    finished, f"{run_dir}/replay", "File too large", "free space"
  )
  warm = checkpoint_lib.load(run_dir)
  assert warm.step == warm.config.warm_start.steps
  finished = qstar(*train)
  assert finished.code == 0, finished.err
  assert '"warm_start"' not in finished.out  # It went on.
  _assert_same_end(run_dir, micro_run.directory)


def test_no_room_for_checkpoints(qstar, micro_yaml, micro_run, tmp_path):
  run_dir = tmp_path / "run"
  train = ("train", micro_yaml, "--run-dir", run_dir, "--json")
  # Not enough for the embedding; the store's JSON files fit.
  finished = qstar(*train, max_file_bytes=10_000)
  assert finished.code == 2
  # TensorStore's threads may have stumbled over each other before.
  _assert_message(
    finished.err.splitlines()[-1],
    *(f"{run_dir}/checkpoints", "File too large", "free space"),
  )
  assert qstar(*train).code == 0
  _assert_same_end(run_dir, micro_run.directory)


@pytest.mark.parametrize(
  ("mesh", "parts"),
  [
    ({"data": 2}, ["(2, 1, 1)", "1 devices", "mesh.data to -1"]),
    ({"data": 1, "model": 3}, ["(1, 1, 3)", "must divide 1; make it 1"]),
  ],
)
def test_a_mesh_that_does_not_fit(qstar, micro_config, tmp_path, mesh, parts):
  config = dataclasses.replace(
    micro_config, mesh=dataclasses.replace(micro_config.mesh, **mesh)
  )
  path = tmp_path / "config.yaml"
  path.write_text(yaml.safe_dump(configuration.to_json(config)))
  run_dir = tmp_path / "run"
  _assert_one_line(qstar("train", path, "--run-dir", run_dir), *parts)
  assert not run_dir.exists()


def test_a_batch_that_does_not_fit_the_mesh(capsys, micro_yaml, tmp_path):
  # In this process, which has eight devices.
  run_dir = tmp_path / "run"
  arguments = ["--run-dir", str(run_dir), "--self-play.batch-size", "4"]
  assert main(["train", str(micro_yaml), *arguments]) == 2
  message = capsys.readouterr().err
  assert message.count("\n") == 1
  _assert_message(
    message,
    *("self_play.batch_size is 4", "mesh.data * mesh.fsdp = 8", "use 8"),
  )
  assert not run_dir.exists()
