"""Files that appear whole or not at all, on a local disk or in a bucket.

In a bucket an object appears when its upload ends, so there is nothing to
rename or to sync. A bucket has no locks either: one writer to a folder is the
caller's word.
"""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator

from etils import epath

from qstar_jax.errors import UserError

# Starts the name of every file that is not part of the store.
ASIDE = ".aside-"
_LOCK = ".lock"


class HeldError(UserError):
  """A folder is being written by another process."""


def is_local(path: epath.Path) -> bool:
  """True for a path of this machine's file system, False for a bucket's."""
  return "://" not in os.fspath(path)


def is_own_litter(name: str) -> bool:
  """True for the names of files that are never read: cut writes, the lock."""
  return name.startswith(ASIDE) or name == _LOCK


def make_folder(folder: epath.Path) -> None:
  """Makes the folder and its parents; durable when this returns."""
  with explain_failed_write(folder):
    folder.mkdir(parents=True, exist_ok=True)
    if is_local(folder):
      _sync(folder.parent)


def publish(
  path: epath.Path, num_bytes: int, write: Callable[[str], None]
) -> None:
  """Makes what `write` writes the file at `path`, replacing what was there.

  Killed at any instant, this leaves the old file or the new one, and at most a
  file named `ASIDE...` beside it. The new file is on disk when this returns.

  Args:
    path: of the file; its folder exists.
    num_bytes: that the file takes, at most.
    write: called with the name of a local file to write.

  Raises:
    UserError: the file could not be written; the old one is as it was.
  """
  with explain_failed_write(path.parent, num_bytes):
    if is_local(path):
      _publish_by_renaming(path, write)
    else:
      with tempfile.TemporaryDirectory() as scratch:
        aside = pathlib.Path(scratch) / path.name
        write(str(aside))
        path.write_bytes(aside.read_bytes())


def _publish_by_renaming(
  path: epath.Path, write: Callable[[str], None]
) -> None:
  aside = path.parent / (ASIDE + path.name)
  try:
    write(os.fspath(aside))
    _sync(aside)
    os.replace(aside, path)
  except BaseException:
    aside.unlink(missing_ok=True)
    raise
  _sync(path.parent)


def publish_text(path: epath.Path, text: str) -> None:
  """Makes `text` the content of the file at `path`; see `publish`."""
  content = text.encode()
  publish(
    path,
    len(content),
    lambda aside: pathlib.Path(aside).write_bytes(content),
  )


@contextlib.contextmanager
def local_copy(path: epath.Path) -> Iterator[str]:
  """The name of a local file with the content of `path`, while in context."""
  if is_local(path):
    yield os.fspath(path)
    return
  with tempfile.TemporaryDirectory() as scratch:
    copy = pathlib.Path(scratch) / path.name
    copy.write_bytes(path.read_bytes())
    yield str(copy)


@contextlib.contextmanager
def lock(folder: epath.Path, *, wait: bool = False) -> Iterator[None]:
  """Holds a local folder for this process, while in context.

  The lock is the process's own: its death frees it, and children do not
  inherit it.

  Args:
    folder: to hold; it exists.
    wait: until another process lets go of it.

  Raises:
    HeldError: another process holds the folder, and `wait` is not set.
  """
  if not is_local(folder):
    yield
    return
  with contextlib.ExitStack() as stack:
    with explain_failed_write(folder):
      file = stack.enter_context(open(folder / _LOCK, "w"))
    try:
      fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
      raise HeldError(
        f"{folder} is being written by another process, and a folder has one "
        "writer: stop the other one, or use another directory."
      ) from None
    yield


def sha256(file: str) -> str:
  """Checksum of a local file, in hexadecimal."""
  with open(file, "rb") as opened:
    return hashlib.file_digest(opened, "sha256").hexdigest()


@contextlib.contextmanager
def explain_failed_write(
  folder: epath.Path, num_bytes: int = 0
) -> Iterator[None]:
  """Turns an OSError in context into a UserError.

  Args:
    folder: that is written to.
    num_bytes: that the write needs, at most.
  """
  try:
    yield
  except OSError as error:
    raise UserError(
      f"{folder} cannot be written ({error.strerror or error}; {num_bytes} "
      f"bytes needed, {_free_bytes(folder)} free): free space there, make it "
      "writable, or use another directory, and run again; what was stored "
      "before is intact."
    ) from error


def _free_bytes(folder: epath.Path) -> int | str:
  for existing in (folder, *folder.parents) if is_local(folder) else ():
    with contextlib.suppress(OSError):
      return shutil.disk_usage(existing).free
  return "an unknown number"


def _sync(path: epath.Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
