"""SIGTERM and Ctrl-C as a flag that long work polls."""

import contextlib
import signal
from collections.abc import Callable, Iterator


class Preempted(Exception):
  """A signal asked the run to stop; what is saved is safe."""


class PreemptionFlag:
  """Set by the first SIGTERM or SIGINT; the second one acts as usual."""

  def __init__(self, any_of: Callable[[bool], bool] = bool):
    """Is not set.

    Args:
      any_of: whether to stop, given whether this process was asked to; see
        `hosts.AnyHost`. By default that is the same.
    """
    self._any_of = any_of
    self._signal: int | None = None
    self._old: dict[int, object] = {}

  def _handle(self, number, frame) -> None:
    del frame
    self.set(number)
    self._restore()

  def set(self, number: int = signal.SIGTERM) -> None:
    """Asks to stop, as a signal of that number does."""
    self._signal = number

  @property
  def is_set(self) -> bool:
    """Whether `check` raises."""
    return self._signal is not None

  def _restore(self) -> None:
    for number, handler in self._old.items():
      signal.signal(number, handler)

  def check(self) -> None:
    """Raises `Preempted` if a signal has come, to any host of the program."""
    if self._any_of(self.is_set):
      raise Preempted(signal.Signals(self._signal or signal.SIGTERM).name)


@contextlib.contextmanager
def catch_signals(
  any_of: Callable[[bool], bool] = bool,
) -> Iterator[PreemptionFlag]:
  """Within it, signals set the flag instead of ending the process.

  Only the main thread may enter.

  Args:
    any_of: see `PreemptionFlag`.
  """
  flag = PreemptionFlag(any_of)
  for number in (signal.SIGTERM, signal.SIGINT):
    flag._old[number] = signal.signal(number, flag._handle)
  try:
    yield flag
  finally:
    flag._restore()
