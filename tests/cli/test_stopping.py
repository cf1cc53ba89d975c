"""Commands that are asked to stop, and those that share a directory."""

import signal

import pytest

from qstar_jax.cli.main import main
from qstar_jax.cli.stopping import until_stopped

pytest_plugins = ["tests.training.micro_run"]


def test_exit_codes(capsys):
  assert until_stopped(lambda flag: None, "") == 0
  assert until_stopped(lambda flag: 1, "") == 1

  def work(flag):
    signal.raise_signal(signal.SIGTERM)
    flag.check()

  assert until_stopped(work, "nothing is kept.") == 75
  assert capsys.readouterr().err == (
    "SIGTERM: stopped, exit code 75; nothing is kept.\n"
  )
  with pytest.raises(ZeroDivisionError):
    until_stopped(lambda flag: 1 / 0, "")
  # The flag of one command is not that of the next.
  assert until_stopped(lambda flag: flag.check(), "") == 0


@pytest.mark.parametrize(
  ("command", "options"),
  [
    ("evaluate", ("--searcher", "greedy")),
    ("calibrate", ("--num-plays", 1, "--search.num-lines", 2)),
  ],
)
def test_measuring_can_be_stopped(qstar, micro_run, command, options):
  fault = {
    "folder": str(micro_run.directory / "checkpoints"),
    "at": 1,
    "delay": 0,
    "signal": signal.SIGTERM,
  }
  finished = qstar(command, micro_run.directory, *options, fault=fault)
  assert finished.code == 75, finished.err
  assert finished.err.startswith("SIGTERM: stopped, exit code 75; nothing")
  assert finished.out == ""


@pytest.mark.parametrize(
  ("argv", "parts"),
  [
    (["train", "CONFIG", "--run-mode", "files"], ["qstar actor", "learner"]),
    (["actor", "CONFIG", "--actor-id", "-1"], ["--actor-id -1", "from 0 to"]),
    (
      ["learner", "CONFIG", "--checkpoint.every-iterations", "3"],
      ["self_play.max_lead is 1", "use 3 or more"],
    ),
    (
      ["evaluate", "runs/one/checkpoints/64", "--follow"],
      ["runs/one/checkpoints/64", "the run's directory"],
    ),
  ],
)
def test_jobs_refuse(capsys, micro_yaml, tmp_path, monkeypatch, argv, parts):
  monkeypatch.chdir(tmp_path)
  argv = [str(micro_yaml) if word == "CONFIG" else word for word in argv]
  assert main(argv) == 2
  err = capsys.readouterr().err
  assert err.count("\n") == 1, err
  assert err.startswith(f"qstar {argv[0]}: ")
  for part in parts:
    assert part in err
  assert not list(tmp_path.iterdir())
