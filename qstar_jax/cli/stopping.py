"""How commands end when they are asked to."""

import os
import sys
from collections.abc import Callable

from qstar_jax.training import preemption


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
      if hosts.is_first():
        print(f"{signal}: stopped; {kept}", file=sys.stderr)
      return os.EX_TEMPFAIL  # 75: preempted and saved
    except jax.errors.JaxRuntimeError as error:
      hosts.raise_if_lost(error)
      raise
