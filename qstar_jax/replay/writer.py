"""The durable store of search trees: one folder per actor, one writer to each.

A folder is a TFDS dataset: `tfds.builder_from_directory(folder)
.as_data_source("train")` reads it, without TensorFlow and without this package.
See docs/design/replay.md.
"""

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from array_record.python import array_record_module
from etils import epath

from qstar_jax.errors import UserError
from qstar_jax.records import TreeRecord
from qstar_jax.replay import codec, files
from qstar_jax.replay import manifest as manifest_lib

# TFDS spells shard numbers with six digits once there are more.
MAX_SHARDS = 99_999
_BLOCK_BYTES = 65_536


class ReplayWriter:
  """Appends one actor's trees to its folder of the store.

  Trees wait in memory until `shard_trees` of them, or `flush`, make a shard. A
  shard is written aside, synced, renamed and then listed in the manifest, so a
  process killed at any instant leaves whole shards and nothing else. Not
  thread-safe.

  Attributes:
    folder: of this actor.
  """

  def __init__(
    self, directory: epath.PathLike, actor_id: int = 0, *, shard_trees: int
  ):
    """Opens the actor's folder, or makes it; removes what a kill left there.

    Args:
      directory: of the store; a bucket's path will do.
      actor_id: whose trees these are, >= 0.
      shard_trees: trees in a full shard, >= 1.

    Raises:
      UserError: the folder is not writable, is being written by another
        process, or is not a replay store of this actor and schema version.
    """
    self.folder = manifest_lib.actor_folder(directory, actor_id)
    self._shard_trees = shard_trees
    self._pending: list[bytes] = []
    self._pending_versions: list[int] = []
    files.make_folder(self.folder)
    with contextlib.ExitStack() as stack:
      stack.enter_context(files.lock(self.folder))
      manifest = manifest_lib.read(self.folder)
      if manifest is not None and manifest.actor_id != actor_id:
        raise UserError(
          f"{self.folder} holds trees of actor {manifest.actor_id}, not of "
          f"actor {actor_id}: give the folder back the name it was made with."
        )
      self._publish(manifest or manifest_lib.Manifest(actor_id))
      self._remove_unlisted()
      self._lock = stack.pop_all()

  def __enter__(self) -> "ReplayWriter":
    return self

  def __exit__(self, error_type, *_) -> None:
    try:
      if error_type is None:
        self.flush()
    finally:
      self.close()

  @property
  def next_sequence(self) -> int:
    """Sequence that the next tree must have; also the number of trees so far,
    those that wait in memory included."""
    return self._manifest.num_trees + len(self._pending)

  @property
  def cursor(self) -> dict[str, Any]:
    """How far the shards on disk have come. Small, JSON-able: put it into the
    checkpoint after `flush`, and give it to `truncate` on resume."""
    return self._manifest.cursor

  def append(self, record: TreeRecord) -> bool:
    """Takes a tree, unless it was taken before.

    Args:
      record: whose sequence is at most `next_sequence`.

    Returns:
      False if the tree's sequence was taken before; it is stored once.

    Raises:
      ValueError: the tree is another actor's, leaves a gap in the sequence, or
        has a field of another type, dtype or shape than `TreeRecord` states.
      UserError: a shard was due and could not be written. The trees wait in
        memory still: `flush` tries again.
    """
    if record.actor_id != self._manifest.actor_id:
      raise ValueError(
        f"Actor {record.actor_id}'s tree given to the writer of actor "
        f"{self._manifest.actor_id}; each actor has a writer of its own."
      )
    if record.sequence > self.next_sequence:
      raise ValueError(
        f"Tree {record.sequence} given when {self.next_sequence} is next; "
        "sequences count an actor's trees without a gap."
      )
    if record.sequence < self.next_sequence:
      return False
    self._pending.append(codec.encode(record))
    self._pending_versions.append(record.params_version)
    if len(self._pending) >= self._shard_trees:
      self.flush()
    return True

  def flush(self) -> None:
    """Makes a shard, however short, of the trees that wait in memory.

    Raises:
      UserError: it could not be written; the trees wait still.
    """
    if not self._pending:
      return
    index = len(self._manifest.shards)
    if index == MAX_SHARDS:
      raise UserError(
        f"{self.folder} holds {index} shards, and that is the limit: go on "
        "under another actor_id, with more trees a shard."
      )
    path = self.folder / codec.shard_file(index)
    num_bytes, sha256 = _write_shard(path, self._pending)
    first_sequence = self._manifest.num_trees
    shard = manifest_lib.Shard(
      file=path.name,
      num_trees=len(self._pending),
      first_sequence=first_sequence,
      last_sequence=first_sequence + len(self._pending) - 1,
      min_params_version=min(self._pending_versions),
      max_params_version=max(self._pending_versions),
      num_bytes=num_bytes,
      sha256=sha256,
    )
    self._publish(
      dataclasses.replace(
        self._manifest, shards=(*self._manifest.shards, shard)
      )
    )

  def truncate(self, cursor: Mapping[str, Any]) -> None:
    """Drops every tree that came after `cursor`, those in memory included.

    Args:
      cursor: a former value of `cursor`, or `EMPTY_CURSOR`.

    Raises:
      UserError: the store never was at this cursor.
    """
    shards = self._manifest.shards[: cursor["num_shards"]]
    manifest = dataclasses.replace(self._manifest, shards=shards)
    if manifest.cursor != cursor:
      raise UserError(
        f"{self.folder} was never at the checkpoint's replay cursor "
        f"{dict(cursor)}; it is at {self.cursor}: restore the store that "
        "belongs to the checkpoint, or start a new run directory."
      )
    self._publish(manifest)
    self._remove_unlisted()

  def close(self) -> None:
    """Lets go of the folder. Trees that were not flushed are lost."""
    self._lock.close()

  def _publish(self, manifest: manifest_lib.Manifest) -> None:
    """Makes `manifest` what the folder holds, and empties the memory."""
    manifest_lib.write(self.folder, manifest)
    self._manifest = manifest
    self._pending.clear()
    self._pending_versions.clear()
    for name, text in codec.tfds_files(
      [shard.num_trees for shard in manifest.shards],
      sum(shard.num_bytes for shard in manifest.shards),
    ).items():
      files.publish_text(self.folder / name, text)

  def _remove_unlisted(self) -> None:
    """Removes shards that the manifest does not list, and cut writes."""
    listed = {shard.file for shard in self._manifest.shards}
    with files.explain_failed_write(self.folder):
      for path in self.folder.iterdir():
        is_ours = path.name.startswith((files.ASIDE, codec.SHARD_PREFIX))
        if is_ours and path.name not in listed:
          path.unlink()


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
