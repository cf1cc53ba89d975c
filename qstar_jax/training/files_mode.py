"""The mode `files`: actors, a learner and evaluations share a directory.

The learner's side. Actors append shards of trees to RUN/replay; the learner
reads those of all, counts each tree once by actor and number, and learns an
iteration when the trees of one more have come. Its checkpoints are what it
publishes. See docs/design/files_mode.md.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import nnx

from qstar_jax.distributed import hosts
from qstar_jax.records import TreeRecord
from qstar_jax.replay import ReplayReader
from qstar_jax.store import files
from qstar_jax.training.progress import Progress
from qstar_jax.training.trainer import Trainer
from qstar_jax.training.waiting import Waiter


class StoredTrees:
  """Takes the trees that actors store; see `TreeSource`."""

  # Each actor has a proposer of its own.
  earlier: nnx.State | None = None

  def __init__(self, trainer: Trainer):
    """Makes the store, which actors may have made already."""
    hosts.on_first(lambda: files.make_folder(trainer.replay_dir))
    self._trainer = trainer
    self._waiter = Waiter(trainer.replay_dir, trainer.flag)
    self._reader = ReplayReader(trainer.replay_dir, skip_damaged=True)
    self._num_damaged = 0
    # What had come before this learner did; None once that is counted.
    self._found: dict[int, int] | None = self._reader.next_sequence

  def __enter__(self) -> "StoredTrees":
    return self

  def __exit__(self, *error) -> None:
    pass

  def publish(self, params: Callable[[], nnx.State], step: int) -> None:
    """Does nothing: actors read checkpoints."""

  def bring(self, progress: Progress, step: int) -> dict[str, Any]:
    """Waits for an iteration's trees; see `TreeSource`."""
    start = time.monotonic()
    config, window = self._trainer.config, self._trainer.window
    wanted = (progress.iteration + 1) * config.self_play.problems_per_iteration
    num_read, seconds_wait = 0, 0.0
    counted_before = window.next_sequence
    while True:
      seconds_wait += self._wait(wanted)
      # The store grows: all hosts are to see the same of it.
      unseen = hosts.on_first(lambda: window.unseen(self._reader))
      num_read += window.take(unseen)
      self._warn_of_damage(step)
      window.expire(step + config.learner.steps_per_iteration - 1)
      if window.metrics(step)["size"]:
        break
      # All are too old, or damaged.
      wanted = sum(window.next_sequence.values()) + 1
    self._warn_of_loss(counted_before, num_read, step)
    counted = dict(sorted(window.next_sequence.items()))
    num_new = sum(counted.values()) - progress.num_trees
    # What is damaged was played too, and what was taken away was counted.
    num_tokens = max(progress.num_tokens, hosts.on_first(self._num_tokens))
    return {
      **_summarise(window.newest(num_read)),
      "new_trees": num_new,
      "actors": list(counted),
      "actor_trees": list(counted.values()),
      **progress.count(num_new, num_tokens - progress.num_tokens),
      "seconds_wait": seconds_wait,
      "seconds_read": time.monotonic() - start - seconds_wait,
    }

  def _wait(self, num_trees: int) -> float:
    """Until so many trees have come since the start; seconds that it took."""
    start = time.monotonic()

    def look() -> bool | None:
      self._reader.refresh()
      stored = self._reader.next_sequence
      counted = self._trainer.window.next_sequence
      come = sum(
        max(stored.get(actor_id, 0), counted.get(actor_id, 0))
        for actor_id in {*stored, *counted}
      )
      self._trainer.reporter.progress(
        "waiting for trees", min(come, num_trees), num_trees
      )
      return True if come >= num_trees else None

    self._waiter.until(
      lambda: hosts.on_first(look),
      f"trees of the actors in {self._trainer.replay_dir}",
    )
    return time.monotonic() - start

  def _warn_of_damage(self, step: int) -> None:
    """Once for what is found damaged or gone."""
    num_new = self._reader.num_damaged - self._num_damaged
    if num_new:
      self._num_damaged += num_new
      *_, (where, what) = self._reader.damaged.items()
      message = f"{num_new} trees cannot be read and are left out: {where}"
      self._trainer.reporter.log(
        {"kind": "warning", "step": step, "message": f"{message} ({what})"}
      )

  def _warn_of_loss(
    self, counted: Mapping[int, int], num_read: int, step: int
  ) -> None:
    """Once, of trees that were stored while no learner ran, and are lost.

    Args:
      counted: for each actor, the first tree that no learner had counted.
      num_read: trees that the window has taken since.
      step: of the learner.
    """
    found, self._found = self._found or {}, None
    num_found = sum(max(0, n - counted.get(i, 0)) for i, n in found.items())
    num_kept = sum(
      counted.get(tree.actor_id, 0) <= tree.sequence < found[tree.actor_id]
      for tree in self._trainer.window.newest(num_read)
      if tree.actor_id in found
    )
    # Of those that cannot be read there is a warning already.
    num_lost = num_found - num_kept - self._num_damaged
    if num_lost > 0:
      message = (
        f"{num_lost} of {num_found} trees that waited for this learner when it "
        "started are not learned from: they are more than the window holds, or "
        "older than replay.max_staleness; raise replay.window_trees or that, "
        "or lower self_play.max_lead"
      )
      self._trainer.reporter.log(
        {"kind": "warning", "step": step, "message": message}
      )

  def _num_tokens(self) -> int:
    """Generated and prefilled by all actors up to their last shards."""
    return sum(
      cursor["progress"].get("num_tokens", 0)
      for cursor in self._reader.cursors.values()
    )

  def state_dict(self) -> dict[str, Any]:
    """Nothing: what was counted is the window's to know."""
    return {}

  def load_state_dict(self, meta: dict[str, Any]) -> None:
    """Nothing to go back to: what actors have stored stays."""

  def start_anew(self) -> None:
    """Nothing to forget."""


def _summarise(records: list[TreeRecord]) -> dict[str, float]:
  """What the learner can tell of new trees."""
  if not records:
    return {}
  return {"solve_rate": float(np.mean([r.final_score for r in records]))}
