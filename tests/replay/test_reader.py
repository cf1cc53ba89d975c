import os
import resource
import shutil
import tracemalloc

import numpy as np
import pytest

from qstar_jax.errors import UserError
from qstar_jax.replay import (
  EMPTY_CURSOR,
  DamagedShardError,
  ReplayReader,
  ReplayWriter,
)
from qstar_jax.replay.codec import TREES
from qstar_jax.store import files, manifest


def _keys(records):
  return [(record.actor_id, record.sequence) for record in records]


def test_empty_and_missing_stores(tmp_path):
  assert list(ReplayReader(tmp_path)) == []
  with pytest.raises(UserError, match="cannot be read"):
    ReplayReader(tmp_path / "nowhere")
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match=r"holds file but no actor_\* folder"):
    ReplayReader(tmp_path)


def test_index(store, fill):
  fill(10)
  reader = ReplayReader(store)
  assert reader[-1].sequence == 9
  assert [reader[index].sequence for index in (9, 0, 5)] == [9, 0, 5]
  for index in (10, -11):
    with pytest.raises(IndexError):
      reader[index]


def _damages(rng, content):
  for _ in range(40):
    yield content[: rng.integers(len(content))]
  for _ in range(40):
    flipped = np.unpackbits(np.frombuffer(content, np.uint8))
    flipped[rng.integers(flipped.size)] ^= 1
    yield np.packbits(flipped).tobytes()
  yield content + b"\0"


def test_every_cut_and_every_flipped_bit_is_found(store, fill, make_tree):
  folder = fill(12)
  shard = folder / manifest.read(folder, TREES).shards[1].file
  content = shard.read_bytes()
  intact = [*range(4), *range(8, 12)]
  for damaged in _damages(np.random.default_rng(0), content):
    shard.write_bytes(damaged)
    reader = ReplayReader(store)
    with pytest.raises(DamagedShardError, match="restore it from a copy") as e:
      list(reader)
    assert str(e.value).startswith(f"{shard} is damaged")
    assert "\n" not in str(e.value)
    assert [reader[index].sequence for index in intact] == intact

    reader = ReplayReader(store, skip_damaged=True)
    assert [record.sequence for record in reader] == intact
    assert list(reader.damaged) == [str(shard)]
    assert reader.num_damaged == 4
    with pytest.raises(DamagedShardError):
      reader[4]


def test_a_missing_shard_is_damaged(store, fill):
  folder = fill(8)
  (folder / manifest.read(folder, TREES).shards[0].file).unlink()
  with pytest.raises(DamagedShardError, match="No such file"):
    list(ReplayReader(store))
  reader = ReplayReader(store, skip_damaged=True)
  assert [record.sequence for record in reader] == [4, 5, 6, 7]


def test_damage_after_opening_is_found(store, fill):
  folder = fill(4)
  shard = folder / manifest.read(folder, TREES).shards[0].file
  reader = ReplayReader(store, skip_damaged=True)
  assert reader[0].sequence == 0
  shard.write_bytes(bytes(len(shard.read_bytes())))
  with pytest.raises(DamagedShardError):
    reader[3]
  assert reader.num_damaged == 4


def test_a_wrong_count_in_the_manifest_is_found(store, fill):
  """Only the files can tell: a consistent manifest that says one tree more."""
  folder = fill(4)
  path = folder / manifest.FILE
  text = path.read_text().replace('"num_records": 4', '"num_records": 5')
  path.write_text(text.replace('"last_sequence": 3', '"last_sequence": 4'))
  with pytest.raises(DamagedShardError, match="it has 4 records"):
    ReplayReader(store)[0]


def test_actors_are_merged_by_age_and_keep_their_index(store, fill):
  fill(4, actor_id=1, params_version=0)
  fill(4, actor_id=0, params_version=2)
  fill(4, actor_id=1, params_version=1)
  reader = ReplayReader(store)
  expected = [(1, s) for s in range(8)] + [(0, s) for s in range(4)]
  assert _keys(reader) == expected
  assert reader.refresh() == 0
  fill(2, actor_id=1, params_version=1)
  fill(2, actor_id=7)
  assert reader.refresh() == 4
  expected += [(7, 0), (7, 1), (1, 8), (1, 9)]
  assert _keys(reader) == expected
  assert [reader.index(*key) for key in expected] == list(range(len(expected)))
  for absent in ((1, 10), (2, 0)):
    with pytest.raises(KeyError):
      reader.index(*absent)


def test_versions_that_fall_do_not_reorder_an_actor(store, fill):
  for params_version in (3, 1, 2):
    fill(2, params_version=params_version)
  assert [r.sequence for r in ReplayReader(store)] == list(range(6))


def test_since(store, fill):
  fill(6, actor_id=0)
  fill(3, actor_id=1)
  reader = ReplayReader(store)
  unseen = reader.read(reader.since({0: 3, 1: 9}))
  assert _keys(unseen) == [(0, 3), (0, 4), (0, 5)]
  assert reader.since({}) == list(range(9))


def test_a_tree_in_two_shards_is_counted_once(store, fill):
  """A folder copied, or restored from a backup, beside the one that went on."""
  folder = fill(6, shard_trees=4)
  shutil.copytree(folder, store / "actor_copy")
  with ReplayWriter(store, shard_trees=4) as writer:
    writer.truncate(EMPTY_CURSOR)
  fill(5, shard_trees=5)
  fill(4, shard_trees=4)
  reader = ReplayReader(store)
  assert sorted(_keys(reader)) == [(0, sequence) for sequence in range(9)]
  assert sorted(reader.index(0, sequence) for sequence in range(9)) == list(
    range(9)
  )


def test_truncation_under_a_reader_is_told(store, fill):
  fill(8)
  reader = ReplayReader(store)
  with ReplayWriter(store, shard_trees=4) as writer:
    writer.truncate(EMPTY_CURSOR)
  with pytest.raises(UserError, match="open it again"):
    reader.refresh()


def test_memory_and_open_files_stay_few(store, fill):
  fill(360, shard_trees=4)
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  next_file = os.dup(0)
  os.close(next_file)

  def peak_while_reading(num_trees):
    reader = ReplayReader(store)
    tracemalloc.start()
    try:
      assert sum(1 for _ in reader.read(range(num_trees))) == num_trees
      return tracemalloc.get_traced_memory()[1]
    finally:
      tracemalloc.stop()

  try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_file + 80, hard))
    peak_while_reading(4)
    assert peak_while_reading(360) < peak_while_reading(60) + 200_000
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_bucket_paths(store, fill, monkeypatch, same_tree, make_tree):
  """Without renames, locks and syncs: what a bucket's path gets."""
  monkeypatch.setattr(files, "is_local", lambda path: False)
  monkeypatch.setattr(files.os, "replace", None)
  folder = fill(6)
  names = {path.name for path in folder.iterdir()}
  assert not any(map(files.is_own_litter, names))
  for sequence, record in enumerate(ReplayReader(store)):
    assert same_tree(record, make_tree(sequence))
  assert sequence == 5
