"""The manifest: which shards a folder holds, and how to tell they do.

A cut ArrayRecord file can read as empty without an error, so what a shard holds
is known from here alone: a shard that the manifest does not list does not
exist, and one that differs from its entry is damaged.
"""

import dataclasses
import itertools
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from qstar_jax.errors import UserError
from qstar_jax.store import files
from qstar_jax.store.codec import Codec

FILE = "manifest.json"
_FORMAT = "qstar_jax store"


@dataclasses.dataclass(frozen=True)
class Shard:
  """What the manifest says of one shard.

  Attributes:
    file: its name.
    num_records: records in it, >= 1.
    first_sequence: number of its first record; the others follow by ones.
    last_sequence: of its last.
    min_params_version: smallest params_version of its records.
    max_params_version: largest.
    num_bytes: size of the file.
    sha256: of the file, in hexadecimal.
  """

  file: str
  num_records: int
  first_sequence: int
  last_sequence: int
  min_params_version: int
  max_params_version: int
  num_bytes: int
  sha256: str


# A cursor says how far a stream has come: its number of shards, of records, the
# checksum of its last shard, which tells it from another run's stream, and what
# its writer noted of its progress.
EMPTY_CURSOR = {
  "num_shards": 0,
  "num_records": 0,
  "last_sha256": "",
  "progress": {},
}


@dataclasses.dataclass(frozen=True)
class Manifest:
  """The shards of one stream, oldest first.

  Attributes:
    stream_id: number of the stream, >= 0.
    shards: their sequences run from 0 without a gap.
    progress: JSON object, the writer's own, of the time of the last shard.
  """

  stream_id: int
  shards: tuple[Shard, ...] = ()
  progress: dict = dataclasses.field(default_factory=dict)

  @property
  def num_records(self) -> int:
    return self.shards[-1].last_sequence + 1 if self.shards else 0

  @property
  def cursor(self) -> dict[str, Any]:
    """How far the stream has come, JSON-able; see `EMPTY_CURSOR`."""
    return {
      "num_shards": len(self.shards),
      "num_records": self.num_records,
      "last_sha256": self.shards[-1].sha256 if self.shards else "",
      "progress": dict(self.progress),
    }


def stream_folder(
  directory: epath.PathLike, codec: Codec, stream_id: int
) -> epath.Path:
  """Where a stream's shards are in the store `directory`."""
  return epath.Path(directory) / f"{codec.stream}_{stream_id:05d}"


def write(folder: epath.Path, codec: Codec, manifest: Manifest) -> None:
  """Replaces the folder's manifest, at once and durably."""
  content = {
    "format": _FORMAT,
    "dataset": codec.dataset,
    "schema_version": codec.schema_version,
    "stream_id": manifest.stream_id,
    "progress": manifest.progress,
    "shards": [vars(shard) for shard in manifest.shards],
  }
  files.publish_text(folder / FILE, json.dumps(content))


def read(folder: epath.Path, codec: Codec) -> Manifest | None:
  """The folder's manifest, or None if the folder is new.

  Raises:
    UserError: the folder holds something else than such records, the manifest
      is damaged or unreadable, or it is of another schema version.
  """
  path = folder / FILE
  try:
    return _parse(path, codec, files.read_bytes(path))
  except files.MissingError:
    strangers = _strangers(folder)
  if not strangers:
    return None
  # The manifest is a writer's first file: if others were there, so is it.
  if files.exists(path):
    return read(folder, codec)
  raise UserError(
    f"{folder} holds {strangers[0]} but no {FILE}, so it is no store of "
    f"{codec.records}: restore {FILE} from a copy, or use an empty directory."
  )


def read_all(directory: epath.Path, codec: Codec) -> dict[epath.Path, Manifest]:
  """See `Manifests.read`, for those who look once."""
  return Manifests(directory, codec).read()


class Manifests:
  """The manifests of every stream's folder, for those who look often."""

  def __init__(self, directory: epath.Path, codec: Codec):
    """Reads nothing yet."""
    self._directory = directory
    self._codec = codec
    self._known: dict[epath.Path, files.Changing[Manifest | None]] = {}

  def read(self) -> dict[epath.Path, Manifest]:
    """What they are now, by folder, in order of name.

    Only those are read that were replaced since the last call; the others are
    the objects that it returned.

    Raises:
      UserError: as `read`, or the directory is missing or holds other things
        and no stream's folder.
    """
    prefix = f"{self._codec.stream}_"
    children = files.children(self._directory)
    folders = [c for c in children if c.name.startswith(prefix)]
    if children and not folders:
      raise UserError(
        f"{self._directory} holds {children[0].name} but no {prefix}* folder, "
        f"so it is no store of {self._codec.records}: name the directory of "
        "one."
      )
    self._known = {f: self._known.get(f) or self._of(f) for f in folders}
    found = {folder: known.get() for folder, known in self._known.items()}
    # A folder without a manifest is one that its writer is about to fill.
    return {folder: m for folder, m in found.items() if m is not None}

  def _of(self, folder: epath.Path) -> files.Changing[Manifest | None]:
    return files.Changing(folder / FILE, lambda: read(folder, self._codec))


def at_cursor(
  folder: epath.Path, manifest: Manifest, cursor: Mapping[str, Any]
) -> Manifest:
  """The manifest as it was at a cursor.

  Raises:
    UserError: it never was there.
  """
  shards = manifest.shards[: cursor["num_shards"]]
  past = dataclasses.replace(
    manifest, shards=shards, progress=dict(cursor["progress"])
  )
  if past.cursor != cursor:
    raise UserError(
      f"{folder} was never at the cursor {dict(cursor)}; it is at "
      f"{manifest.cursor}: restore the store that belongs to the cursor, or "
      "start anew in another directory."
    )
  return past


def _strangers(folder: epath.Path) -> list[str]:
  try:
    names = [path.name for path in files.children(folder)]
  except files.MissingError:
    return []  # It is new, or was taken away meanwhile.
  return [name for name in names if not files.is_own_litter(name)]


def _parse(path: epath.Path, codec: Codec, text: bytes) -> Manifest:
  try:
    content = json.loads(text)
    for name, expected in (("format", _FORMAT), ("dataset", codec.dataset)):
      if content.pop(name) != expected:
        raise ValueError(f"its {name} is not {expected!r}")
    schema_version = content.pop("schema_version")
    if schema_version == codec.schema_version:
      shards = tuple(Shard(**entry) for entry in content.pop("shards"))
      manifest = Manifest(shards=shards, **content)
      _check_consistent(manifest, codec)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f"{path} is damaged ({error}): restore it from a copy, or move its "
      "folder away to start a new store."
    ) from error
  if schema_version != codec.schema_version:
    raise UserError(
      f"{path} has schema version {schema_version}, and this qstar_jax reads "
      f"version {codec.schema_version}: use the qstar_jax that wrote it, or "
      "another directory."
    )
  return manifest


def _check_consistent(manifest: Manifest, codec: Codec) -> None:
  for item in (manifest, *manifest.shards):
    for field in dataclasses.fields(item):
      value = getattr(item, field.name)
      if field.type in (int, str, dict) and type(value) is not field.type:
        raise ValueError(f"{field.name} is {value!r}")
  ends = itertools.chain([-1], (s.last_sequence for s in manifest.shards))
  for index, (shard, end) in enumerate(
    zip(manifest.shards, ends, strict=False)
  ):
    is_next = shard.first_sequence == end + 1
    num_records = shard.last_sequence - shard.first_sequence + 1
    is_full = num_records == shard.num_records >= 1
    is_named = shard.file == codec.shard_file(index)
    if not (is_next and is_full and is_named):
      raise ValueError(f"shard {index} does not follow the one before it")
