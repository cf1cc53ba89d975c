"""The window: which trees the learner samples, and how often."""

import collections
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from qstar_jax.config import ReplayConfig
from qstar_jax.errors import UserError
from qstar_jax.records import TreeRecord
from qstar_jax.replay import sampling
from qstar_jax.replay.reader import ReplayReader


class Unseen(NamedTuple):
  """What has come to a store since a window saw it last.

  Attributes:
    records: the newest trees of it.
    next_sequence: for each actor, the first sequence that has not come yet.
  """

  records: list[TreeRecord]
  next_sequence: dict[int, int]


@dataclasses.dataclass
class _Entry:
  """One tree of the window.

  Attributes:
    actor_id: who made it.
    sequence: its number.
    record: the tree; None once it is retired or if its shard is damaged.
    prompt: of its problem; None if its shard is damaged.
    uses: times it was sampled.
    priority: of the record, >= 0.
  """

  actor_id: int
  sequence: int
  record: TreeRecord | None = None
  prompt: str | None = None
  uses: int = 0
  priority: float = 0.0


class ReplayWindow:
  """The newest trees, in memory, each sampled at most so often.

  Everything that a sample depends on is in `state_dict`: a window loaded from
  it samples what this one would have.
  """

  def __init__(
    self,
    config: ReplayConfig,
    *,
    seed: int,
    priority_fn: Callable[[TreeRecord], float] | None = None,
  ):
    """An empty window.

    Args:
      config: how much it holds, and what of that it samples.
      seed: of the sampling, >= 0.
      priority_fn: of a tree, >= 0; a function of the record alone, called when
        it comes. None samples uniformly.
    """
    self._config = config
    self._priority_fn = priority_fn
    self._entries: collections.deque[_Entry] = collections.deque()
    self._next_sequence: dict[int, int] = {}
    self._num_retired = 0
    self._rng = np.random.default_rng(seed)

  def add(self, record: TreeRecord) -> bool:
    """Takes the newest tree; False if it, or a later of its actor, came before.

    A tree is counted once, however often it is offered.
    """
    is_new = self._take(record)
    self._drop_oldest()
    return is_new

  def update(self, reader: ReplayReader) -> int:
    """Adds what the store holds and the window has not seen.

    Returns:
      The number of trees added.

    Raises:
      UserError: as `unseen`.
    """
    return self.take(self.unseen(reader))

  def unseen(self, reader: ReplayReader) -> Unseen:
    """What the store holds and the window has not seen.

    Only as many trees are read as the window holds.

    Raises:
      UserError: as `ReplayReader.refresh` and `ReplayReader.read`.
    """
    reader.refresh()
    unseen = reader.since(self._next_sequence)
    num_trees = sum((self._next_sequence | reader.next_sequence).values())
    newest = unseen[-sampling.window_size(num_trees, self._config) :]
    return Unseen(list(reader.read(newest)), dict(reader.next_sequence))

  def take(self, unseen: Unseen) -> int:
    """Adds what `unseen` found; the number of trees added."""
    num_added = sum(map(self._take, unseen.records))
    # Trees that were passed over are seen too, or they would come as new ones.
    for actor_id, sequence in unseen.next_sequence.items():
      seen = self._next_sequence.get(actor_id, 0)
      self._next_sequence[actor_id] = max(seen, sequence)
    self._drop_oldest()
    return num_added

  @property
  def next_sequence(self) -> dict[int, int]:
    """For each actor, the first sequence that has not come yet."""
    return dict(self._next_sequence)

  def newest(self, num_trees: int) -> list[TreeRecord]:
    """The trees that came last; fewer if fewer can be sampled."""
    live = self._live()
    return [entry.record for entry in live[max(0, len(live) - num_trees) :]]

  def expire(self, params_version: int) -> None:
    """Drops the trees that are more than `max_staleness` versions old.

    Args:
      params_version: the newest that will learn from what is sampled next.
    """
    if self._config.max_staleness == 0:
      return
    oldest = params_version - self._config.max_staleness
    self._entries = collections.deque(
      entry
      for entry in self._entries
      if entry.record is None or entry.record.params_version >= oldest
    )

  def sample(self, num_trees: int) -> list[TreeRecord]:
    """Different trees, drawn one after another from those not retired.

    Uniformly, or by their priorities: see `ReplayConfig.sampling`.

    Args:
      num_trees: wanted, >= 0.

    Returns:
      `num_trees` trees, or all that there are if they are fewer, in random
      order. Empty when the window is empty or every tree in it is retired.
    """
    live = self._live()
    chosen = self._rng.choice(
      len(live),
      size=min(num_trees, len(live)),
      replace=False,
      p=self._probabilities(live),
    )
    records = [live[index].record for index in chosen]
    for index in chosen:
      live[index].uses += 1
      if live[index].uses >= self._config.max_reuse:
        live[index].record = None
        self._num_retired += 1
    return records

  def peek(self, num_trees: int, rng: np.random.Generator) -> list[TreeRecord]:
    """Different trees, drawn uniformly, which does not count as a use.

    Args:
      num_trees: wanted, >= 0.
      rng: consumed; the window's own is left alone.

    Returns:
      As many trees, or all that can be sampled if they are fewer.
    """
    live = self._live()
    size = min(num_trees, len(live))
    return [
      live[index].record for index in rng.choice(len(live), size, replace=False)
    ]

  def draw_prompts(self, num_trees: int, rng: np.random.Generator) -> list[str]:
    """Problems of different trees of the window, retired or not.

    Args:
      num_trees: wanted, >= 0.
      rng: consumed; the window's own is left alone.

    Returns:
      The prompts of as many trees, or of all that there are if they are fewer.
    """
    prompts = [e.prompt for e in self._entries if e.prompt is not None]
    size = min(num_trees, len(prompts))
    return [prompts[i] for i in rng.choice(len(prompts), size, replace=False)]

  def metrics(self, params_version: int) -> dict[str, float]:
    """What to log.

    Args:
      params_version: as of `expire`.

    Returns:
      size: trees that can be sampled; mean_reuse: times a tree of the window
      was sampled, retired ones included; retired: trees retired since the
      start; mean_staleness, max_staleness: versions between that and
      the trees that can be sampled. 0 where there is nothing.
    """
    ages = [params_version - e.record.params_version for e in self._live()]
    return {
      "size": float(len(ages)),
      "mean_reuse": _mean([entry.uses for entry in self._entries]),
      "retired": float(self._num_retired),
      "mean_staleness": _mean(ages),
      "max_staleness": float(max(ages, default=0)),
    }

  def state_dict(self) -> dict[str, Any]:
    """Everything but the trees themselves. JSON-able."""
    return {
      "rng": self._rng.bit_generator.state,
      "num_retired": self._num_retired,
      "next_sequence": [list(item) for item in self._next_sequence.items()],
      "trees": [[e.actor_id, e.sequence, e.uses] for e in self._entries],
    }

  def load_state_dict(
    self, state: dict[str, Any], reader: ReplayReader
  ) -> None:
    """Makes the window what it was at `state_dict`; reads its trees again.

    Args:
      state: what `state_dict` returned, also after a trip through JSON.
      reader: of the store that the trees are in.

    Raises:
      UserError: the store lacks a tree of the window, or its shard is damaged,
        and the reader does not skip those.
    """
    self._rng.bit_generator.state = state["rng"]
    self._num_retired = state["num_retired"]
    self._next_sequence = dict(state["next_sequence"])
    self._entries.clear()
    self._entries.extend(
      _Entry(actor_id, sequence, uses=uses)
      for actor_id, sequence, uses in state["trees"]
    )
    by_key = {
      (entry.actor_id, entry.sequence): entry for entry in self._entries
    }
    for record in reader.read(_indices(reader, by_key)):
      entry = by_key[record.actor_id, record.sequence]
      entry.prompt = record.prompt
      if entry.uses < self._config.max_reuse:
        entry.record, entry.priority = record, self._priority(record)

  def _take(self, record: TreeRecord) -> bool:
    """As `add`, but the window may hold too much afterwards."""
    if record.sequence < self._next_sequence.get(record.actor_id, 0):
      return False
    self._next_sequence[record.actor_id] = record.sequence + 1
    self._entries.append(
      _Entry(
        record.actor_id,
        record.sequence,
        record,
        record.prompt,
        priority=self._priority(record),
      )
    )
    return True

  def _drop_oldest(self) -> None:
    # Sequences run from 0: these are all the trees there have been.
    num_trees = sum(self._next_sequence.values())
    while len(self._entries) > sampling.window_size(num_trees, self._config):
      self._entries.popleft()

  def _priority(self, record: TreeRecord) -> float:
    return 0.0 if self._priority_fn is None else self._priority_fn(record)

  def _probabilities(self, live: list[_Entry]) -> np.ndarray | None:
    """Of each entry to be drawn first; None if they are equal."""
    if self._priority_fn is None or not live:
      return None
    priorities = np.array([entry.priority for entry in live])
    return sampling.mixed_with_uniform(
      priorities**self._config.priority_exponent, self._config.uniform_share
    )

  def _live(self) -> list[_Entry]:
    return [entry for entry in self._entries if entry.record is not None]


def _indices(
  reader: ReplayReader, keys: Iterable[tuple[int, int]]
) -> list[int]:
  """Where trees stand; those that are gone are left out if the reader may."""
  indices = []
  for actor_id, sequence in keys:
    try:
      indices.append(reader.index(actor_id, sequence))
    except KeyError:
      if not reader.skip_damaged:
        raise UserError(
          f"The replay store lacks tree {sequence} of actor {actor_id}, which "
          "the checkpoint's window holds: restore the store that belongs to "
          "the checkpoint, or start a new run directory."
        ) from None
  return indices


def _mean(values: list[int]) -> float:
  return float(np.mean(values)) if values else 0.0
