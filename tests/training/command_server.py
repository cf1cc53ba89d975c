"""Runs `qstar` commands, each in a fork: imports are paid once.

usage: python command_server.py, with a JSON object per line on standard input:

  argv: arguments of `qstar`.
  output: path; standard output and error go to `output`.out and `output`.err.
  fault: null, or what happens to the process: `delay` seconds after operation
    `at`, from 1, on files below `folder` it sends itself `signal`. 0 seconds is
    at once, before the operation.
  num_devices: null, or how many devices there are instead of one.
  environ: variables to set besides.
  max_file_bytes: null, or how large a file may grow: a full disk.
  is_awaited: if not, the answer is the process's id at once.

or `pid`, of a process that was not waited for. Answers with the exit code per
line, negative if a signal ended the process.
"""

import importlib
import json
import os
import resource
import sys
import threading
import traceback

_FILE_OPERATIONS = {
  "open",
  "os.listdir",
  "os.mkdir",
  "os.remove",
  "os.rename",
  "os.rmdir",
  "os.scandir",
}


class Fault:
  """An audit hook that strikes once."""

  def __init__(self, folder: str, at: int, delay: float, signal: int):
    self._count = 0
    self._folder, self._at = folder, at
    self._delay, self._signal = delay, signal
    self._lock = threading.Lock()

  def __call__(self, event, args):
    if event in _FILE_OPERATIONS and str(args[0]).startswith(self._folder):
      with self._lock:
        self._count += 1
        is_time = self._count == self._at
      if is_time and self._delay:
        timer = threading.Timer(self._delay, self._strike)
        timer.daemon = True
        timer.start()
      elif is_time:
        self._strike()

  def _strike(self):
    os.kill(os.getpid(), self._signal)


def run(job):
  """Runs one command in this process; returns its exit code."""
  for descriptor, suffix in ((1, ".out"), (2, ".err")):
    file = os.open(job["output"] + suffix, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, descriptor)
  if job["max_file_bytes"] is not None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (job["max_file_bytes"], hard))
  os.environ |= job["environ"]
  if job["num_devices"] is not None:
    import jax

    jax.config.update("jax_num_cpu_devices", job["num_devices"])
  if job["fault"] is not None:
    sys.addaudithook(Fault(**job["fault"]))
  from qstar_jax.cli.main import main

  try:
    code = main(job["argv"])
  except SystemExit as exit_request:
    code = exit_request.code
  except BaseException:
    traceback.print_exc()
    code = 1
  sys.stdout.flush()
  sys.stderr.flush()
  return code


def serve():
  for name in ("actor", "evaluate", "learner", "solve", "train"):
    importlib.import_module(f"qstar_jax.cli.{name}")
  for name in ("job", "opened", "terminal_tree", "tree_export"):
    importlib.import_module(f"qstar_jax.evaluation.{name}")
  for name in ("actor_job", "closing", "follow", "loop", "reporting"):
    importlib.import_module(f"qstar_jax.training.{name}")
  for line in sys.stdin:
    job = json.loads(line)
    pid = job["pid"] if "pid" in job else os.fork()
    if not pid:
      os._exit(run(job))
    if job.get("is_awaited", True):
      _, status = os.waitpid(pid, 0)
      pid = os.waitstatus_to_exitcode(status)
    print(pid, flush=True)


if __name__ == "__main__":
  serve()
