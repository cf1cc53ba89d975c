import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
from etils import epath

from qstar_jax.errors import UserError
from qstar_jax.labels import codec, job
from qstar_jax.store import manifest as manifest_lib
from qstar_jax.store.reader import StoreReader
from tests.store.instants import Instants, contents

NUM_ITEMS = 15
SHARD_LINES = 4


@pytest.fixture
def out(tmp_path):
  path = epath.Path(tmp_path / "labels")
  path.mkdir()
  return path


@pytest.fixture
def source(make_line):
  """Items of none to three lines, the last one of none."""

  def lines(item):
    for i in range(item % 4 if item < NUM_ITEMS - 1 else 0):
      yield make_line(10 * item + i)

  return lines


@pytest.fixture
def run(source):
  def run_job(out, **kwargs):
    options = {"num_items": NUM_ITEMS, "shard_lines": SHARD_LINES} | kwargs
    return job.run(source, epath.Path(out), **options)

  return run_job


def _all_lines(source):
  return [line for item in range(NUM_ITEMS) for line in source(item)]


def test_every_line_is_stored_in_order(out, run, source, same_line):
  assert run(out)
  stored, lines = list(StoreReader(out, codec.LINES)), _all_lines(source)
  assert len(stored) == len(lines) > 15
  assert all(map(same_line, stored, lines))
  shards = manifest_lib.read(out / "process_00000", codec.LINES).shards
  # An item's lines are not parted.
  assert {shard.num_records for shard in shards[:-1]} <= {4, 5, 6}


def test_counts(out, run, source):
  run(out)
  lines = _all_lines(source)
  labels = [x for line in lines for x in line.label.tolist() if x != -1]
  expected = {
    "items": NUM_ITEMS,
    "lines": len(lines),
    "labelled_steps": len(labels),
    "labels_0": labels.count(0),
    "labels_1": labels.count(1),
    "labels_between": sum(0 < label < 1 for label in labels),
    "tokens": sum(line.tokens for line in lines),
  }
  assert json.loads((out / job.COUNTS_FILE).read_text()) == expected
  assert job.read_counts(out) == expected


def test_hard_labels_are_counted_apart(out, make_line):
  label = make_line(0).label
  label[:] = [0, 1, 1]
  line = make_line(0, kind="hard", label=label)
  job.run(lambda item: [line], out, num_items=2, shard_lines=4)
  counts = job.read_counts(out)
  assert [counts[f"labels_{x}"] for x in ("0", "1", "between")] == [2, 4, 0]


def test_a_job_that_is_done_does_nothing(out, run, monkeypatch):
  assert run(out)
  before = contents(out)
  asked = []
  for _ in range(2):
    assert not job.run(
      asked.append, out, num_items=NUM_ITEMS, shard_lines=SHARD_LINES
    )
  assert asked == []
  assert contents(out) == before


def test_progress_is_told(out, run):
  told = []
  run(out, process=1, num_processes=3, on_progress=lambda *n: told.append(n))
  assert told == [(done, 5) for done in range(6)]


def test_processes_share_the_items(out, run, source, same_line):
  for process in (2, 0, 1):
    run(out, process=process, num_processes=3)
  stored = {line.origin: line for line in StoreReader(out, codec.LINES)}
  lines = _all_lines(source)
  assert len(stored) == len(lines) == len(StoreReader(out, codec.LINES))
  assert all(same_line(stored[line.origin], line) for line in lines)
  assert job.read_counts(out)["items"] == NUM_ITEMS


class _Stop(Exception):
  pass


@pytest.mark.parametrize("stop_at", range(0, NUM_ITEMS, 3))
def test_an_interruption_leaves_no_trace(out, run, tmp_path, stop_at):
  run(tmp_path / "uninterrupted")

  def stop(done, total):
    if done == stop_at:
      raise _Stop

  with pytest.raises(_Stop):
    run(out, on_progress=stop)
  assert len(StoreReader(out, codec.LINES)) == job.read_counts(out)["lines"]
  run(out)
  assert contents(out) == contents(tmp_path / "uninterrupted")


def test_every_instant_of_a_job_can_be_the_last(
  out, run, tmp_path, monkeypatch
):
  """Copies the directory around every rename, and goes on from each copy."""
  with monkeypatch.context() as patch:
    instants = Instants(out, tmp_path / "copies", patch)
    run(out)
  expected = contents(out)
  items = set()
  for path in instants.copies:
    items.add(job.read_counts(epath.Path(path))["items"])
    run(path)
    assert contents(path) == expected
  assert len(items) > 3


# Forks a process for every line it reads, so that imports are paid once.
_SERVER = """
import os, runpy, sys
from etils import epath
out, conftest = sys.argv[1:]
line_of = runpy.run_path(conftest)["line_of"]
from qstar_jax.labels import job

def source(item):
  return [line_of(3 * item + i) for i in range(3)]

for line in sys.stdin:
  process = int(line)
  pid = os.fork()
  if not pid:
    job.run(
      source, epath.Path(out), num_items=300, shard_lines=8,
      process=process, num_processes=2,
    )
    os._exit(0)
  print(pid, flush=True)
"""


@contextlib.contextmanager
def _server(out):
  with subprocess.Popen(
    [
      *(sys.executable, "-c", _SERVER, out),
      pathlib.Path(__file__).with_name("conftest.py"),
    ],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    cwd=pathlib.Path(__file__).parents[2],
  ) as server:

    def start(process):
      server.stdin.write(f"{process}\n")
      server.stdin.flush()
      return int(server.stdout.readline())

    yield start
    server.stdin.close()


def _is_running(pid):
  """Not so once it is a zombie: nobody waits for it."""
  stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
  return stat.rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize(
  "num_kills", [4, pytest.param(60, marks=pytest.mark.slow)]
)
def test_two_processes_killed_at_random_instants(
  out, make_line, same_line, tmp_path, num_kills
):
  rng = random.Random(num_kills)
  with _server(out) as start:
    for _ in range(num_kills):
      pids = [start(0), start(1)]
      for pid in pids:
        time.sleep(rng.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
      while any(map(_is_running, pids)):
        time.sleep(0.001)
      if (out / "process_00000").exists():
        list(StoreReader(out, codec.LINES))
    pids = [start(0), start(1)]
    while any(map(_is_running, pids)):
      time.sleep(0.01)
  stored = {line.origin: line for line in StoreReader(out, codec.LINES)}
  assert len(stored) == len(StoreReader(out, codec.LINES)) == 900
  for index in range(900):
    assert same_line(stored[f"item {index}"], make_line(index))
  for process in range(2):
    job.run(
      lambda item: [make_line(3 * item + i) for i in range(3)],
      epath.Path(tmp_path / "uninterrupted"),
      num_items=300,
      shard_lines=8,
      process=process,
      num_processes=2,
    )
  assert contents(out) == contents(tmp_path / "uninterrupted")


def test_claim_keeps_what_the_first_process_found(out):
  told = {"source": "checked", "limit": None}
  assert job.claim(out, told, {"trees": 3}) == {"trees": 3}
  before = contents(out)
  assert job.claim(out, told, {"trees": 5}) == {"trees": 3}
  assert contents(out) == before


def test_another_job_is_refused(out):
  told = {"source": "checked", "limit": None}
  job.claim(out, told, {})
  with pytest.raises(UserError, match="limit is 7, was None") as caught:
    job.claim(out, told | {"source": "tree_q", "limit": 7}, {})
  assert "source is 'tree_q', was 'checked'" in str(caught.value)


def test_a_directory_of_other_things_is_refused(out):
  (out / "thesis.txt").write_text("")
  with pytest.raises(UserError, match=r"holds thesis\.txt but no job\.json"):
    job.claim(out, {}, {})
  assert contents(out) == {"thesis.txt": b""}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"job": 1}', "null"])
def test_a_damaged_job_is_refused(out, text):
  (out / job.JOB_FILE).write_text(text)
  with pytest.raises(UserError, match=r"job\.json is damaged"):
    job.claim(out, {"source": "checked"}, {})


@pytest.mark.parametrize(
  "progress", [{"items": -1}, {"items": "3"}, {"pages": 3}, {"lines": True}]
)
def test_progress_of_something_else_is_refused(out, run, progress):
  run(out)
  path = out / "process_00000" / manifest_lib.FILE
  content = json.loads(path.read_text()) | {"progress": progress}
  path.write_text(json.dumps(content))
  with pytest.raises(UserError, match="which is none of a labelling job"):
    run(out)
