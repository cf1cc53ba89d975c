"""Files that cannot be had, now or at all; files that others replace."""

import errno
import json
import subprocess
import sys

import pytest
from etils import epath

from qstar_jax.errors import UserError
from qstar_jax.store import files
from qstar_jax.store import manifest as manifest_lib
from qstar_jax.store.reader import StoreReader
from qstar_jax.store.writer import StoreWriter
from qstar_jax.training.metrics_log import append_whole, read_metrics
from tests.store.test_store import NUMBERS

pytest_plugins = ["tests.store.bucket"]


class OpError(Exception):
  """What TensorFlow raises: no OSError."""

  def __init__(self, error_code):
    super().__init__(f"of code {error_code}\nand more")
    self.error_code = error_code


class HttpError(Exception):
  """What gcsfs raises where it knows nothing better."""

  def __init__(self, code):
    super().__init__(f"of code {code}")
    self.code = code


TRANSIENT = [
  *(lambda code=code: OpError(code) for code in (4, 8, 10, 14)),
  *(lambda code=code: HttpError(code) for code in (408, 429, 500, 503)),
  lambda: OSError(errno.EIO, "Input/output error"),
  lambda: OSError(errno.ETIMEDOUT, "Connection timed out"),
  lambda: TimeoutError("too slow"),
  lambda: ConnectionResetError("gone"),
]
PERMANENT = [
  *(lambda code=code: OpError(code) for code in (3, 7, 9, 13, 16)),
  *(lambda code=code: HttpError(code) for code in (400, 401, 403)),
  lambda: OSError(errno.EACCES, "Permission denied"),
  lambda: OSError("Forbidden"),
]
MISSING = [lambda: OpError(5), lambda: HttpError(404), FileNotFoundError]


@pytest.fixture
def waits(monkeypatch):
  """The seconds that were waited, in no time."""
  found = []
  monkeypatch.setattr(files.time, "sleep", found.append)
  return found


@pytest.fixture
def path(bucket):
  found = epath.Path("gs://name/folder/file")
  found.write_bytes(b"content")
  bucket.calls.clear()
  return found


_PATH = "gs://name/folder/file"

# How each fails in the library, and what it gives where it does not fail.
OPERATIONS = {
  "exists": (files.exists, "exists", True),
  "read": (files.read_bytes, "open", b"content"),
  "list": (lambda p: [*map(str, files.children(p.parent))], "listdir", [_PATH]),
  "write": (lambda p: files.publish_text(p, "new"), "open", None),
  "make": (lambda p: files.make_folder(p.parent), "makedirs", None),
  "remove": (files.remove, "remove", None),
}


@pytest.mark.parametrize("make_error", TRANSIENT)
@pytest.mark.parametrize("name", OPERATIONS)
def test_what_may_pass_is_tried_again(
  bucket, path, waits, capsys, name, make_error
):
  operate, operation, expected = OPERATIONS[name]
  bucket.failures[operation] = [make_error() for _ in range(3)]
  assert operate(path) == expected
  assert waits == sorted(set(waits))
  assert len(waits) == 3
  told = capsys.readouterr().err.splitlines()
  assert len(told) == 3
  assert all(line.startswith("gs://name/folder") for line in told)


@pytest.mark.parametrize("name", OPERATIONS)
def test_not_for_ever(bucket, path, waits, name):
  operate, operation, _ = OPERATIONS[name]
  bucket.failures[operation] = [OpError(14) for _ in range(100)]
  with pytest.raises(files.UnreachableError, match="cannot be reached") as e:
    operate(path)
  assert 100 - len(bucket.failures[operation]) == len(waits) + 1 < 10
  message = str(e.value)
  assert "gs://name/folder" in message and "of code 14;" in message


@pytest.mark.parametrize("make_error", PERMANENT)
@pytest.mark.parametrize("name", OPERATIONS)
def test_what_does_not_pass_is_told_at_once(
  bucket, path, waits, name, make_error
):
  operate, operation, _ = OPERATIONS[name]
  error = make_error()
  bucket.failures[operation] = [error]
  with pytest.raises(UserError, match=r"cannot be (read|written)") as caught:
    operate(path)
  message = str(caught.value)
  assert message.startswith("gs://name/folder")
  assert (getattr(error, "strerror", None) or str(error)[:9]) in message
  assert "\n" not in message
  assert not isinstance(caught.value, files.MissingError)
  assert waits == []


@pytest.mark.parametrize("make_error", MISSING)
def test_what_is_not_there(bucket, path, waits, make_error):
  bucket.failures["open"] = [make_error()]
  with pytest.raises(files.MissingError, match="gs://name/folder/file"):
    files.read_bytes(path)
  assert waits == []


def test_a_mistake_of_the_program_is_no_users(bucket, path):
  bucket.failures["open"] = [ZeroDivisionError()]
  with pytest.raises(ZeroDivisionError):
    files.read_bytes(path)


def test_errors_of_tensorflow_itself():
  """They are known by their code, for which TensorFlow is not loaded."""
  code = """
import sys
from etils import epath
from qstar_jax.store import files
assert "tensorflow" not in sys.modules
import tensorflow as tf
files._WAITS = ()
for name, kind in vars(tf.errors).items():
  is_one = isinstance(kind, type) and issubclass(kind, tf.errors.OpError)
  if is_one and name != "OpError":
    def fail():
      raise kind(None, None, "why")
    try:
      files._look(epath.Path("gs://name"), fail)
    except files.UserError as error:
      print(name, type(error).__name__)
"""
  ended = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  found = dict(line.split() for line in ended.stdout.splitlines())
  assert found.pop("NotFoundError") == "MissingError"
  for name in ("Aborted", "DeadlineExceeded", "ResourceExhausted"):
    assert found.pop(f"{name}Error") == "UnreachableError"
  assert found.pop("UnavailableError") == "UnreachableError"
  assert {"PermissionDeniedError", "UnauthenticatedError"} <= set(found)
  assert set(found.values()) == {"UserError"}


def test_a_store_in_a_bucket_that_fails_now_and_then(bucket, waits):
  """Nothing is lost, and nothing is there twice."""
  store = epath.Path("gs://name/replay")
  operations = ("exists", "open", "listdir", "makedirs", "stat")

  def stumble():
    for operation in operations:
      bucket.failures[operation] = [OpError(14)]

  log = epath.Path("gs://name/metrics.jsonl")
  for first in range(0, 12, 4):
    stumble()
    with StoreWriter(store, NUMBERS, shard_records=4) as writer:
      writer.extend(range(first, first + 4), {"rounds": first})
    stumble()
    reader = StoreReader(store, NUMBERS, skip_damaged=True)
    stumble()
    assert list(reader) == list(range(first + 4))
    assert reader.damaged == {}
    stumble()
    line = {"kind": "data", "step": first, "time": 0, "minutes": 0}
    append_whole(log, json.dumps(line).encode() + b"\n")
  assert [record["step"] for record in read_metrics(log.parent)] == [0, 4, 8]
  assert len(waits) > 12


def test_what_cannot_be_reached_is_not_damaged(bucket, waits):
  store = epath.Path("gs://name/replay")
  with StoreWriter(store, NUMBERS, shard_records=4) as writer:
    writer.extend([0, 1, 2, 3])
  reader = StoreReader(store, NUMBERS, skip_damaged=True)
  bucket.failures["open"] = [OpError(14) for _ in range(100)]
  with pytest.raises(files.UnreachableError):
    list(reader)
  bucket.failures.clear()
  assert list(reader) == [0, 1, 2, 3]
  assert reader.num_damaged == 0


# Files that others replace.


@pytest.fixture(params=["local", "bucket"])
def store(request, tmp_path, bucket):
  return epath.Path(
    tmp_path / "store" if request.param == "local" else "gs://name/store"
  )


def test_manifests_are_read_when_they_were_replaced(store, monkeypatch):
  """Two streams, of which one grows: so many looks, so many reads."""
  clock = [0.0]
  monkeypatch.setattr(files.time, "monotonic", lambda: clock[0])
  read_bytes, read = files.read_bytes, []
  monkeypatch.setattr(
    files, "read_bytes", lambda path: read.append(path) or read_bytes(path)
  )
  writers = [
    StoreWriter(store, NUMBERS, stream_id, shard_records=2)
    for stream_id in range(2)
  ]
  reader = StoreReader(store, NUMBERS)

  def look():
    clock[0] += 10
    read.clear()
    num_new = reader.refresh()
    return num_new, [path.parent.name for path in read]

  look()
  assert [look() for _ in range(5)] == [(0, [])] * 5
  for number in range(0, 6, 2):
    writers[1].extend([number, number + 1])
    assert look() == (2, ["source_00001"])
    look()  # In a bucket it is read once more.
    assert [look() for _ in range(5)] == [(0, [])] * 5
  assert list(reader) == list(range(6))
  # A new stream is found.
  writers.append(StoreWriter(store, NUMBERS, 2, shard_records=2))
  assert look() == (0, ["source_00002"])
  writers[2].extend([6, 7])
  assert look()[0] == 2
  for writer in writers:
    writer.close()


def test_a_file_that_changes_within_a_second(bucket, monkeypatch):
  """A bucket's times do not tell, and its size may be the same."""
  clock = [0.0]
  monkeypatch.setattr(files.time, "monotonic", lambda: clock[0])
  path = epath.Path("gs://name/file")
  path.write_text("a")
  stat = path.stat()
  monkeypatch.setattr(bucket, "stat", lambda _: stat, raising=False)
  changing = files.Changing(path, path.read_text)
  assert changing.get() == "a"
  path.write_text("b")
  clock[0] += 0.5
  assert changing.get() == "b"
  path.write_text("c")
  clock[0] += 9.5
  assert changing.get() == "c"
  bucket.calls.clear()
  assert changing.get() == "c"
  assert bucket.calls["open", "gs://name/file"] == 0


def test_a_file_that_comes_and_goes(store):
  store.mkdir(parents=True)
  changing = files.Changing(
    store / "file", lambda: files.exists(store / "file")
  )
  assert not changing.get()
  files.publish_text(store / "file", "")
  assert changing.get()
  files.remove(store / "file")
  assert not changing.get()


def test_a_read_that_fails_is_tried_at_the_next_look(tmp_path):
  path = epath.Path(tmp_path) / "file"
  files.publish_text(path, "a")
  results = iter([UserError("damaged"), "a"])

  def read():
    if isinstance(result := next(results), Exception):
      raise result
    return result

  changing = files.Changing(path, read)
  with pytest.raises(UserError):
    changing.get()
  assert changing.get() == "a"
  assert changing.get() == "a"


def test_a_manifest_that_comes_between_two_looks(tmp_path, monkeypatch):
  """What stands beside it was not there without it."""
  folder = epath.Path(tmp_path) / "source_00000"
  with StoreWriter(tmp_path, NUMBERS, shard_records=4) as writer:
    writer.extend([0, 1, 2, 3])
  read_bytes = files.read_bytes
  late = iter([files.MissingError("not yet")])

  def read_late(path):
    for error in late:
      raise error
    return read_bytes(path)

  monkeypatch.setattr(files, "read_bytes", read_late)
  assert manifest_lib.read(folder, NUMBERS).num_records == 4
