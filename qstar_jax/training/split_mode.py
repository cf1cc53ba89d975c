"""The mode `split`: a thread plays on devices of its own while one learns.

Which params play which tree depends on the clock, so such a run is not
repeatable; every tree is counted once all the same, and a run that was cut goes
on from its newest checkpoint.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from flax import nnx

from qstar_jax.replay import (
  EMPTY_CURSOR,
  ReplayReader,
  ReplayWindow,
  ReplayWriter,
)
from qstar_jax.training.progress import Progress
from qstar_jax.training.round_queue import RoundQueue
from qstar_jax.training.self_play import Round, SelfPlay
from qstar_jax.training.trainer import Trainer


class _Notes:
  """Stands for the reporter, which is the learner's thread's alone."""

  def __init__(self):
    self._records: list[dict[str, Any]] = []

  def log(self, record: dict[str, Any]) -> None:
    self._records.append(record)

  def progress(self, *_) -> None:
    pass

  def take(self) -> list[dict[str, Any]]:
    """What was logged since the last call."""
    records, self._records = self._records, []
    return records


class _Delivery(NamedTuple):
  """A round, and what was to be logged while it was played."""

  round: Round
  notes: list[dict[str, Any]]


class Split:
  """Takes the rounds of an actor thread; see `TreeSource`.

  The thread has a window, a curriculum and a proposer of its own.
  """

  # The proposer starts anew with the first params that are published.
  earlier: nnx.State | None = None

  def __init__(self, trainer: Trainer):
    """Opens the store.

    Raises:
      UserError: another process runs in the run directory.
    """
    self._trainer = trainer
    self._writer = ReplayWriter(
      trainer.replay_dir, shard_trees=trainer.config.replay.shard_trees
    )
    self._stack = contextlib.ExitStack()
    self._stack.callback(self._writer.close)
    self._queue: RoundQueue[_Delivery] | None = None
    self._curriculum: dict[str, Any] | None = None

  def __enter__(self) -> "Split":
    return self

  def __exit__(self, *error) -> None:
    self._stack.close()

  def publish(self, params: Callable[[], nnx.State], step: int) -> None:
    """See `TreeSource`: once every so many iterations."""
    config, progress = self._trainer.config, self._trainer.progress
    is_first = self._queue is None
    if not is_first and progress.is_done(config):
      self._queue.stop()
      return
    period = config.self_play.publish_every_iterations
    if not is_first and progress.iteration % period:
      return
    placed = self._trainer.actor_setup.place(params())
    if is_first:
      self._queue = self._stack.enter_context(self._start(placed))
    self._queue.publish(placed, step)

  def _start(self, params: nnx.State) -> RoundQueue[_Delivery]:
    """The actor, as it goes on from where the run stands."""
    trainer = self._trainer
    config, progress = trainer.config, trainer.progress
    first_index, first_sequence = progress.iteration, progress.num_trees
    num_plays = config.self_play.problems_per_iteration
    num_tokens = progress.num_tokens
    notes = _Notes()

    def needed() -> Iterator[int]:
      """Rounds up to the bounds of the config, except that of time."""
      for index in range(first_index, config.num_iterations):
        if 0 < config.max_tokens <= num_tokens:
          return
        yield index

    def play(params, version, index) -> _Delivery:
      nonlocal num_tokens
      played = self_play.play(
        params,
        params_version=version,
        step=version,
        index=index,
        first_sequence=first_sequence + (index - first_index) * num_plays,
        num_plays=num_plays,
      )
      num_tokens += played.tokens
      return _Delivery(played, notes.take())

    queue = RoundQueue(
      play, max_lead=config.self_play.max_lead, indices=needed()
    )
    window = ReplayWindow(config.replay, seed=config.seed)
    window.update(ReplayReader(trainer.replay_dir))
    self_play = SelfPlay(trainer.actor_setup, params, window, notes, queue.flag)
    if self._curriculum is not None:
      self_play.curriculum.load_state_dict(self._curriculum)
    return queue

  def bring(self, progress: Progress, step: int) -> dict[str, Any]:
    """Takes a round, and waits for it if need be; see `TreeSource`."""
    start = time.monotonic()
    trainer = self._trainer
    trainer.reporter.progress("waiting for trees", 0, 1)
    played, notes = self._queue.take(trainer.flag.check)
    seconds = time.monotonic() - start
    for note in notes:
      trainer.reporter.log({**note, "step": step})
    for record in played.records:
      self._writer.append(record)
      trainer.window.add(record)
    self._writer.flush()
    self._curriculum = played.curriculum
    # The actor's time is not a part of the iteration's.
    metrics = {
      f"actor_{name}" if name.startswith("seconds_") else name: value
      for name, value in played.metrics.items()
    }
    counts = progress.count(len(played.records), played.tokens)
    return counts | metrics | {"seconds_wait": seconds}

  def state_dict(self) -> dict[str, Any]:
    """See `TreeSource`: of the rounds that were taken."""
    return {
      "replay": dict(self._writer.cursor),
      "curriculum": self._curriculum,
    }

  def load_state_dict(self, meta: dict[str, Any]) -> None:
    """See `TreeSource`."""
    self._writer.truncate(meta["replay"])
    self._curriculum = meta["curriculum"]

  def start_anew(self) -> None:
    """See `TreeSource`."""
    self._writer.truncate(EMPTY_CURSOR)
