"""Reads a replay store: every actor's trees, each once and checked."""

import bisect
import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from array_record.python import array_record_module
from etils import epath

from qstar_jax.errors import UserError
from qstar_jax.records import TreeRecord
from qstar_jax.replay import codec, files
from qstar_jax.replay import manifest as manifest_lib

# An open shard costs about 32 kB; opening one reads all of it.
_MAX_OPEN_SHARDS = 64


class DamagedShardError(UserError):
  """A shard that a manifest lists is missing, cut or changed."""


@dataclasses.dataclass(frozen=True)
class _Segment:
  """The rows of a shard that the reader lists: those not in a shard before.

  Attributes:
    path: of the shard.
    shard: its manifest entry.
    first_row: row of the shard's first tree that is listed; the rest follow.
    start: index that the reader gives to that tree.
  """

  path: epath.Path
  shard: manifest_lib.Shard
  first_row: int
  start: int

  @property
  def first_sequence(self) -> int:
    return self.shard.first_sequence + self.first_row


class ReplayReader:
  """The trees of every actor of a store, oldest first, each counted once.

  Actors are merged by params version, then by sequence. `refresh` puts what has
  come since at the end, so a tree keeps its index. Trees are read from disk
  when asked for, and a shard is held against its manifest entry whenever it is
  opened. Writers may go on meanwhile: what they list is whole.

  Attributes:
    damaged: what is wrong with each shard found damaged so far, by path.
    num_damaged: trees in those shards.
  """

  def __init__(self, directory: epath.PathLike, *, skip_damaged: bool = False):
    """Lists the store.

    Args:
      directory: the one given to the writers.
      skip_damaged: iterate past damaged shards instead of raising.

    Raises:
      UserError: the directory is missing or is no replay store, or a manifest
        is damaged or of another schema version.
    """
    self._directory = epath.Path(directory)
    self._skip_damaged = skip_damaged
    self._listed: dict[str, tuple[manifest_lib.Shard, ...]] = {}
    self._segments: list[_Segment] = []
    self._segments_by_actor: dict[int, list[_Segment]] = {}
    self._num_trees = 0
    self._open_shards: dict[epath.Path, Any] = {}
    self.damaged: dict[str, str] = {}
    self.num_damaged = 0
    self.refresh()

  def refresh(self) -> int:
    """Lists the trees that came since; returns how many.

    Raises:
      UserError: as the constructor, or the store was truncated meanwhile.
    """
    manifests = manifest_lib.read_all(self._directory)
    found = []
    for folder, manifest in manifests.items():
      listed = self._listed.get(folder.name, ())
      if manifest.shards[: len(listed)] != listed:
        raise UserError(
          f"{folder} was truncated while it was being read: open it again."
        )
      # Versions fall when a learner rolls back; an actor's order must not.
      versions = itertools.accumulate(
        (shard.max_params_version for shard in manifest.shards), max
      )
      found += [
        (version, shard.first_sequence, manifest.actor_id, folder, shard)
        for shard, version in zip(manifest.shards, versions, strict=True)
      ][len(listed) :]
    old_num_trees = self._num_trees
    for _, _, actor_id, folder, shard in sorted(found, key=lambda f: f[:4]):
      self._list(actor_id, folder / shard.file, shard)
    self._listed = {path.name: m.shards for path, m in manifests.items()}
    return self._num_trees - old_num_trees

  @property
  def next_sequence(self) -> dict[int, int]:
    """For each actor, the first sequence that is not listed yet."""
    return {
      actor_id: segments[-1].shard.last_sequence + 1
      for actor_id, segments in self._segments_by_actor.items()
    }

  def __len__(self) -> int:
    return self._num_trees

  def __getitem__(self, index: int) -> TreeRecord:
    """The tree at `index`, negative ones counting from the end.

    Raises:
      IndexError: there is none.
      DamagedShardError: its shard is damaged.
    """
    index = range(self._num_trees)[index]
    after = bisect.bisect(self._segments, index, key=lambda item: item.start)
    segment = self._segments[after - 1]
    row = index - segment.start + segment.first_row
    return codec.decode(self._example(segment, row))

  def __iter__(self) -> Iterator[TreeRecord]:
    return self.read(range(self._num_trees))

  def read(self, indices: Iterable[int]) -> Iterator[TreeRecord]:
    """The trees at `indices`, in that order.

    Raises:
      DamagedShardError: a shard is damaged and `skip_damaged` is not set. If it
        is, the shard's trees are left out and counted in `num_damaged`.
    """
    for index in indices:
      try:
        record = self[index]
      except DamagedShardError:
        if not self._skip_damaged:
          raise
      else:
        yield record

  def index(self, actor_id: int, sequence: int) -> int:
    """Where the tree (actor_id, sequence) stands.

    Raises:
      KeyError: the store does not hold it.
    """
    segments = self._segments_by_actor.get(actor_id, [])
    after = bisect.bisect(
      segments, sequence, key=lambda item: item.first_sequence
    )
    if after == 0 or sequence > segments[after - 1].shard.last_sequence:
      raise KeyError((actor_id, sequence))
    segment = segments[after - 1]
    return segment.start + sequence - segment.first_sequence

  def since(self, next_sequence: Mapping[int, int]) -> list[int]:
    """Indices, ascending, of the trees that a former reading had not reached.

    Args:
      next_sequence: the first sequence not reached, by actor; 0 for the rest.
    """
    indices = []
    for actor_id, segments in self._segments_by_actor.items():
      for segment in segments:
        reached = next_sequence.get(actor_id, 0) - segment.first_sequence
        num_rows = segment.shard.num_trees - segment.first_row
        indices += range(
          segment.start + max(reached, 0), segment.start + num_rows
        )
    return sorted(indices)

  def _list(
    self, actor_id: int, path: epath.Path, shard: manifest_lib.Shard
  ) -> None:
    """Lists the trees of the shard that are new."""
    next_sequence = self.next_sequence.get(actor_id, 0)
    if shard.last_sequence < next_sequence:
      return
    first_row = next_sequence - shard.first_sequence
    segment = _Segment(path, shard, first_row, start=self._num_trees)
    self._segments_by_actor.setdefault(actor_id, []).append(segment)
    self._segments.append(segment)
    self._num_trees += shard.num_trees - first_row

  def _example(self, segment: _Segment, row: int) -> bytes:
    path, shard = segment.path, segment.shard
    if str(path) not in self.damaged:
      try:
        return self._open(path, shard).read([row])[0]
      except (OSError, RuntimeError) as error:
        self.damaged[str(path)] = getattr(error, "strerror", None) or str(error)
        self.num_damaged += shard.num_trees - segment.first_row
    what = self.damaged[str(path)]
    raise DamagedShardError(
      f"{path} is damaged ({what}, where {manifest_lib.FILE} lists "
      f"{shard.num_trees} trees in {shard.num_bytes} bytes of sha256 "
      f"{shard.sha256}): restore it from a copy, or read with "
      "skip_damaged=True to go on without its trees."
    )

  def _open(self, path: epath.Path, shard: manifest_lib.Shard):
    """An ArrayRecord reader of the shard; the newest few stay open."""
    opened = self._open_shards.pop(path, None) or _open_shard(path, shard)
    self._open_shards[path] = opened
    if len(self._open_shards) > _MAX_OPEN_SHARDS:
      self._open_shards.pop(next(iter(self._open_shards))).close()
    return opened


def _open_shard(path: epath.Path, shard: manifest_lib.Shard):
  """Opens the shard; OSError if it is not what the manifest says."""
  with files.local_copy(path) as file:
    num_bytes = os.path.getsize(file)
    if num_bytes != shard.num_bytes:
      raise OSError(f"it has {num_bytes} bytes")
    sha256 = files.sha256(file)
    if sha256 != shard.sha256:
      raise OSError(f"it has sha256 {sha256}")
    opened = array_record_module.ArrayRecordReader(
      file,
      "readahead_buffer_size:0,max_parallelism:0",
      file_reader_buffer_size=32_768,
    )
    if opened.num_records() != shard.num_trees:
      raise OSError(f"it has {opened.num_records()} trees")
    return opened
