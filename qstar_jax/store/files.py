"""Files that appear whole or not at all, on a local disk or in a bucket.

In a bucket an object appears when its upload ends, so there is nothing to
rename or to sync. A bucket has no locks either: one writer to a folder is the
caller's word. What fails and may pass, as a bucket's requests do now and then,
is tried again.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from etils import epath

from qstar_jax.errors import UserError

# Starts the name of every file that is not part of the store.
ASIDE = ".aside-"
_LOCK = ".lock"

# Between attempts at what may pass, in seconds.
_WAITS = (1, 2, 4, 8, 16)

# Bucket libraries raise errors of their own with a code: TensorFlow one of
# gRPC's (`error_code`), others one of HTTP (`code`). What they say as an errno.
# They are known by it alone: TensorFlow is not imported for its classes.
_ERRNOS = {
  **dict.fromkeys((5, 404), errno.ENOENT),
  **dict.fromkeys((7, 16, 401, 403), errno.EACCES),
  **dict.fromkeys((4, 408, 504), errno.ETIMEDOUT),
  # Resource exhausted, aborted, unavailable; too many requests, server errors.
  **dict.fromkeys((8, 10, 14, 429, 500, 502, 503), errno.EIO),
}
_MAY_PASS = {errno.EIO, errno.ETIMEDOUT}

# A bucket's times are whole seconds, and this is more than one.
_BUCKET_TICK = 2.0

T = TypeVar("T")


class HeldError(UserError):
  """A folder is being written by another process."""


class MissingError(UserError):
  """A file or folder is not there."""


class UnreachableError(UserError):
  """A file could not be reached for a while, however often it was tried.

  The same command may succeed later.
  """

  exit_code = os.EX_TEMPFAIL  # 75


def is_local(path: epath.Path) -> bool:
  """True for a path of this machine's file system, False for a bucket's."""
  return "://" not in os.fspath(path)


def is_own_litter(name: str) -> bool:
  """True for the names of files that are never read: cut writes, the lock."""
  return name.startswith(ASIDE) or name == _LOCK


def make_folder(folder: epath.Path) -> None:
  """Makes the folder and its parents; durable when this returns."""

  def make() -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if is_local(folder):
      _sync(folder.parent)

  with explain_failed_write(folder):
    attempt(folder, make)


def attempt(path: epath.Path, operate: Callable[[], T]) -> T:
  """Does something with a file; where it fails and that may pass, again.

  Each further attempt is told on standard error.

  Args:
    path: of the file.
    operate: may be called again after it has failed, or seems to have.

  Raises:
    OSError: it cannot be done. A bucket's own errors become one of these.
    UnreachableError: it failed every time.
  """
  waits = iter(_WAITS)
  while True:
    try:
      with _as_os_error():
        return operate()
    except OSError as error:
      if not _may_pass(error):
        raise
      if (wait := next(waits, None)) is None:
        raise UnreachableError(
          f"{path} cannot be reached ({_reason(error)}; tried "
          f"{len(_WAITS) + 1} times): see to the disk, or the network and the "
          "bucket, and run again; what was stored before is intact."
        ) from error
      print(
        f"{path}: {_reason(error)}; tried again in {wait} s",
        file=sys.stderr,
        flush=True,
      )
    time.sleep(wait)


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
  """Turns a bucket's own errors in context into OSErrors."""
  try:
    yield
  except OSError:
    raise
  except Exception as error:
    code = getattr(error, "error_code", getattr(error, "code", None))
    if not isinstance(code, int):
      raise
    number = _ERRNOS.get(code, errno.EPROTO)
    raise OSError(number, str(error) or type(error).__name__) from error


def _may_pass(error: OSError) -> bool:
  is_of_network = isinstance(error, TimeoutError | ConnectionError)
  return is_of_network or error.errno in _MAY_PASS


def _reason(error: OSError) -> str:
  """What the error says, in one line."""
  return (error.strerror or str(error)).strip().partition("\n")[0]


def exists(path: epath.Path) -> bool:
  """Whether there is such a file or folder; raises as `read_bytes`."""
  return _look(path, path.exists)


def read_bytes(path: epath.Path) -> bytes:
  """The content of a file.

  Raises:
    MissingError: there is none.
    UserError: it cannot be read.
  """
  return _look(path, path.read_bytes)


def children(folder: epath.Path) -> list[epath.Path]:
  """What is in a folder, in order of name; raises as `read_bytes`."""
  return _look(folder, lambda: sorted(folder.iterdir()))


def _look(path: epath.Path, look: Callable[[], T]) -> T:
  try:
    return attempt(path, look)
  except FileNotFoundError as error:
    raise MissingError(
      f"{path} cannot be read ({_reason(error)}): check the path, or restore "
      "it from a copy."
    ) from error
  except OSError as error:
    raise UserError(
      f"{path} cannot be read ({_reason(error)}): make it readable."
    ) from error


class Changing(Generic[T]):
  """What is in a file that others replace, read only when they have."""

  def __init__(self, path: epath.Path, read: Callable[[], T]):
    """Reads nothing yet.

    Args:
      path: of the file, which need not be there.
      read: gives what is in it, or what stands for a file that is not there.
    """
    self._path = path
    self._read = read
    self._stamp: tuple | None = None
    self._seen_at = 0.0
    self._is_last = False
    self._content: T

  def get(self) -> T:
    """What is in the file now. Raises as `read_bytes`, and as `read`."""
    stamp, now = _stamp(self._path), time.monotonic()
    if stamp != self._stamp:
      self._stamp, self._seen_at, self._is_last = stamp, now, False
    if stamp is None or not self._is_last:
      self._content = self._read()
      # What is written from now on has another stamp.
      tick = 0.0 if is_local(self._path) else _BUCKET_TICK
      self._is_last = now - self._seen_at >= tick
    return self._content


def _stamp(path: epath.Path) -> tuple | None:
  """Another one once the file was replaced; None if there is none to tell."""
  try:
    if is_local(path):
      of_file = _look(path, lambda: os.stat(path))
      return of_file.st_mtime_ns, of_file.st_size, of_file.st_ino
    of_object = _look(path, path.stat)
  except MissingError:
    return None
  if not of_object.mtime:
    return None  # Some libraries know no times.
  return of_object.mtime, of_object.length


def publish(
  path: epath.Path, num_bytes: int, write: Callable[[str], None]
) -> None:
  """Makes what `write` writes the file at `path`, replacing what was there.

  Killed at any instant, this leaves the old file or the new one, and at most a
  file named `ASIDE...` beside it. The new file is on disk when this returns.

  Args:
    path: of the file; its folder exists.
    num_bytes: that the file takes, at most.
    write: called with the name of a local file to write; perhaps again, if what
      it wrote could not be published.

  Raises:
    UserError: the file could not be written; the old one is as it was.
  """
  with explain_failed_write(path.parent, num_bytes):
    if is_local(path):
      attempt(path, lambda: _publish_by_renaming(path, write))
    else:
      with tempfile.TemporaryDirectory() as scratch:
        aside = pathlib.Path(scratch) / path.name
        write(str(aside))
        content = aside.read_bytes()
      attempt(path, lambda: path.write_bytes(content))


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


def remove(path: epath.Path) -> None:
  """Removes a file, if it is there.

  Raises:
    UserError: it cannot be removed.
  """
  with explain_failed_write(path.parent):
    attempt(path, lambda: path.unlink(missing_ok=True))


@contextlib.contextmanager
def local_copy(path: epath.Path) -> Iterator[str]:
  """The name of a local file with the content of `path`, while in context.

  Raises:
    OSError: it cannot be read.
    UnreachableError: see `attempt`.
  """
  if is_local(path):
    yield os.fspath(path)
    return
  with tempfile.TemporaryDirectory() as scratch:
    copy = pathlib.Path(scratch) / path.name
    copy.write_bytes(attempt(path, path.read_bytes))
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
      f"{folder} cannot be written ({_reason(error)}; {num_bytes} "
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
