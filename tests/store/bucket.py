"""A bucket that is a folder, and that fails when it is told to."""

import collections
import pathlib

import pytest
from etils.epath import backend, gpath


class Bucket:
  """Stands for the library through which epath reaches `gs://`.

  Attributes:
    calls: how often each operation was called on each path.
    failures: by operation, what its next calls raise instead.
  """

  def __init__(self, folder: pathlib.Path):
    """Objects lie in a folder, by their names without `gs://`."""
    self._folder = folder
    self.calls: collections.Counter = collections.Counter()
    self.failures: dict[str, list[Exception]] = {}

  def __getattr__(self, operation):
    operate = getattr(backend.os_backend, operation)

    def call(path, *args, **kwargs):
      self.calls[operation, str(path)] += 1
      if errors := self.failures.get(operation):
        raise errors.pop(0)
      local = self._folder / str(path).removeprefix("gs://")
      if operation == "open":
        local.parent.mkdir(parents=True, exist_ok=True)
      return operate(str(local), *args, **kwargs)

    return call


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """What `gs://` paths are reached through: see `Bucket`."""
  found = Bucket(tmp_path / "bucket")
  by_scheme = property(
    lambda path: found if path._uri_scheme else backend.os_backend
  )
  monkeypatch.setattr(gpath.PosixGPath, "_backend", by_scheme)
  return found
