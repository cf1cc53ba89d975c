"""Reads a store: every stream's records, each once and checked."""

import bisect
import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic

from array_record.python import array_record_module
from etils import epath

from qstar_jax.errors import UserError
from qstar_jax.store import files
from qstar_jax.store import manifest as manifest_lib
from qstar_jax.store.codec import Codec, Record

# An open shard costs about 32 kB; opening one reads all of it.
_MAX_OPEN_SHARDS = 64


class DamagedShardError(UserError):
  """A shard that a manifest lists is missing, cut or changed."""


class CorruptRecordError(UserError):
  """A shard is as it was written, but one of its records is none."""


@dataclasses.dataclass(frozen=True)
class _Segment:
  """The rows of a shard that the reader lists: those not in a shard before.

  Attributes:
    path: of the shard.
    shard: its manifest entry.
    first_row: row of the shard's first record that is listed; the rest follow.
    start: index that the reader gives to that record.
  """

  path: epath.Path
  shard: manifest_lib.Shard
  first_row: int
  start: int

  @property
  def first_sequence(self) -> int:
    return self.shard.first_sequence + self.first_row


class StoreReader(Generic[Record]):
  """The records of every stream of a store, oldest first, each counted once.

  Streams are merged by params version, then by sequence. `refresh` puts what
  has come since at the end, so a record keeps its index. Records are read from
  disk when asked for, and a shard is held against its manifest entry whenever
  it is opened. Writers may go on meanwhile: what they list is whole.

  Attributes:
    skip_damaged: iteration goes past what is damaged or gone.
    damaged: what is wrong with each shard found damaged so far, by path, and
      with each corrupt record, by path and row.
    num_damaged: those records, and the records in those shards.
  """

  def __init__(
    self,
    directory: epath.PathLike,
    codec: Codec[Record],
    *,
    skip_damaged: bool = False,
    cursors: Mapping[str, Mapping[str, Any]] | None = None,
  ):
    """Lists the store.

    Args:
      directory: the one given to the writers.
      codec: of the records.
      skip_damaged: iterate past what is damaged instead of raising.
      cursors: list the store as it was when these were its `cursors`.

    Raises:
      UserError: the directory is missing or is no such store, it never was at
        `cursors`, or a manifest is damaged or of another schema version.
    """
    self._directory = epath.Path(directory)
    self._codec = codec
    self._manifests = manifest_lib.Manifests(self._directory, codec)
    self.skip_damaged = skip_damaged
    self._at = cursors
    self._listed: dict[str, manifest_lib.Manifest] = {}
    self._segments: list[_Segment] = []
    self._segments_by_stream: dict[int, list[_Segment]] = {}
    self._num_records = 0
    self._open_shards: dict[epath.Path, Any] = {}
    self.damaged: dict[str, str] = {}
    self.num_damaged = 0
    self.refresh()

  def refresh(self) -> int:
    """Lists the records that came since; returns how many.

    Only manifests that were replaced since are read.

    Raises:
      UserError: as the constructor, or the store was truncated meanwhile.
    """
    manifests = self._read_manifests()
    found = []
    for folder, manifest in manifests.items():
      listed = self._listed.get(folder.name)
      if listed is manifest:
        continue  # Nothing has come.
      num_listed = len(listed.shards) if listed else 0
      if listed and manifest.shards[:num_listed] != listed.shards:
        raise UserError(
          f"{folder} was truncated while it was being read: open it again."
        )
      # Versions fall when a learner rolls back; a stream's order must not.
      versions = itertools.accumulate(
        (shard.max_params_version for shard in manifest.shards), max
      )
      found += [
        (version, shard.first_sequence, manifest.stream_id, folder, shard)
        for shard, version in zip(manifest.shards, versions, strict=True)
      ][num_listed:]
    old_num_records = self._num_records
    for _, _, stream_id, folder, shard in sorted(found, key=lambda f: f[:4]):
      self._list(stream_id, folder / shard.file, shard)
    self._listed = {path.name: m for path, m in manifests.items()}
    return self._num_records - old_num_records

  def _read_manifests(self) -> dict[epath.Path, manifest_lib.Manifest]:
    manifests = self._manifests.read()
    if self._at is None:
      return manifests
    folders = {name: self._directory / name for name in self._at}
    return {
      folder: manifest_lib.at_cursor(
        folder, manifests.get(folder, manifest_lib.Manifest(0)), self._at[name]
      )
      for name, folder in folders.items()
    }

  @property
  def cursors(self) -> dict[str, dict[str, Any]]:
    """How far each stream is listed, by the name of its folder. JSON-able."""
    return {name: manifest.cursor for name, manifest in self._listed.items()}

  @property
  def next_sequence(self) -> dict[int, int]:
    """For each stream, the first sequence that is not listed yet."""
    return {
      stream_id: segments[-1].shard.last_sequence + 1
      for stream_id, segments in self._segments_by_stream.items()
    }

  def __len__(self) -> int:
    return self._num_records

  def __getitem__(self, index: int) -> Record:
    """The record at `index`, negative ones counting from the end.

    Raises:
      IndexError: there is none.
      DamagedShardError: its shard is damaged.
      CorruptRecordError: it is none that the codec could have written.
    """
    index = range(self._num_records)[index]
    after = bisect.bisect(self._segments, index, key=lambda item: item.start)
    segment = self._segments[after - 1]
    row = index - segment.start + segment.first_row
    example = self._example(segment, row)
    try:
      return self._codec.decode(example)
    except ValueError as error:
      where = f"{segment.path}, record {row}"
      if where not in self.damaged:
        self.damaged[where] = str(error)
        self.num_damaged += 1
      raise CorruptRecordError(
        f"{where} is corrupt ({error}): write the store anew, or read with "
        "skip_damaged=True to go on without it."
      ) from error

  def __iter__(self) -> Iterator[Record]:
    return self.read(range(self._num_records))

  def read(self, indices: Iterable[int]) -> Iterator[Record]:
    """The records at `indices`, in that order.

    Raises:
      DamagedShardError, CorruptRecordError: a shard or record is damaged and
        `skip_damaged` is not set. If it is, what is damaged is left out and
        counted in `num_damaged`.
    """
    for index in indices:
      try:
        record = self[index]
      except (DamagedShardError, CorruptRecordError):
        if not self.skip_damaged:
          raise
      else:
        yield record

  def index(self, stream_id: int, sequence: int) -> int:
    """Where record `sequence` of a stream stands.

    Raises:
      KeyError: the store does not hold it.
    """
    segments = self._segments_by_stream.get(stream_id, [])
    after = bisect.bisect(
      segments, sequence, key=lambda item: item.first_sequence
    )
    if after == 0 or sequence > segments[after - 1].shard.last_sequence:
      raise KeyError((stream_id, sequence))
    segment = segments[after - 1]
    return segment.start + sequence - segment.first_sequence

  def since(self, next_sequence: Mapping[int, int]) -> list[int]:
    """Indices, ascending, of the records that a former reading did not reach.

    Args:
      next_sequence: the first sequence not reached, by stream; 0 for the rest.
    """
    indices = []
    for stream_id, segments in self._segments_by_stream.items():
      for segment in segments:
        reached = next_sequence.get(stream_id, 0) - segment.first_sequence
        num_rows = segment.shard.num_records - segment.first_row
        indices += range(
          segment.start + max(reached, 0), segment.start + num_rows
        )
    return sorted(indices)

  def _list(
    self, stream_id: int, path: epath.Path, shard: manifest_lib.Shard
  ) -> None:
    """Lists the records of the shard that are new."""
    next_sequence = self.next_sequence.get(stream_id, 0)
    if shard.last_sequence < next_sequence:
      return
    first_row = next_sequence - shard.first_sequence
    segment = _Segment(path, shard, first_row, start=self._num_records)
    self._segments_by_stream.setdefault(stream_id, []).append(segment)
    self._segments.append(segment)
    self._num_records += shard.num_records - first_row

  def _example(self, segment: _Segment, row: int) -> bytes:
    path, shard = segment.path, segment.shard
    if str(path) not in self.damaged:
      try:
        return self._open(path, shard).read([row])[0]
      except (OSError, RuntimeError) as error:
        self.damaged[str(path)] = getattr(error, "strerror", None) or str(error)
        self.num_damaged += shard.num_records - segment.first_row
    what = self.damaged[str(path)]
    raise DamagedShardError(
      f"{path} is damaged ({what}, where {manifest_lib.FILE} lists "
      f"{shard.num_records} records in {shard.num_bytes} bytes of sha256 "
      f"{shard.sha256}): restore it from a copy, or read with "
      "skip_damaged=True to go on without its records."
    )

  def _open(self, path: epath.Path, shard: manifest_lib.Shard):
    """An ArrayRecord reader of the shard; the newest few stay open."""
    opened = self._open_shards.pop(path, None) or files.attempt(
      path, lambda: _open_shard(path, shard)
    )
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
    if opened.num_records() != shard.num_records:
      raise OSError(f"it has {opened.num_records()} records")
    return opened
