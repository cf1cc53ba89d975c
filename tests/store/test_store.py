"""What a store does for records of any kind; see tests/replay for the rest."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from qstar_jax.errors import UserError
from qstar_jax.store import manifest as manifest_lib
from qstar_jax.store.codec import Codec, read_example, write_example
from qstar_jax.store.reader import CorruptRecordError, StoreReader
from qstar_jax.store.writer import StoreWriter

_FEATURES = tfds.features.FeaturesDict({"n": tfds.features.Scalar(np.int64)})


def _decode(example):
  number = read_example(_FEATURES, example)["n"]
  if number < 0:
    raise ValueError(f"{number} is negative")
  return number


# Numbers, of which only those from 0 on are to be read.
NUMBERS = Codec(
  dataset="numbers",
  schema_version=1,
  description="numbers",
  records="numbers",
  stream="source",
  features=lambda: _FEATURES,
  encode=lambda number: write_example(_FEATURES, {"n": number}),
  decode=_decode,
  params_version=lambda number: 0,
)


@pytest.fixture
def open_writer(tmp_path):
  def open_stream(stream_id=0, shard_records=4, codec=NUMBERS):
    return StoreWriter(tmp_path, codec, stream_id, shard_records=shard_records)

  return open_stream


def test_records_that_belong_together_share_a_shard(tmp_path, open_writer):
  with open_writer() as writer:
    for first in range(0, 30, 3):
      writer.extend(range(first, first + 3))
  shards = manifest_lib.read(writer.folder, NUMBERS).shards
  assert [shard.num_records for shard in shards] == [6, 6, 6, 6, 6]
  assert list(StoreReader(tmp_path, NUMBERS)) == list(range(30))


def test_progress_is_that_of_the_records(open_writer):
  """Stored with them, lost with them, dropped with them."""
  with pytest.raises(KeyError), open_writer() as writer:
    assert writer.progress == {}
    writer.extend([0, 1, 2, 3], {"done": 1})
    cursor = json.loads(json.dumps(writer.cursor))
    writer.extend([4, 5], {"done": 2})
    assert writer.progress == {"done": 2}
    raise KeyError
  with open_writer() as writer:
    assert (writer.next_sequence, writer.progress) == (4, {"done": 1})
    writer.extend([4, 5], {"done": 2})
  with open_writer() as writer:
    assert (writer.next_sequence, writer.progress) == (6, {"done": 2})
    writer.extend([], {"done": 3})
  with open_writer() as writer:
    assert (writer.next_sequence, writer.progress) == (6, {"done": 3})
    writer.truncate(cursor)
    assert (writer.next_sequence, writer.progress) == (4, {"done": 1})
  with open_writer() as writer:
    assert (writer.next_sequence, writer.progress) == (4, {"done": 1})


def test_records_that_cannot_be_encoded_leave_no_trace(open_writer):
  with open_writer() as writer:
    with pytest.raises(ValueError):
      writer.extend([0, 1, "two"], {"done": 1})
    assert (writer.next_sequence, writer.progress) == (0, {})


def test_a_store_as_it_was(tmp_path, open_writer):
  """However streams have grown, and others begun, since."""
  for stream_id in (1, 2):
    with open_writer(stream_id) as writer:
      writer.extend([stream_id])
  cursors = json.loads(json.dumps(StoreReader(tmp_path, NUMBERS).cursors))
  assert set(cursors) == {"source_00001", "source_00002"}
  for stream_id in (0, 1, 2):
    with open_writer(stream_id) as writer:
      writer.extend([10 + stream_id])
  reader = StoreReader(tmp_path, NUMBERS, cursors=cursors)
  assert list(reader) == [1, 2]
  assert reader.refresh() == 0
  assert reader.cursors == cursors
  assert list(StoreReader(tmp_path, NUMBERS)) == [10, 1, 2, 11, 12]
  cursors["source_00001"]["last_sha256"] = "0" * 64
  for wrong in (cursors, {"source_00007": cursors["source_00001"]}):
    with pytest.raises(UserError, match="was never at the cursor"):
      StoreReader(tmp_path, NUMBERS, cursors=wrong)


def test_corrupt_records_are_named_and_counted(tmp_path, open_writer):
  with open_writer() as writer:
    writer.extend([0, 1, -5, 3])
    writer.extend([4, 5, 6, -7])
  shards = [
    writer.folder / shard.file
    for shard in manifest_lib.read(writer.folder, NUMBERS).shards
  ]
  with pytest.raises(CorruptRecordError, match="-5 is negative") as caught:
    list(StoreReader(tmp_path, NUMBERS))
  assert str(caught.value).startswith(f"{shards[0]}, record 2 is corrupt")
  reader = StoreReader(tmp_path, NUMBERS, skip_damaged=True)
  for _ in range(2):
    assert list(reader) == [0, 1, 3, 4, 5, 6]
    assert reader.num_damaged == 2
    assert reader.damaged == {
      f"{shards[0]}, record 2": "-5 is negative",
      f"{shards[1]}, record 3": "-7 is negative",
    }


@pytest.mark.parametrize(
  ("example", "what"),
  [(b"", "it has no n"), (b"garbage", "it is no tf.Example")],
)
def test_bytes_that_are_no_example(example, what):
  with pytest.raises(ValueError, match=what):
    read_example(_FEATURES, example)


_ENCODE = """
import hashlib, runpy, sys
from qstar_jax.labels import codec as labels_codec
from qstar_jax.replay import codec as replay_codec

replay, labels = map(runpy.run_path, sys.argv[1:])
for example in (
  replay_codec.encode(replay["random_tree"](0)),
  labels_codec.encode(labels["line_of"](0)),
):
  print(hashlib.sha256(example).hexdigest())
"""


def test_every_process_writes_the_same_bytes():
  """A map of protocol buffers is in an order of its process unless told."""
  tests = pathlib.Path(__file__).parents[1]
  conftests = [tests / name / "conftest.py" for name in ("replay", "labels")]
  command = [sys.executable, "-c", _ENCODE, *conftests]
  outputs = {
    subprocess.run(
      command, check=True, capture_output=True, text=True, cwd=tests.parent
    ).stdout
    for _ in range(3)
  }
  assert len(outputs) == 1
  assert len(set(outputs.pop().split())) == 2
