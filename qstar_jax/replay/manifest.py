"""The manifest: which shards a replay folder holds, and how to tell they do.

A cut ArrayRecord file can read as empty without an error, so what a shard holds
is known from here alone: a shard that the manifest does not list does not
exist, and one that differs from its entry is damaged.
"""

import dataclasses
import itertools
import json
from typing import Any

from etils import epath

from qstar_jax.errors import UserError
from qstar_jax.replay import codec, files

FILE = "manifest.json"
_ACTOR_PREFIX = "actor_"
_FORMAT = "qstar_jax replay"


@dataclasses.dataclass(frozen=True)
class Shard:
  """What the manifest says of one shard.

  Attributes:
    file: its name.
    num_trees: trees in it, >= 1.
    first_sequence: sequence of its first tree; the others follow by ones.
    last_sequence: of its last.
    min_params_version: smallest params_version of its trees.
    max_params_version: largest.
    num_bytes: size of the file.
    sha256: of the file, in hexadecimal.
  """

  file: str
  num_trees: int
  first_sequence: int
  last_sequence: int
  min_params_version: int
  max_params_version: int
  num_bytes: int
  sha256: str


# A cursor says how far a store has come: its number of shards, of trees, and
# the checksum of its last shard, which tells it from another run's store.
EMPTY_CURSOR = {"num_shards": 0, "num_trees": 0, "last_sha256": ""}


@dataclasses.dataclass(frozen=True)
class Manifest:
  """The shards of one actor, oldest first.

  Attributes:
    actor_id: whose trees they are.
    shards: their sequences run from 0 without a gap.
  """

  actor_id: int
  shards: tuple[Shard, ...] = ()

  @property
  def num_trees(self) -> int:
    return self.shards[-1].last_sequence + 1 if self.shards else 0

  @property
  def cursor(self) -> dict[str, Any]:
    """How far the store has come, JSON-able; see `EMPTY_CURSOR`."""
    if not self.shards:
      return dict(EMPTY_CURSOR)
    return {
      "num_shards": len(self.shards),
      "num_trees": self.num_trees,
      "last_sha256": self.shards[-1].sha256,
    }


def actor_folder(directory: epath.PathLike, actor_id: int) -> epath.Path:
  """Where an actor's shards are in the store `directory`."""
  return epath.Path(directory) / f"{_ACTOR_PREFIX}{actor_id:05d}"


def write(folder: epath.Path, manifest: Manifest) -> None:
  """Replaces the folder's manifest, at once and durably."""
  content = {
    "format": _FORMAT,
    "schema_version": codec.SCHEMA_VERSION,
    "actor_id": manifest.actor_id,
    "shards": [vars(shard) for shard in manifest.shards],
  }
  files.publish_text(folder / FILE, json.dumps(content))


def read(folder: epath.Path) -> Manifest | None:
  """The folder's manifest, or None if the folder is new.

  Raises:
    UserError: the folder holds something else than a replay store, the manifest
      is damaged or unreadable, or it is of another schema version.
  """
  path = folder / FILE
  try:
    if not path.exists():
      strangers = _strangers(folder)
      # The manifest is a writer's first file: if others were there, so is it.
      if not path.exists():
        if strangers:
          raise UserError(
            f"{folder} holds {strangers[0]} but no {FILE}, so it is no replay "
            f"store: restore {FILE} from a copy, or use an empty directory."
          )
        return None
    return _parse(path, path.read_bytes())
  except OSError as error:
    raise UserError(
      f"{path} cannot be read ({error.strerror or error}): make it readable."
    ) from error


def read_all(directory: epath.Path) -> dict[epath.Path, Manifest]:
  """The manifests of every actor's folder, by folder, in order of name.

  Raises:
    UserError: as `read`, or the directory is missing or holds other things and
      no actor's folder.
  """
  try:
    children = sorted(directory.iterdir())
  except OSError as error:
    raise UserError(
      f"{directory} cannot be read ({error.strerror or error}): name the "
      "replay directory of a run."
    ) from error
  folders = [c for c in children if c.name.startswith(_ACTOR_PREFIX)]
  if children and not folders:
    raise UserError(
      f"{directory} holds {children[0].name} but no {_ACTOR_PREFIX}* folder, "
      "so it is no replay store: name the replay directory of a run."
    )
  manifests = {folder: read(folder) for folder in folders}
  # A folder without a manifest is one that its writer is about to fill.
  return {folder: m for folder, m in manifests.items() if m is not None}


def _strangers(folder: epath.Path) -> list[str]:
  names = (path.name for path in folder.iterdir()) if folder.exists() else ()
  return sorted(name for name in names if not files.is_own_litter(name))


def _parse(path: epath.Path, text: bytes) -> Manifest:
  try:
    content = json.loads(text)
    if content.pop("format") != _FORMAT:
      raise ValueError(f"its format is not {_FORMAT!r}")
    schema_version = content.pop("schema_version")
    if schema_version == codec.SCHEMA_VERSION:
      shards = tuple(Shard(**entry) for entry in content.pop("shards"))
      manifest = Manifest(shards=shards, **content)
      _check_consistent(manifest)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f"{path} is damaged ({error}): restore it from a copy, or move its "
      "folder away to start a new store."
    ) from error
  if schema_version != codec.SCHEMA_VERSION:
    raise UserError(
      f"{path} has schema version {schema_version}, and this qstar_jax reads "
      f"version {codec.SCHEMA_VERSION}: use the qstar_jax that wrote it, or "
      "another run directory."
    )
  return manifest


def _check_consistent(manifest: Manifest) -> None:
  for item in (manifest, *manifest.shards):
    for field in dataclasses.fields(item):
      value = getattr(item, field.name)
      if field.type in (int, str) and type(value) is not field.type:
        raise ValueError(f"{field.name} is {value!r}")
  ends = itertools.chain([-1], (s.last_sequence for s in manifest.shards))
  for index, (shard, end) in enumerate(
    zip(manifest.shards, ends, strict=False)
  ):
    is_next = shard.first_sequence == end + 1
    is_full = shard.last_sequence - shard.first_sequence + 1 == shard.num_trees
    is_named = shard.file == codec.shard_file(index)
    if not (is_next and is_full and is_named and shard.num_trees >= 1):
      raise ValueError(f"shard {index} does not follow the one before it")
