"""Rounds that a thread plays ahead of who takes them, by so many at most."""

import collections
import threading
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from qstar_jax.training.preemption import Preempted, PreemptionFlag

# Between two looks at whether the taker is asked to stop, in seconds.
_LOOK_SECONDS = 0.2

R = TypeVar("R")


class RoundQueue(Generic[R]):
  """Plays in a thread while its context lasts.

  A round begins when that `max_lead` before it has been taken, with the params
  that were published last. So a taker that publishes before it takes, every
  time, gets a round from params that it had `max_lead` takes ago or later.

  Attributes:
    flag: for `play` to poll; set by `stop`.
  """

  def __init__(
    self,
    play: Callable[[Any, int, int], R],
    *,
    max_lead: int,
    indices: Iterable[int],
  ):
    """Nothing is played before something is published.

    Args:
      play: (params, version, index of the round) -> what is taken; called in
        the thread. May raise Preempted if `flag` is set.
      max_lead: rounds that are being played or wait to be taken, >= 1.
      indices: of the rounds, in order; consumed in the thread, each when the
        round before has been played.
    """
    self.flag = PreemptionFlag()
    self._play = play
    self._max_lead = max_lead
    self._num_taken = 0
    self._rounds: collections.deque[R] = collections.deque()
    self._published: tuple[Any, int] | None = None
    self._error: BaseException | None = None
    self._changed = threading.Condition()
    self._thread = threading.Thread(
      target=self._run, name="self-play", args=(indices,), daemon=True
    )

  def __enter__(self) -> "RoundQueue[R]":
    self._thread.start()
    return self

  def __exit__(self, *error) -> None:
    self.stop()
    self._thread.join()

  def stop(self) -> None:
    """Ends the playing: no round will be taken any more."""
    self.flag.set()
    with self._changed:
      self._changed.notify_all()

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
      IndexError: the rounds are at an end.
    """
    with self._changed:
      while not self._rounds:
        if self._error is not None:
          raise self._error
        check_stop()
        self._changed.wait(_LOOK_SECONDS)
      self._num_taken += 1
      self._changed.notify_all()
      return self._rounds.popleft()

  def _run(self, indices: Iterable[int]) -> None:
    try:
      for num_begun, index in enumerate(indices):
        params, version = self._wait_for_turn(num_begun)
        played = self._play(params, version, index)
        with self._changed:
          self._rounds.append(played)
          self._changed.notify_all()
      raise IndexError("all rounds have been taken")
    except Preempted:
      pass
    except BaseException as error:
      # The taker's to raise: nobody looks at this thread.
      with self._changed:
        self._error = error
        self._changed.notify_all()

  def _wait_for_turn(self, num_begun: int) -> tuple[Any, int]:
    """What was published last, once one more round may begin."""

    def is_turn() -> bool:
      is_near = num_begun < self._num_taken + self._max_lead
      return is_near and self._published is not None

    with self._changed:
      self._changed.wait_for(lambda: self.flag.is_set or is_turn())
      self.flag.check()
      return self._published
