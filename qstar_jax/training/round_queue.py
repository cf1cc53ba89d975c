"""Rounds that a thread plays ahead of who takes them, by so many at most."""

import collections
import itertools
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from qstar_jax.training.preemption import Preempted, PreemptionFlag

# Between two looks at whether the taker is asked to stop, in seconds.
_LOOK_SECONDS = 0.2

R = TypeVar("R")


class RoundQueue(Generic[R]):
  """Plays in a thread while its context lasts.

  Round i begins when round i - `max_lead` has been taken, with the params that
  were published last. So a taker that publishes before it takes, every time,
  gets round i from params that it had `max_lead` takes ago or later.

  Attributes:
    flag: for `play` to poll; set when the context ends.
  """

  def __init__(
    self,
    play: Callable[[Any, int, int], R],
    *,
    max_lead: int,
    first_index: int = 0,
  ):
    """Nothing is played before something is published.

    Args:
      play: (params, version, index of the round) -> what is taken; called in
        the thread. May raise Preempted if `flag` is set.
      max_lead: rounds that are being played or wait to be taken, >= 1.
      first_index: of the first round.
    """
    self.flag = PreemptionFlag()
    self._play = play
    self._max_lead = max_lead
    self._next_taken = first_index
    self._rounds: collections.deque[R] = collections.deque()
    self._published: tuple[Any, int] | None = None
    self._error: BaseException | None = None
    self._changed = threading.Condition()
    self._thread = threading.Thread(
      target=self._run, name="self-play", args=(first_index,), daemon=True
    )

  def __enter__(self) -> "RoundQueue[R]":
    self._thread.start()
    return self

  def __exit__(self, *error) -> None:
    self.flag.set()
    with self._changed:
      self._changed.notify_all()
    self._thread.join()

  def publish(self, params: Any, version: int) -> None:
    """Rounds that begin from now on are played with these params."""
    with self._changed:
      self._published = (params, version)
      self._changed.notify_all()

  def take(self, check_stop: Callable[[], None]) -> R:
    """The next round, in order; waits for it.

    Args:
      check_stop: called while it waits; may raise.

    Raises:
      Exception: whatever ended the playing.
    """
    with self._changed:
      while not self._rounds:
        if self._error is not None:
          raise self._error
        check_stop()
        self._changed.wait(_LOOK_SECONDS)
      self._next_taken += 1
      self._changed.notify_all()
      return self._rounds.popleft()

  def _run(self, first_index: int) -> None:
    try:
      for index in itertools.count(first_index):
        params, version = self._wait_for_turn(index)
        played = self._play(params, version, index)
        with self._changed:
          self._rounds.append(played)
          self._changed.notify_all()
    except Preempted:
      pass
    except BaseException as error:
      # The taker's to raise: nobody looks at this thread.
      with self._changed:
        self._error = error
        self._changed.notify_all()

  def _wait_for_turn(self, index: int) -> tuple[Any, int]:
    """What was published last, once a round may begin."""

    def is_turn() -> bool:
      is_near = index < self._next_taken + self._max_lead
      return is_near and self._published is not None

    with self._changed:
      self._changed.wait_for(lambda: self.flag.is_set or is_turn())
      self.flag.check()
      return self._published
