"""Cut at any moment and run again, a run ends as if it had not been cut."""

import json
import random
import signal

import jax
import numpy as np
import pytest
from etils import epath

from qstar_jax import checkpoint as checkpoint_lib
from qstar_jax.distributed.mesh import make_mesh
from qstar_jax.learner.train_step import init_state, make_optimizer
from qstar_jax.replay import ReplayReader
from qstar_jax.replay.codec import TREES
from qstar_jax.store import files
from qstar_jax.store import manifest as manifest_lib

pytest_plugins = ["tests.training.micro_run"]


def _final_checkpoint(run_dir):
  """Every array of the newest checkpoint, and its meta."""
  loaded = checkpoint_lib.load(run_dir)
  config = loaded.config
  optimizer = make_optimizer(config.learner, total_steps=1)
  mesh = make_mesh(config.mesh)
  state = init_state(loaded.params, optimizer, config.learner, mesh)
  with checkpoint_lib.Checkpointer(run_dir, config.checkpoint) as checkpointer:
    state, meta = checkpointer.restore(state)
  return jax.device_get(jax.tree.leaves(state)), meta


def _metrics(run_dir):
  """The records of metrics.jsonl without what depends on the clock."""
  lines = (run_dir / "metrics.jsonl").read_text().splitlines()
  return [
    {
      name: value
      for name, value in json.loads(line).items()
      if "second" not in name and name not in ("time", "minutes")
    }
    for line in lines
  ]


def _assert_same_runs(run_dir, other_dir):
  """Equal in parameters, optimizer, counters, trees and metrics."""
  (arrays, meta), (others, other_meta) = map(
    _final_checkpoint, (run_dir, other_dir)
  )
  for array, other in zip(arrays, others, strict=True):
    assert array.dtype == other.dtype
    assert array.tobytes() == other.tobytes()
  assert meta == other_meta
  # The manifests have the checksum of every shard: the trees are the same.
  manifests = [
    list(manifest_lib.read_all(path / "replay", TREES).values())
    for path in (run_dir, other_dir)
  ]
  assert manifests[0] == manifests[1]
  assert _metrics(run_dir) == _metrics(other_dir)


def test_the_run_itself(micro_run, micro_config):
  """What the other runs are compared with is what the config asks for."""
  config = micro_config
  arrays, meta = _final_checkpoint(micro_run.directory)
  assert all(np.isfinite(array).all() for array in arrays)
  num_trees = config.num_iterations * config.self_play.problems_per_iteration
  assert meta["progress"]["iteration"] == config.num_iterations
  assert meta["progress"]["warm_steps"] == config.warm_start.steps
  assert meta["progress"]["num_trees"] == num_trees
  reader = ReplayReader(micro_run.directory / "replay")
  assert [reader[i].sequence for i in range(len(reader))] == list(
    range(num_trees)
  )
  kinds = [record["kind"] for record in _metrics(micro_run.directory)]
  assert kinds.count("iteration") == config.num_iterations
  assert kinds.count("evaluation") == 2 * 4
  assert micro_run.finished.err == ""


@pytest.fixture
def run_dir(tmp_path):
  return tmp_path / "run"


# What a run may have besides, each with a state or random numbers of its own.
_OPTIONS = {
  "--replay.sampling": "surprise",
  "--replay.max-staleness": 7,
  "--replay.max-reuse": 50,
  "--replay.window-trees": 16,
  "--replay.window-growth": 0.5,
  "--replay.reanalyse-share": 0.25,
  "--curriculum.replay-share": 0.25,
  "--curriculum.proposer-problems": 8,
  "--curriculum.proposer-every-iterations": 1,
  "--warm-start.later-share": 0.25,
  "--checkpoint.every-iterations": 1,
}
_GATE = {
  "--gate.every-iterations": 1,
  "--gate.pool-problems": 8,
  "--gate.num-problems": 8,
  "--gate.max-refusals": 2,
}


@pytest.fixture
def whole_after_kills(qstar, micro_yaml, tmp_path, run_dir):
  """Runs with options, whole and killed twice: they must be the same."""

  def run(options):
    whole = tmp_path / "whole"
    options = [str(part) for option in options.items() for part in option]
    assert qstar("train", micro_yaml, "--run-dir", whole, *options).code == 0
    command = ["train", micro_yaml, "--run-dir", run_dir, "--json", *options]
    for at in (70, 40):
      fault = {
        "folder": str(run_dir / "replay"),
        "at": at,
        "delay": 0.02,
        "signal": signal.SIGKILL,
      }
      finished = qstar(*command, fault=fault)
      assert finished.code == -signal.SIGKILL, finished.err
    assert qstar(*command).code == 0
    _assert_same_runs(run_dir, whole)
    return whole

  return run


def test_killed_with_every_option(whole_after_kills):
  whole = whole_after_kills(_OPTIONS)
  meta = _final_checkpoint(whole)[1]
  assert meta["window"]["next_sequence"] == [[0, 48]]
  # 16 (1 + 0.5 (3^0.75 - 1) / 0.75) = 29.65, less what has become too old.
  assert len(meta["window"]["trees"]) <= 29
  iterations = [r for r in _metrics(whole) if r["kind"] == "iteration"]
  assert [r["reanalysed"] for r in iterations[1:]] == [4, 4]
  assert all("proposed" in record for record in iterations)
  # Those of the iteration before would be 11 steps old at the last of 6.
  assert [r["replay_max_staleness"] for r in iterations] == [5, 5, 5]


def test_killed_behind_a_gate(whole_after_kills):
  whole = whole_after_kills(_GATE)
  # Nothing is ever solved, so nobody wins.
  trials = [r for r in _metrics(whole) if r["kind"] == "trial"]
  assert [r["goes_back"] for r in trials] == [0, 1, 0]
  assert _final_checkpoint(whole)[1]["gate"]["step"] == 10


@pytest.fixture
def train(qstar, micro_yaml, run_dir):
  """Trains on in `run_dir`, until a signal comes if one is to come."""

  def run(number=None, part="", at=0, delay=0.0):
    fault = number and {
      "folder": str(run_dir / part),
      "at": at,
      "delay": delay,
      "signal": number,
    }
    # With --json it shows no closing: that takes time.
    return qstar(
      "train", micro_yaml, "--run-dir", run_dir, "--json", fault=fault
    )

  return run


@pytest.mark.parametrize(
  "seed",
  [
    0,
    1,
    *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 12)),
  ],
)
def test_killed_at_random_moments(train, run_dir, micro_run, seed):
  """SIGKILL while it saves, plays and learns.

  It comes at some operation on files, or some time after it. A save takes
  dozens; a store takes 31 to open and 48 more for the trees of an iteration.
  """
  rng = random.Random(seed)
  for part, first, last, max_delay in [
    ("checkpoints", 1, 150, 0.0),
    ("replay", 32, 127, 0.0),
    ("replay", 32, 83, 0.3),
  ]:
    at, delay = rng.randint(first, last), rng.uniform(0, max_delay)
    finished = train(signal.SIGKILL, part, at, delay)
    assert finished.code == -signal.SIGKILL, finished.err
  finished = train()
  assert finished.code == 0, finished.err
  _assert_same_runs(run_dir, micro_run.directory)


def test_asked_to_stop(train, run_dir, micro_run):
  """SIGTERM in the warm start, Ctrl-C in the second iteration's self-play."""
  for number, part, at in (
    (signal.SIGTERM, "checkpoints", 60),
    (signal.SIGINT, "replay", 100),
  ):
    finished = train(number, part, at)
    assert finished.code == 75, finished.err
    assert finished.err.startswith(number.name)
    assert finished.err.count("\n") == 1
  assert train().code == 0
  _assert_same_runs(run_dir, micro_run.directory)


def _contents(run_dir):
  return {
    path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()
  }


def test_a_finished_run_says_so_and_changes_nothing(
  qstar, micro_yaml, micro_run
):
  before = _contents(micro_run.directory)
  finished = qstar("train", micro_yaml, "--run-dir", micro_run.directory)
  assert finished.code == 0
  assert finished.err == (
    f"{micro_run.directory}: this run is done; for another one use another run "
    "directory\n"
  )
  assert "after self-play" in finished.out
  assert _contents(micro_run.directory) == before


def test_another_config_is_refused(qstar, micro_yaml, micro_run):
  before = _contents(micro_run.directory)
  finished = qstar(
    "train", micro_yaml, "--run-dir", micro_run.directory, "--seed", 5
  )
  assert finished.code == 2
  assert finished.err.startswith("qstar train: ")
  assert "seed is 5, was 0" in finished.err
  assert finished.err.count("\n") == 1
  assert _contents(micro_run.directory) == before


def test_a_second_process_is_refused(qstar, micro_yaml, micro_run):
  before = _contents(micro_run.directory)
  with files.lock(epath.Path(micro_run.directory)):
    # The mesh may be another one, and the config that is stored stays.
    finished = qstar(
      *("train", micro_yaml, "--run-dir", micro_run.directory),
      *("--mesh.data", 1),
    )
  assert finished.code == 2
  assert "another process" in finished.err
  assert finished.err.count("\n") == 1
  assert _contents(micro_run.directory) == before
