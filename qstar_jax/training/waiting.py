"""Waiting for what another process does."""

import sys
import time
from collections.abc import Callable
from typing import TypeVar

from etils import epath

from qstar_jax.distributed import hosts
from qstar_jax.store import files
from qstar_jax.training.preemption import PreemptionFlag

# Between two looks, in seconds. Listing a bucket costs money.
_LOCAL, _BUCKET = 0.5, 10.0

T = TypeVar("T")


class Waiter:
  """Looks again and again, says what it waits for, and can be stopped."""

  def __init__(self, directory: epath.PathLike, flag: PreemptionFlag):
    """Waits for files.

    Args:
      directory: that they are in.
      flag: ends the waiting.
    """
    self._seconds = _LOCAL if files.is_local(directory) else _BUCKET
    self._flag = flag

  def until(self, look: Callable[[], T | None], what: str) -> T:
    """What `look` finds once it is not None.

    Args:
      look: called now and then, with the same answer on all hosts.
      what: is waited for; said once, on standard error, if it is not there yet.

    Raises:
      Preempted: the flag was set.
    """
    is_told = False
    while (found := look()) is None:
      if not is_told and hosts.is_first():
        print(f"waiting for {what}", file=sys.stderr, flush=True)
        is_told = True
      self.pause()
    return found

  def pause(self) -> None:
    """Waits until it is time to look again.

    Raises:
      Preempted: the flag was set.
    """
    # As often on every host: they look for signals together.
    for _ in range(round(self._seconds / _LOCAL)):
      self._flag.check()
      time.sleep(_LOCAL)
    self._flag.check()
