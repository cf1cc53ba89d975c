"""Kill -9 at random instants, and readers beside a live writer."""

import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from qstar_jax.replay import ReplayReader, ReplayWriter
from qstar_jax.replay.codec import TREES
from qstar_jax.store import manifest

# Forks a writer for every line it reads, so that imports are paid once.
_SERVER = """
import os, runpy, sys
store, conftest = sys.argv[1:]
make_tree = runpy.run_path(conftest)["random_tree"]
from qstar_jax.replay import ReplayWriter

for line in sys.stdin:
  pid = os.fork()
  if not pid:
    writer = ReplayWriter(store, shard_trees=3)
    print(os.getpid(), flush=True)
    while True:
      writer.append(make_tree(writer.next_sequence))
  os.waitpid(pid, 0)
  print("dead", flush=True)
"""


@contextlib.contextmanager
def _writer_server(store):
  conftest = pathlib.Path(__file__).with_name("conftest.py")
  root = pathlib.Path(__file__).parents[2]
  with subprocess.Popen(
    [sys.executable, "-c", _SERVER, store, conftest],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    cwd=root,
  ) as server:

    def start():
      server.stdin.write("go\n")
      server.stdin.flush()
      return int(server.stdout.readline())

    def kill(pid):
      os.kill(pid, signal.SIGKILL)
      assert server.stdout.readline() == "dead\n"

    try:
      yield start, kill
    finally:
      server.stdin.close()


def _check(store, make_tree, same_tree, start=0):
  """Compares the trees from `start` on; returns how many the store holds."""
  reader = ReplayReader(store)
  for sequence in range(start, len(reader)):
    assert same_tree(reader[sequence], make_tree(sequence))
  return len(reader)


@pytest.mark.parametrize(
  "num_kills", [12, pytest.param(200, marks=pytest.mark.slow)]
)
def test_killed_at_random_instants(store, make_tree, same_tree, num_kills):
  rng = random.Random(num_kills)
  num_trees = 0
  with _writer_server(store) as (start, kill):
    for _ in range(num_kills):
      pid = start()
      time.sleep(rng.uniform(0, 0.1))
      kill(pid)
      grown = _check(store, make_tree, same_tree, start=num_trees)
      assert grown >= num_trees
      num_trees = grown
  assert num_trees > num_kills
  with ReplayWriter(store, shard_trees=3) as writer:
    assert writer.next_sequence == num_trees
    writer.append(make_tree(num_trees))
  assert _check(store, make_tree, same_tree) == num_trees + 1
  listed = {shard.file for shard in manifest.read(writer.folder, TREES).shards}
  present = {path.name for path in writer.folder.iterdir()}
  others = {".lock", "manifest.json", "features.json", "dataset_info.json"}
  assert present == listed | others


def test_a_reader_beside_a_writer_sees_whole_shards(
  store, make_tree, same_tree
):
  with _writer_server(store) as (start, kill):
    pid = start()
    reader = ReplayReader(store)
    num_refreshes = 0
    while len(reader) < 60:
      known = len(reader)
      added = reader.refresh()
      assert len(reader) == known + added
      assert len(reader) % 3 == 0
      for sequence in range(known, len(reader)):
        assert same_tree(reader[sequence], make_tree(sequence))
      num_refreshes += added > 0
    kill(pid)
  assert num_refreshes > 3
