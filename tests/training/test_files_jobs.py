"""Actors, a learner and a follower as processes that share a directory."""

import json
import random
import signal
import time

import pytest

from qstar_jax import checkpoint as checkpoint_lib
from qstar_jax.replay import ReplayReader

pytest_plugins = ["tests.training.micro_run"]

_TREES, _SHARD = 16, 6  # Of an iteration, and of a shard.


# Accepts every line, as `tests.training.generous` says.
_GENEROUS = "tests.training.generous:Generous"


class Jobs:
  """The jobs of one run, by name; each may be started again."""

  def __init__(self, qstar, config, run_dir, *options):
    self._qstar = qstar
    problems = run_dir.parent / "problems.txt"
    problems.write_text("1 2 3 -> 6\n4 5 6 -> 7\n")
    run = (config, "--run-dir", run_dir, "--json", *options)
    self._commands = {
      "learner": ("learner", *run),
      "actor 0": ("actor", *run),
      "actor 3": ("actor", *run, "--actor-id", 3),
      "follower": (
        *("evaluate", run_dir, "--follow", "--json", "--searcher", "greedy"),
        *("--problems", problems, "--domain", _GENEROUS),
      ),
    }
    self.names = list(self._commands)
    self.started = {}

  def start(self, *names, fault=None):
    for name in names:
      command = self._commands[name]
      self.started[name] = self._qstar.start(*command, fault=fault)

  def strike(self, name, number):
    """Sends a signal; how the job ended, if it had not done so before."""
    self.started[name].signal(number)
    return self.started.pop(name).wait()

  def command(self, name):
    return self._commands[name]

  def wait(self):
    """How all of them ended."""
    return {name: self.started.pop(name).wait() for name in [*self.started]}


@pytest.fixture
def run_dir(tmp_path):
  return tmp_path / "run"


@pytest.fixture
def jobs(qstar, micro_yaml, run_dir, request):
  """The jobs of a run, with options if the test has any."""
  options = getattr(request, "param", ())
  jobs = Jobs(qstar, micro_yaml, run_dir, *options)
  yield jobs
  for job in jobs.started.values():
    try:
      job.signal(signal.SIGKILL)
    except ProcessLookupError:
      continue
    job.wait()


def _records(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def _assert_whole(run_dir, num_iterations):
  """What the log says was counted is in the store, each tree once."""
  reader = ReplayReader(run_dir / "replay")
  stored = {}
  for record in reader:
    stored.setdefault(record.actor_id, []).append(record.sequence)
  for sequences in stored.values():
    assert sequences == list(range(len(sequences)))
  log = [
    r for r in _records(run_dir / "metrics.jsonl") if r["kind"] == "iteration"
  ]
  assert [r["iteration"] for r in log] == list(range(1, num_iterations + 1))
  total, counted = 0, {}
  for record in log:
    assert not record.get("message")
    now = dict(zip(record["actors"], record["actor_trees"], strict=True))
    new = sum(now.values()) - sum(counted.values())
    assert all(now[actor] >= count for actor, count in counted.items())
    total += record["new_trees"]
    assert record["new_trees"] == new
    assert total == record["trees"] >= record["iteration"] * _TREES
    counted = now
  for actor, count in counted.items():
    assert count <= len(stored[actor])
  # No actor was further ahead than one iteration, and the shard it was at.
  assert sum(map(len, stored.values())) <= total + _TREES + 2 * _SHARD
  meta = checkpoint_lib.latest_meta(run_dir)
  assert dict(meta["window"]["next_sequence"]) == counted
  assert meta["progress"]["num_trees"] == total
  assert meta["progress"]["iteration"] == num_iterations


def _assert_followed(run_dir):
  """Every result is of a step, and the last one is there."""
  newest = checkpoint_lib.latest_meta(run_dir)["step"]
  marks = sorted((run_dir / "evaluation").glob("step_*.json"))
  found = [json.loads(path.read_text()) for path in marks]
  for of_step in found:
    (row,) = of_step["results"]
    assert (row["problems"], row["top1"]) == (2, 1.0)
    assert row["checkpoint_step"] == of_step["step"]
  steps = [of_step["step"] for of_step in found]
  assert steps[-1] == newest
  assert len(set(steps)) == len(steps)


def _wait_for(condition, what, job):
  for _ in range(600):
    if condition():
      return
    time.sleep(0.1)
  pytest.fail(f"no {what} in a minute: {job.err()!r}")


def _wait_for_words(job, words):
  _wait_for(lambda: words in job.err(), repr(words), job)


def _metrics_of(run_dir, actor):
  return run_dir / "actors" / f"actor_{actor:05d}" / "metrics.jsonl"


def test_a_run_of_jobs(qstar, jobs, run_dir, micro_config):
  """They wait for one another, and go on when they were asked to stop."""
  jobs.start("actor 0", "follower")
  _wait_for_words(jobs.started["actor 0"], "waiting for params of the learner")
  refused = qstar(*jobs.command("actor 0"))
  assert refused.code == 2
  assert refused.err.startswith("qstar actor: --actor-id 0: ")
  finished = jobs.strike("actor 0", signal.SIGINT)
  assert finished.code == 75, finished.err
  jobs.start("learner")
  _wait_for_words(jobs.started["learner"], "waiting for trees of the actors")
  finished = jobs.strike("learner", signal.SIGTERM)
  assert finished.code == 75, finished.err
  assert "SIGTERM: stopped, exit code 75; what is saved in" in finished.err
  # One after the other, or the quicker one may have played the whole run.
  fault = {
    "folder": str(run_dir / "replay" / "actor_00003"),
    "at": 70,
    "delay": 0,
    "signal": signal.SIGKILL,
  }
  jobs.start("learner")
  jobs.start("actor 3", fault=fault)
  finished = jobs.started.pop("actor 3").wait()
  assert finished.code == -signal.SIGKILL, finished.err
  jobs.start("actor 0")
  _wait_for(_metrics_of(run_dir, 0).exists, "play", jobs.started["actor 0"])
  jobs.start("actor 3")
  ended = jobs.wait()
  for name, finished in ended.items():
    assert finished.code == 0, f"{name}: {finished.err}"
  assert ended["follower"].err.startswith("waiting for a run in ")
  assert not any("WARNING" in finished.err for finished in ended.values())
  _assert_whole(run_dir, micro_config.num_iterations)
  _assert_followed(run_dir)
  for actor in (0, 3):
    log = _records(_metrics_of(run_dir, actor))
    assert {record["kind"] for record in log} == {"self_play"}
    assert max(record["logprob_drift"] for record in log) < 1e-4


_ITERATIONS = 30  # They last longer than the kills.


@pytest.mark.slow
@pytest.mark.parametrize(
  "jobs", [("--num-iterations", _ITERATIONS)], indirect=True
)
def test_killed_and_started_again(jobs, run_dir):
  """Twenty times, whoever it hits, at any moment."""
  rng = random.Random(0)
  jobs.start(*jobs.names)
  for _ in range(20):
    time.sleep(rng.uniform(0.2, 6.0))
    name = rng.choice(jobs.names)
    finished = jobs.strike(name, signal.SIGKILL)
    assert finished.code == -signal.SIGKILL, f"{name}: {finished.err}"
    jobs.start(name)
  for name, finished in jobs.wait().items():
    assert finished.code == 0, f"{name}: {finished.err}"
  _assert_whole(run_dir, _ITERATIONS)
  _assert_followed(run_dir)
