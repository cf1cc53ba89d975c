"""One run as several processes, which play apart and learn together."""

import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from qstar_jax import checkpoint
from qstar_jax.replay import ReplayReader

pytest_plugins = ["tests.training.micro_run"]


def _start(qstar, num_hosts, micro_yaml, run_dir):
  return [
    qstar.start(
      "train",
      micro_yaml,
      "--run-dir",
      run_dir,
      # Of no consequence, and half of the programs to compile.
      "--evaluation.num-problems",
      0,
      num_devices=2,
      environ=environ,
    )
    for environ in qstar.environ_of_hosts(num_hosts)
  ]


def _wait_for_iteration(run_dir, iteration):
  """Until it has been logged."""
  path = run_dir / "metrics.jsonl"
  deadline = time.monotonic() + 400
  while time.monotonic() < deadline:
    if path.exists() and f'"iteration": {iteration}, "s' in path.read_text():
      return
    time.sleep(0.1)
  pytest.fail(f"iteration {iteration} has not come")


def _assert_same_run(run_dir, other_dir):
  """The same trees; params that differ by the order of sums."""
  ours, others = map(checkpoint.load, (run_dir, other_dir))
  assert ours.step == others.step
  assert ours.meta["progress"] == others.meta["progress"]
  assert ours.meta["curriculum"] == others.meta["curriculum"]
  for one, other in zip(
    *(jax.tree.leaves(loaded.params) for loaded in (ours, others)), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
  readers = [ReplayReader(path / "replay") for path in (run_dir, other_dir)]
  trees = [list(reader.read(range(len(reader)))) for reader in readers]
  assert len(trees[0]) == len(trees[1]) > 0
  for one, other in zip(*trees, strict=True):
    assert one.prompt == other.prompt
    np.testing.assert_array_equal(one.tokens, other.tokens)


def _assert_one_speaks(finished):
  first, *others = finished
  assert "iteration 3/3" in first.out
  for other in others:
    assert "iteration" not in other.out
    assert "warm_start" not in other.out + other.err


def test_two_hosts_stop_together_and_end_like_one(
  qstar, micro_yaml, micro_run, tmp_path
):
  run_dir = tmp_path / "run"
  started = _start(qstar, 2, micro_yaml, run_dir)
  _wait_for_iteration(run_dir, 1)
  # One host hears of it, both go.
  started[1].signal(signal.SIGTERM)
  stopped = [process.wait() for process in started]
  assert [finished.code for finished in stopped] == [os.EX_TEMPFAIL] * 2
  assert "all 2 hosts are there" in stopped[0].err
  assert "SIGTERM: stopped, exit code 75; what is saved in" in stopped[0].err
  assert "stopped" not in stopped[1].err

  finished = [p.wait() for p in _start(qstar, 2, micro_yaml, run_dir)]
  assert [f.code for f in finished] == [0, 0], finished
  _assert_one_speaks(finished)
  _assert_same_run(run_dir, micro_run.directory)


@pytest.mark.slow
def test_four_hosts_are_killed_and_go_on(
  qstar, micro_yaml, micro_run, tmp_path
):
  run_dir = tmp_path / "run"
  started = _start(qstar, 4, micro_yaml, run_dir)
  _wait_for_iteration(run_dir, 1)
  started[2].signal(signal.SIGKILL)
  # JAX's heartbeat tells the others.
  lost = [process.wait() for process in started]
  assert lost[2].code == -signal.SIGKILL
  assert {lost[i].code for i in (0, 1, 3)} <= {os.EX_TEMPFAIL, -signal.SIGABRT}

  started = _start(qstar, 4, micro_yaml, run_dir)
  _wait_for_iteration(run_dir, 2)
  for process in started:
    process.signal(signal.SIGKILL)
  for process in started:
    process.wait()

  finished = [p.wait() for p in _start(qstar, 4, micro_yaml, run_dir)]
  assert [f.code for f in finished] == [0] * 4, finished
  _assert_one_speaks(finished)
  _assert_same_run(run_dir, micro_run.directory)


@pytest.mark.slow
def test_a_run_goes_on_with_other_hosts(qstar, micro_yaml, micro_run, tmp_path):
  """With two of them at first, then four, and then one."""
  run_dir = tmp_path / "run"
  for num_hosts, iteration in ((2, 1), (4, 2)):
    started = _start(qstar, num_hosts, micro_yaml, run_dir)
    _wait_for_iteration(run_dir, iteration)
    for process in started:
      process.signal(signal.SIGTERM)
    for process in started:
      assert process.wait().code == os.EX_TEMPFAIL
  finished = _start(qstar, 1, micro_yaml, run_dir)[0].wait()
  assert finished.code == 0, finished.err
  _assert_same_run(run_dir, micro_run.directory)


def test_hosts_with_different_configs_are_refused(qstar, micro_yaml, tmp_path):
  other_yaml = tmp_path / "other.yaml"
  text = micro_yaml.read_text()
  other_yaml.write_text(text.replace("batch_size: 8", "batch_size: 16"))
  started = [
    qstar.start("train", path, "--run-dir", tmp_path / "run", environ=environ)
    for path, environ in zip(
      (micro_yaml, other_yaml), qstar.environ_of_hosts(2), strict=True
    )
  ]
  for process in started:
    finished = process.wait()
    assert finished.code == 2
    assert "batch_size is 16 there, 8 here" in finished.err


@pytest.mark.slow
def test_gradients_are_those_of_one_process(qstar, tmp_path):
  """Of the same batch, on four processes and on one."""
  gradients = {}
  for num_hosts in (1, 4):
    path = tmp_path / f"{num_hosts}.npz"
    processes = [
      subprocess.Popen(
        [sys.executable, "tests/distributed/gradients_program.py", path],
        env={
          **os.environ,
          **(environ if num_hosts > 1 else {}),
          "PYTHONPATH": ".",
          "JAX_NUM_CPU_DEVICES": "1",
        },
      )
      for environ in qstar.environ_of_hosts(num_hosts)
    ]
    assert [process.wait(300) for process in processes] == [0] * num_hosts
    gradients[num_hosts] = np.load(path)
  one, four = gradients[1], gradients[4]
  assert len(one.files) == len(four.files) > 5
  for name in one.files:
    assert np.abs(one[name]).max() > 0, name
    np.testing.assert_allclose(four[name], one[name], rtol=0, atol=1e-5)


def test_commands_of_one_host_refuse_several(qstar, micro_run):
  finished = qstar(
    "evaluate",
    micro_run.directory,
    environ={"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0"},
  )
  assert finished.code == 2
  assert "runs on one host, and the environment speaks of 2" in finished.err


@pytest.mark.slow
def test_an_actor_on_two_hosts_plays_for_a_learner_on_two(
  qstar, micro_yaml, tmp_path
):
  run_dir = tmp_path / "run"

  def start(command, *flags):
    return [
      qstar.start(
        command,
        micro_yaml,
        "--run-dir",
        run_dir,
        *("--run-mode", "files", "--evaluation.num-problems", 0, *flags),
        num_devices=2,
        environ=environ,
      )
      for environ in qstar.environ_of_hosts(2)
    ]

  learner = start("learner")
  actors = start("actor", "--actor-id", 3)
  finished = [process.wait() for process in (*learner, *actors)]
  assert [f.code for f in finished] == [0] * 4, finished
  _assert_one_speaks(finished[:2])
  assert "self_play" in finished[2].out and "self_play" not in finished[3].out
  reader = ReplayReader(run_dir / "replay")
  trees = list(reader.read(range(len(reader))))
  assert [tree.sequence for tree in trees] == list(range(len(trees)))
  assert {tree.actor_id for tree in trees} == {3}
  assert len(trees) >= 48
