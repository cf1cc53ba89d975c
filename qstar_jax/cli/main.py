"""`qstar COMMAND ...`: finds the command's module and runs it.

Exit codes: 0 done, 1 done with a negative answer, 2 bad configuration or input,
75 preempted and saved, or hosts or bucket cannot be reached: run it again, 130
interrupted, 141 reader of the output gone.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

import qstar_jax
from qstar_jax.distributed import start
from qstar_jax.errors import LostHostError, UserError

# Each is a module of this package with `main(argv: list[str]) -> int`, the exit
# code. It is imported when called: help and typing errors load no JAX.
COMMANDS = {
  "train": "run the loop of self-play and learning that a config describes",
  "actor": "play for a learner in another process, as one of many",
  "learner": "learn from what actors in other processes play",
  "evaluate": "measure a checkpoint with a search on problems",
  "calibrate": "measure what a checkpoint's step scores are worth",
  "solve": "search for the solution of one problem and show its steps",
  "label": "label the steps of a run's search trees, as a dataset",
  "doctor": "check this machine and installation, and say what to fix",
}

# Those that can be one program on several hosts.
_ON_SEVERAL_HOSTS = ("train", "actor", "learner")

_USAGE = f"""\
usage: qstar COMMAND ...

{qstar_jax.__doc__}

commands:
{chr(10).join(f"  {name:<10}{line}" for name, line in COMMANDS.items())}

qstar COMMAND --help tells more; qstar --version prints the version."""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command.

  Args:
    argv: arguments, without the program's name; those of the process if None.

  Returns:
    The exit code.
  """
  command, *arguments = (sys.argv[1:] if argv is None else argv) or [""]
  try:
    code = _run(command, arguments)
    # While a closed pipe can still be told from other failures.
    sys.stdout.flush()
    return code
  except (UserError, LostHostError) as error:
    print(f"qstar {command}: {error}", file=sys.stderr)
    return error.exit_code
  except KeyboardInterrupt:
    print(f"qstar {command}: interrupted", file=sys.stderr)
    return 130
  except BrokenPipeError:
    # The interpreter flushes once more when it exits; let that go nowhere.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def _run(command: str, arguments: list[str]) -> int:
  if command in ("", "-h", "--help"):
    print(_USAGE)
    return 0
  if command == "--version":
    print(f"qstar_jax {qstar_jax.__version__}")
    return 0
  place = start.find_place(os.environ)
  if place is not None and command not in _ON_SEVERAL_HOSTS:
    raise UserError(
      f"runs on one host, and the environment speaks of {place.num_processes}; "
      "unset JAX_COORDINATOR_ADDRESS or TPU_WORKER_HOSTNAMES, or use one of "
      f"{', '.join(_ON_SEVERAL_HOSTS)}"
    )
  if command not in COMMANDS:
    close = difflib.get_close_matches(command, COMMANDS, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(
      f"no such command; {hint}known ones are {', '.join(COMMANDS)}"
    )
  module = importlib.import_module(f"qstar_jax.cli.{command}")
  return module.main(arguments)
