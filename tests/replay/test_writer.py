import errno
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys

import pytest

from qstar_jax.errors import UserError
from qstar_jax.replay import EMPTY_CURSOR, ReplayReader, ReplayWriter
from qstar_jax.replay.codec import TREES
from qstar_jax.store import files, manifest
from qstar_jax.store import writer as writer_lib
from tests.store.instants import Instants


def _contents(folder):
  return {
    path.name: path.read_bytes()
    for path in folder.iterdir()
    if not files.is_own_litter(path.name)
  }


def test_trees_come_back_in_order(store, make_tree, same_tree):
  with ReplayWriter(store, 3, shard_trees=4) as writer:
    for sequence in range(10):
      assert writer.next_sequence == sequence
      assert writer.append(make_tree(sequence, actor_id=3))
  shards = manifest.read(writer.folder, TREES).shards
  assert [shard.num_records for shard in shards] == [4, 4, 2]
  reader = ReplayReader(store)
  assert len(reader) == 10
  for sequence, record in enumerate(reader):
    assert same_tree(record, make_tree(sequence, actor_id=3))
    assert same_tree(record, reader[sequence])


def test_manifest_tells_what_a_shard_holds(store, fill):
  fill(3, params_version=5)
  folder = fill(2, params_version=7)
  first, second = manifest.read(folder, TREES).shards
  assert (first.first_sequence, first.last_sequence) == (0, 2)
  assert (second.first_sequence, second.last_sequence) == (3, 4)
  assert (second.min_params_version, second.max_params_version) == (7, 7)
  for shard in (first, second):
    assert len((folder / shard.file).read_bytes()) == shard.num_bytes
    assert files.sha256(str(folder / shard.file)) == shard.sha256


def test_trees_wait_for_a_full_shard_or_a_flush(store, make_tree):
  with ReplayWriter(store, shard_trees=4) as writer:
    for sequence in range(3):
      writer.append(make_tree(sequence))
    assert len(ReplayReader(store)) == 0
    writer.flush()
    writer.flush()
    assert len(ReplayReader(store)) == 3
    assert len(manifest.read(writer.folder, TREES).shards) == 1


def test_an_error_inside_the_context_flushes_nothing(store, make_tree):
  with (
    pytest.raises(KeyError),
    ReplayWriter(store, shard_trees=4) as writer,
  ):
    writer.append(make_tree(0))
    raise KeyError
  assert len(ReplayReader(store)) == 0


def test_reopened_store_goes_on(store, fill, make_tree, same_tree):
  fill(5)
  with ReplayWriter(store, shard_trees=4) as writer:
    assert writer.next_sequence == 5
    assert not writer.append(make_tree(4))
    assert writer.append(make_tree(5))
    assert not writer.append(make_tree(5))
  records = list(ReplayReader(store))
  assert len(records) == 6
  assert same_tree(records[5], make_tree(5))


def test_gaps_and_other_actors_are_refused(store, make_tree):
  with ReplayWriter(store, shard_trees=4) as writer:
    with pytest.raises(ValueError, match="Tree 1 given when 0 is next"):
      writer.append(make_tree(1))
    with pytest.raises(ValueError, match="writer of its own"):
      writer.append(make_tree(0, actor_id=1))


def test_leftovers_are_removed_and_other_files_kept(store, fill):
  folder = fill(4)
  shard = folder / manifest.read(folder, TREES).shards[0].file
  (folder / f"{files.ASIDE}x").write_text("cut")
  unlisted = folder / shard.name.replace("00000", "00001")
  shutil.copy(shard, unlisted)
  (folder / "notes.txt").write_text("mine")
  assert len(ReplayReader(store)) == 4
  ReplayWriter(store, shard_trees=4).close()
  assert not (folder / f"{files.ASIDE}x").exists()
  assert not unlisted.exists()
  assert shard.exists()
  assert (folder / "notes.txt").exists()


def test_every_instant_of_a_write_is_consistent(
  store, tmp_path, monkeypatch, make_tree, same_tree
):
  """Copies the store before and after every rename, and opens each copy."""
  instants = Instants(store, tmp_path / "copies", monkeypatch)
  with ReplayWriter(store, shard_trees=2) as writer:
    for sequence in range(2):
      writer.append(make_tree(sequence))
    cursor = writer.cursor
    for sequence in range(2, 5):
      writer.append(make_tree(sequence))
    writer.flush()
    unlink = type(store).unlink
    monkeypatch.setattr(
      type(writer.folder),
      "unlink",
      lambda path, missing_ok=False: (
        instants.copy(),
        unlink(path, missing_ok),
      ),
    )
    writer.truncate(cursor)
  monkeypatch.undo()

  # Three files at opening and at truncation, four with each of the shards.
  assert len(instants.copies) >= 2 * (3 + 3 * 4 + 3)
  sizes = []
  for path in instants.copies:
    sizes.append(len(ReplayReader(path)))
    with ReplayWriter(path, shard_trees=2) as writer:
      assert writer.next_sequence == sizes[-1]
      while writer.next_sequence < 6:
        writer.append(make_tree(writer.next_sequence))
    records = list(ReplayReader(path))
    assert len(records) == 6
    for sequence, record in enumerate(records):
      assert same_tree(record, make_tree(sequence))
  assert set(sizes) == {0, 2, 4, 5}


def test_truncated_store_repeats_itself_byte_for_byte(store, fill):
  folder = fill(6)
  with ReplayWriter(store, shard_trees=4) as writer:
    cursor = json.loads(json.dumps(writer.cursor))
  assert (cursor["num_shards"], cursor["num_records"]) == (2, 6)
  fill(7)
  uninterrupted = _contents(folder)
  fill(9)
  with ReplayWriter(store, shard_trees=4) as writer:
    writer.truncate(cursor)
    assert writer.next_sequence == 6
    assert len(ReplayReader(store)) == 6
    assert len(list(folder.glob("*array_record*"))) == 2
  fill(7)
  assert _contents(folder) == uninterrupted


def test_truncate_drops_trees_in_memory(store, make_tree):
  with ReplayWriter(store, shard_trees=4) as writer:
    writer.append(make_tree(0))
    writer.truncate(EMPTY_CURSOR)
    assert writer.next_sequence == 0
    writer.append(make_tree(0))
    writer.flush()
    writer.truncate(EMPTY_CURSOR)
    assert writer.cursor == EMPTY_CURSOR
  assert len(ReplayReader(store)) == 0


def test_truncate_refuses_a_cursor_of_another_store(store, fill):
  fill(4)
  with ReplayWriter(store, shard_trees=4) as writer:
    for change in (
      {"num_shards": 2},
      {"num_records": 3},
      {"last_sha256": "0" * 64},
    ):
      with pytest.raises(UserError, match="restore the store that belongs"):
        writer.truncate(writer.cursor | change)
    assert writer.next_sequence == 4


def _allow_file_size(num_bytes):
  hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
  resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))


def test_a_disk_that_is_full_loses_nothing(store, fill, make_tree, same_tree):
  """The limit makes the operating system itself refuse to write on."""
  folder = fill(4)
  before = _contents(folder)
  unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
  with ReplayWriter(store, shard_trees=200) as writer:
    while writer.next_sequence < 203:
      writer.append(make_tree(writer.next_sequence))
    try:
      _allow_file_size(100_000)
      with pytest.raises(UserError) as caught:
        writer.append(make_tree(203))
    finally:
      _allow_file_size(unlimited)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{folder} cannot be written")
    assert "File too large" in message
    assert "bytes needed" in message
    assert _contents(folder) == before
    assert not list(folder.glob(f"{files.ASIDE}*"))
    assert len(ReplayReader(store)) == 4
    writer.flush()
  for sequence, record in enumerate(ReplayReader(store)):
    assert same_tree(record, make_tree(sequence))
  assert sequence == 203


@pytest.mark.parametrize("failing", range(3))
def test_no_space_at_any_file_of_a_commit(
  store, fill, make_tree, monkeypatch, failing
):
  fill(4)
  with ReplayWriter(store, shard_trees=4) as writer:
    writer.append(make_tree(4))
    replace, calls = os.replace, []

    def replace_until_full(source, target):
      if len(calls) == failing:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      calls.append(target)
      replace(source, target)

    with monkeypatch.context() as patch:
      patch.setattr(os, "replace", replace_until_full)
      with pytest.raises(UserError, match=r"No space left on device; [1-9]"):
        writer.flush()
    # From the manifest on, the tree is stored.
    assert len(ReplayReader(store)) == (5 if failing == 2 else 4)
    writer.flush()
    assert len(ReplayReader(store)) == 5
  assert len(ReplayReader(store)) == 5


def test_unwritable_directory(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match=r"cannot be written \(Not a directory"):
    ReplayWriter(tmp_path / "file" / "replay", shard_trees=4)


def test_limit_of_shards(store, fill, make_tree, monkeypatch):
  monkeypatch.setattr(writer_lib, "MAX_SHARDS", 1)
  fill(4)
  with ReplayWriter(store, shard_trees=4) as writer:
    writer.append(make_tree(4))
    with pytest.raises(UserError, match="as another actor"):
      writer.flush()
    writer.truncate(EMPTY_CURSOR)


def _open_in_a_process(store):
  script = (
    "import sys; from qstar_jax.errors import UserError\n"
    "from qstar_jax.replay import ReplayWriter\n"
    "try: ReplayWriter(sys.argv[1], shard_trees=4).close()\n"
    "except UserError as error: print(error)\n"
    "print('tensorflow' in sys.modules, 'jax' in sys.modules)"
  )
  return subprocess.run(
    [sys.executable, "-c", script, store],
    check=True,
    capture_output=True,
    text=True,
    cwd=pathlib.Path(__file__).parents[2],
  ).stdout


def test_a_second_process_is_refused(store):
  with ReplayWriter(store, shard_trees=4):
    assert "is being written by another process" in _open_in_a_process(store)
  # Nor does writing load TensorFlow or JAX.
  assert _open_in_a_process(store) == "False False\n"


def test_a_flush_that_fails_at_the_end_lets_go(store, make_tree, monkeypatch):
  with (
    pytest.raises(UserError, match="as another actor"),
    ReplayWriter(store, shard_trees=4) as writer,
  ):
    writer.append(make_tree(0))
    monkeypatch.setattr(writer_lib, "MAX_SHARDS", 0)
  assert writer.next_sequence == 1
  assert _open_in_a_process(store) == "False False\n"


def test_foreign_directory(store, fill):
  folder = fill(4)
  (folder / manifest.FILE).unlink()
  for opens in (lambda: ReplayWriter(store, shard_trees=4), _read(store)):
    with pytest.raises(UserError, match=r"but no manifest\.json, so it is no"):
      opens()
  assert (folder / "features.json").exists()


def _read(store):
  return lambda: ReplayReader(store)


def _change(**changes):
  return lambda text: json.dumps(json.loads(text) | changes)


def _change_shard(**changes):
  def change(text):
    content = json.loads(text)
    content["shards"][0] |= changes
    return json.dumps(content)

  return change


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda text: text[: len(text) // 2], "is damaged"),
    (lambda text: "", "is damaged"),
    (lambda text: "[]", "is damaged"),
    (lambda text: "{}", "is damaged"),
    (_change(format="other"), "its format is not 'qstar_jax store'"),
    (_change(extra=1), "is damaged .*extra"),
    (_change(shards=[{}]), "is damaged"),
    (_change(shards=None), "is damaged"),
    (_change(stream_id="0"), "is damaged .*stream_id is '0'"),
    (_change(dataset="qstar_labels"), "its dataset is not 'qstar_trees'"),
    (_change(progress=1), "is damaged .*progress is 1"),
    (_change(schema_version=2), "has schema version 2, and .* version 1"),
    (_change_shard(num_records=3), "is damaged .*shard 0"),
    (_change_shard(first_sequence=1), "is damaged .*shard 0"),
    (_change_shard(file="../other"), "is damaged .*shard 0"),
    (_change_shard(num_bytes=None), "is damaged .*num_bytes is None"),
    (_change(stream_id=1), "holds trees of actor 1, not of actor 0"),
  ],
)
def test_damaged_manifest(store, fill, damage, message):
  folder = fill(6)
  path = folder / manifest.FILE
  path.write_text(damage(path.read_text()))
  before = _contents(folder)
  with pytest.raises(UserError, match=message) as caught:
    ReplayWriter(store, shard_trees=4)
  assert "\n" not in str(caught.value)
  assert str(folder) in str(caught.value)
  assert _contents(folder) == before
