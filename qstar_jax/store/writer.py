"""The durable store of records: one folder per stream, one writer to each.

A folder is a TFDS dataset: `tfds.builder_from_directory(folder)
.as_data_source("train")` reads it, without TensorFlow and without this package.
See docs/design/replay.md.
"""

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Generic

from array_record.python import array_record_module
from etils import epath

from qstar_jax.errors import UserError
from qstar_jax.store import files
from qstar_jax.store import manifest as manifest_lib
from qstar_jax.store.codec import Codec, Record

# TFDS spells shard numbers with six digits once there are more.
MAX_SHARDS = 99_999
_BLOCK_BYTES = 65_536


class StoreWriter(Generic[Record]):
  """Appends the records of one stream to its folder of a store.

  Records wait in memory until `shard_records` of them, or `flush`, make a
  shard. A shard is written aside, synced, renamed and then listed in the
  manifest, so a process killed at any instant leaves whole shards and nothing
  else. Not thread-safe.

  Attributes:
    folder: of this stream.
  """

  def __init__(
    self,
    directory: epath.PathLike,
    codec: Codec[Record],
    stream_id: int = 0,
    *,
    shard_records: int,
  ):
    """Opens the stream's folder, or makes it; removes what a kill left there.

    Args:
      directory: of the store; a bucket's path will do.
      codec: of the records.
      stream_id: number of the stream, >= 0.
      shard_records: records in a full shard, >= 1.

    Raises:
      UserError: the folder is not writable, is being written by another
        process, or holds no such records of this stream and schema version.
    """
    self.folder = manifest_lib.stream_folder(directory, codec, stream_id)
    self._codec = codec
    self._shard_records = shard_records
    self._pending: list[bytes] = []
    self._pending_versions: list[int] = []
    files.make_folder(self.folder)
    with contextlib.ExitStack() as stack:
      stack.enter_context(files.lock(self.folder))
      manifest = manifest_lib.read(self.folder, codec)
      if manifest is not None and manifest.stream_id != stream_id:
        raise UserError(
          f"{self.folder} holds {codec.records} of {codec.stream} "
          f"{manifest.stream_id}, not of {codec.stream} {stream_id}: give the "
          "folder back the name it was made with."
        )
      self._publish(manifest or manifest_lib.Manifest(stream_id))
      self._remove_unlisted()
      self._lock = stack.pop_all()

  def __enter__(self):
    return self

  def __exit__(self, error_type, *_) -> None:
    try:
      if error_type is None:
        self.flush()
    finally:
      self.close()

  @property
  def next_sequence(self) -> int:
    """Number of the next record in the stream; also how many there are so far,
    those that wait in memory included."""
    return self._manifest.num_records + len(self._pending)

  @property
  def cursor(self) -> dict[str, Any]:
    """How far the shards on disk have come. Small, JSON-able: put it into the
    checkpoint after `flush`, and give it to `truncate` on resume."""
    return self._manifest.cursor

  @property
  def progress(self) -> dict[str, Any]:
    """What `extend` was given with the last records, those in memory included.

    After a kill it is that of the last records on disk.
    """
    return dict(self._progress)

  def extend(
    self, records: Sequence[Record], progress: Mapping[str, Any] | None = None
  ) -> None:
    """Takes records that belong together: all of them come into one shard.

    Args:
      records: to append, any number.
      progress: JSON object, stored in one with the records: what their source
        needs to go on after them. What it was if None.

    Raises:
      ValueError: a record has a field that is not as it must be; none is taken.
      UserError: a shard was due and could not be written. The records wait in
        memory still: `flush` tries again.
    """
    self._pending += [self._codec.encode(record) for record in records]
    self._pending_versions += map(self._codec.params_version, records)
    if progress is not None:
      self._progress = dict(progress)
    if len(self._pending) >= self._shard_records:
      self.flush()

  def flush(self) -> None:
    """Makes a shard, however short, of the records that wait in memory.

    Raises:
      UserError: it could not be written; the records wait still.
    """
    if not self._pending and self._progress == self._manifest.progress:
      return
    shards = self._manifest.shards
    if self._pending:
      shards = (*shards, self._make_shard())
    self._publish(
      dataclasses.replace(
        self._manifest, shards=shards, progress=self._progress
      )
    )

  def truncate(self, cursor: Mapping[str, Any]) -> None:
    """Drops every record that came after `cursor`, those in memory included.

    Args:
      cursor: a former value of `cursor`, or `EMPTY_CURSOR`.

    Raises:
      UserError: the stream never was at this cursor.
    """
    self._publish(manifest_lib.at_cursor(self.folder, self._manifest, cursor))
    self._remove_unlisted()

  def close(self) -> None:
    """Lets go of the folder. Records that were not flushed are lost."""
    self._lock.close()

  def _make_shard(self) -> manifest_lib.Shard:
    """Writes what waits in memory to a shard that the manifest lacks yet."""
    index = len(self._manifest.shards)
    if index == MAX_SHARDS:
      raise UserError(
        f"{self.folder} holds {index} shards, and that is the limit: go on "
        f"as another {self._codec.stream}, with more {self._codec.records} a "
        "shard."
      )
    path = self.folder / self._codec.shard_file(index)
    num_bytes, sha256 = _write_shard(path, self._pending)
    return manifest_lib.Shard(
      file=path.name,
      num_records=len(self._pending),
      first_sequence=self._manifest.num_records,
      last_sequence=self.next_sequence - 1,
      min_params_version=min(self._pending_versions),
      max_params_version=max(self._pending_versions),
      num_bytes=num_bytes,
      sha256=sha256,
    )

  def _publish(self, manifest: manifest_lib.Manifest) -> None:
    """Makes `manifest` what the folder holds, and empties the memory."""
    manifest_lib.write(self.folder, self._codec, manifest)
    self._manifest = manifest
    self._progress = manifest.progress
    self._pending.clear()
    self._pending_versions.clear()
    for name, text in self._codec.tfds_files(
      [shard.num_records for shard in manifest.shards],
      sum(shard.num_bytes for shard in manifest.shards),
    ).items():
      files.publish_text(self.folder / name, text)

  def _remove_unlisted(self) -> None:
    """Removes shards that the manifest does not list, and cut writes."""
    listed = {shard.file for shard in self._manifest.shards}
    ours = (files.ASIDE, self._codec.shard_prefix)
    for path in files.children(self.folder):
      if path.name.startswith(ours) and path.name not in listed:
        files.remove(path)


def _write_shard(path: epath.Path, examples: list[bytes]) -> tuple[int, str]:
  """Makes a shard of `examples`; returns its size in bytes and its sha256."""
  size_and_sha256 = (0, "")

  def write(aside: str) -> None:
    nonlocal size_and_sha256
    try:
      writer = array_record_module.ArrayRecordWriter(aside, "group_size:1")
      for example in examples:
        writer.write(example)
      writer.close()
    except RuntimeError as error:
      raise OSError(str(error)) from error
    size_and_sha256 = os.path.getsize(aside), files.sha256(aside)

  # ArrayRecord fills whole blocks, and puts its footer into one of its own.
  num_bytes = sum(map(len, examples)) + 2 * _BLOCK_BYTES
  files.publish(path, num_bytes, write)
  return size_and_sha256
