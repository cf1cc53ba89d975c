"""A pytest plugin: `qstar` commands, and a run small enough for a test."""

import dataclasses
import itertools
import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest
import yaml

from qstar_jax import config as config_lib
from qstar_jax import configuration
from qstar_jax.distributed.start import ADDRESS, NUM_PROCESSES, PROCESS_ID

# Wide enough for problems of Game of 24 too.
CONFIG = config_lib.ExperimentConfig(
  name="micro",
  num_iterations=3,
  domain=config_lib.DomainConfig(
    name="countdown",
    options={"min_number": 1, "max_number": 9, "max_target": 60},
    min_difficulty=2,
    max_difficulty=2,
    held_out_problems=16,
  ),
  text=config_lib.TextConfig(
    vocabulary="bytes",
    max_prompt_tokens=18,
    max_step_tokens=26,
    max_steps=3,
  ),
  model=config_lib.ModelConfig(
    num_layers=1,
    model_dim=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    ffn_dim=32,
  ),
  search=config_lib.SearchConfig(
    num_candidates=4, num_simulations=2, terminal_value="outcome"
  ),
  self_play=config_lib.SelfPlayConfig(problems_per_iteration=16, batch_size=8),
  replay=config_lib.ReplayConfig(window_trees=32, max_reuse=4, shard_trees=6),
  learner=config_lib.LearnerConfig(
    steps_per_iteration=6,
    batch_size=8,
    optimizer="muon",
    warmup_steps=2,
    ema_decay=0.9,
    light_steps=1.0,  # Few trees are to fill six batches.
  ),
  warm_start=config_lib.WarmStartConfig(steps=10),
  evaluation=config_lib.EvaluationConfig(
    every_iterations=2, num_problems=8, batch_size=8
  ),
)


@dataclasses.dataclass(frozen=True)
class Finished:
  """How a command ended.

  Attributes:
    code: exit code; negative if a signal ended it.
    out: what it wrote to standard output.
    err: to standard error.
  """

  code: int
  out: str
  err: str


@dataclasses.dataclass(frozen=True)
class Started:
  """A command that runs beside others.

  Attributes:
    qstar: that started it.
    pid: of its process.
    output: path of what it writes, without `.out` or `.err`.
  """

  qstar: "Qstar"
  pid: int
  output: str

  def err(self) -> str:
    """What it has written to standard error by now."""
    path = pathlib.Path(self.output + ".err")
    return path.read_text() if path.exists() else ""

  def signal(self, number) -> None:
    os.kill(self.pid, number)

  def wait(self) -> Finished:
    return self.qstar.wait(self)


class Qstar:
  """Runs `qstar` commands, each in a process of its own, on one device."""

  def __init__(self, scratch: pathlib.Path):
    self._outputs = (str(scratch / str(i)) for i in itertools.count())
    self._server = subprocess.Popen(
      [sys.executable, pathlib.Path(__file__).with_name("command_server.py")],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=pathlib.Path(__file__).parents[2],
      env={**os.environ, "PYTHONPATH": ".", "JAX_NUM_CPU_DEVICES": "1"},
    )

  def __call__(self, *argv, **options) -> Finished:
    """Runs a command to its end; see `command_server` for the options."""
    job = self._job(argv, **options)
    return self._finished(self._ask(job), job["output"])

  def start(self, *argv, **options) -> "Started":
    """Starts a command that runs beside others; see `command_server`."""
    job = self._job(argv, **options)
    pid = self._ask({**job, "is_awaited": False})
    return Started(self, pid, job["output"])

  def wait(self, started: "Started") -> Finished:
    """Waits for the end of a command that was started."""
    return self._finished(self._ask({"pid": started.pid}), started.output)

  @staticmethod
  def environ_of_hosts(num_hosts) -> list[dict[str, str]]:
    """Variables of the processes of one program."""
    with socket.create_server(("localhost", 0)) as server:
      port = server.getsockname()[1]
    return [
      {
        ADDRESS: f"localhost:{port}",
        NUM_PROCESSES: str(num_hosts),
        PROCESS_ID: str(i),
      }
      for i in range(num_hosts)
    ]

  def _job(
    self, argv, fault=None, num_devices=None, max_file_bytes=None, environ=None
  ):
    return {
      "argv": list(map(str, argv)),
      "output": next(self._outputs),
      "fault": fault,
      "num_devices": num_devices,
      "max_file_bytes": max_file_bytes,
      "environ": environ or {},
    }

  def _ask(self, job) -> int:
    self._server.stdin.write(json.dumps(job) + "\n")
    self._server.stdin.flush()
    return int(self._server.stdout.readline())

  def _finished(self, code, output) -> Finished:
    texts = (
      pathlib.Path(output + suffix).read_text() for suffix in (".out", ".err")
    )
    return Finished(code, *texts)

  def close(self):
    self._server.stdin.close()
    self._server.wait()
    self._server.stdout.close()


@pytest.fixture(scope="session")
def qstar(tmp_path_factory):
  """Runs a `qstar` command: see `Qstar`."""
  runner = Qstar(tmp_path_factory.mktemp("qstar"))
  yield runner
  runner.close()


@pytest.fixture(scope="session")
def micro_config():
  """The config of the small run."""
  return CONFIG


@pytest.fixture(scope="session")
def micro_yaml(tmp_path_factory):
  """`CONFIG` as a file."""
  path = tmp_path_factory.mktemp("config") / "micro.yaml"
  path.write_text(yaml.safe_dump(configuration.to_json(CONFIG)))
  return path


@dataclasses.dataclass(frozen=True)
class MicroRun:
  """The run of `CONFIG`, never interrupted. Not to be changed.

  Attributes:
    directory: of the run.
    finished: how the command ended.
  """

  directory: pathlib.Path
  finished: Finished


@pytest.fixture(scope="session")
def micro_run(qstar, micro_yaml, tmp_path_factory):
  """A finished run: see `MicroRun`."""
  directory = tmp_path_factory.mktemp("run") / "micro"
  finished = qstar("train", micro_yaml, "--run-dir", directory)
  assert finished.code == 0, finished.err
  return MicroRun(directory, finished)
