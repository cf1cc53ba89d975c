"""How commands end when they are asked to."""

import os
import sys
from collections.abc import Callable

from qstar_jax.training import preemption

# For the help of commands that can be stopped.
EXIT_CODES = (
  f"Exit codes: 0 done, 2 bad configuration or input, {os.EX_TEMPFAIL} stopped "
  "by SIGTERM or Ctrl-C: run it again to go on."
)


def until_stopped(
  work: Callable[[preemption.PreemptionFlag], int | None], kept: str
) -> int:
  """Runs a command's work, which polls the flag that it is given.

  Args:
    work: returns the exit code; None is 0.
    kept: what is there when SIGTERM or Ctrl-C has ended it, and how to go on.

  Returns:
    The exit code: of the work, or 75 if a signal ended it.
  """
  # Not above: it has been set up by now.
  import jax

  from qstar_jax.distributed import hosts

  with preemption.catch_signals(hosts.AnyHost()) as flag:
    try:
      return work(flag) or 0
    except preemption.Preempted as signal:
      code = os.EX_TEMPFAIL  # 75: preempted and saved
      if hosts.is_first():
        print(f"{signal}: stopped, exit code {code}; {kept}", file=sys.stderr)
      return code
    except jax.errors.JaxRuntimeError as error:
      hosts.raise_if_lost(error)
      raise
