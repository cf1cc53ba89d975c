import collections
import json

import numpy as np
import pytest

from qstar_jax.errors import UserError
from qstar_jax.replay import ReplayReader, ReplayWindow
from qstar_jax.replay.codec import TREES
from qstar_jax.store import manifest


@pytest.fixture
def window_of(make_tree):
  def make(num_trees, **kwargs):
    window = ReplayWindow(
      **{"window_trees": 100, "max_reuse": 100, "seed": 0} | kwargs
    )
    for sequence in range(num_trees):
      assert window.add(make_tree(sequence, params_version=sequence))
    return window

  return make


def _sequences(records):
  return [record.sequence for record in records]


def test_the_newest_trees_are_held(window_of):
  window = window_of(10, window_trees=4)
  assert sorted(_sequences(window.sample(100))) == [6, 7, 8, 9]


def test_a_tree_is_counted_once(window_of, make_tree):
  window = window_of(10, window_trees=4)
  for sequence in (9, 6, 0):
    assert not window.add(make_tree(sequence))
  assert window.add(make_tree(0, actor_id=1))
  assert window.metrics(0)["size"] == 4


def test_samples_differ_and_are_uniform(window_of):
  window = window_of(20, max_reuse=10_000)
  counts = collections.Counter()
  for _ in range(1000):
    sequences = _sequences(window.sample(5))
    assert len(set(sequences)) == 5
    counts.update(sequences)
  # Binomial of 1000 draws at 1/4: mean 250, standard deviation 13.7.
  assert all(abs(counts[sequence] - 250) < 5 * 13.7 for sequence in range(20))


def test_fewer_trees_than_asked_for(window_of):
  assert window_of(0).sample(3) == []
  assert sorted(_sequences(window_of(2).sample(3))) == [0, 1]
  assert window_of(2).sample(0) == []


def test_a_tree_is_retired_after_max_reuse(window_of, make_tree):
  window = window_of(6, max_reuse=3)
  counts = collections.Counter()
  while records := window.sample(4):
    counts.update(_sequences(records))
  assert counts == dict.fromkeys(range(6), 3)
  metrics = window.metrics(params_version=9)
  assert metrics == {
    "size": 0.0,
    "mean_reuse": 3.0,
    "retired": 6.0,
    "mean_staleness": 0.0,
  }
  window.add(make_tree(6))
  assert _sequences(window.sample(4)) == [6]


def test_metrics(window_of):
  window = window_of(4)
  window.sample(4)
  window.sample(2)
  assert window.metrics(params_version=10) == {
    "size": 4.0,
    "mean_reuse": 1.5,
    "retired": 0.0,
    "mean_staleness": 10 - np.mean([0, 1, 2, 3]),
  }
  assert set(window_of(0).metrics(0).values()) == {0.0}


def test_seed_decides(window_of):
  draws = [
    [_sequences(window.sample(7)) for _ in range(3)]
    for window in (window_of(50), window_of(50), window_of(50, seed=1))
  ]
  assert draws[0] == draws[1] != draws[2]


def test_update_reads_what_came_since(store, fill):
  fill(6)
  reader = ReplayReader(store)
  window = ReplayWindow(8, 100, seed=0)
  assert window.update(reader) == 6
  assert window.update(reader) == 0
  fill(3)
  fill(2, actor_id=1)
  assert window.update(reader) == 5
  keys = {(r.actor_id, r.sequence) for r in window.sample(100)}
  assert len(keys) == 8
  assert {(0, 8), (1, 1)} <= keys


def test_update_reads_no_more_than_it_holds(store, fill):
  folder = fill(12)
  (folder / manifest.read(folder, TREES).shards[0].file).unlink()
  window = ReplayWindow(5, 100, seed=0)
  assert window.update(ReplayReader(store)) == 5
  assert sorted(_sequences(window.sample(9))) == [7, 8, 9, 10, 11]


def test_trees_passed_over_do_not_come_as_new_ones(store, fill):
  fill(10, actor_id=0, params_version=0)
  fill(10, actor_id=1, params_version=1)
  reader = ReplayReader(store)
  window = ReplayWindow(5, 100, seed=0)
  assert window.update(reader) == 5
  assert window.update(reader) == 0
  fill(1, actor_id=0, params_version=1)
  assert window.update(reader) == 1
  keys = sorted((r.actor_id, r.sequence) for r in window.sample(9))
  assert keys == [(0, 10), (1, 6), (1, 7), (1, 8), (1, 9)]


@pytest.mark.parametrize("num_samples", [0, 1, 7])
def test_a_resumed_window_samples_the_same(
  store, fill, make_tree, same_tree, num_samples
):
  fill(12)
  window = ReplayWindow(10, 3, seed=5)
  window.update(ReplayReader(store))
  for _ in range(num_samples):
    window.sample(4)
  state = json.loads(json.dumps(window.state_dict()))

  resumed = ReplayWindow(10, 3, seed=0)
  resumed.add(make_tree(0))
  resumed.load_state_dict(state, ReplayReader(store))
  assert resumed.state_dict() == window.state_dict()
  for sequence in range(12, 16):
    for either in (window, resumed):
      either.add(make_tree(sequence))
  while records := window.sample(3):
    others = resumed.sample(3)
    assert resumed.metrics(1) == window.metrics(1)
    assert len(others) == len(records)
    assert all(map(same_tree, records, others))
  assert resumed.sample(3) == []
  assert resumed.state_dict() == window.state_dict()


def test_a_resumed_window_does_not_take_a_tree_twice(store, fill):
  fill(4)
  window = ReplayWindow(10, 3, seed=0)
  window.update(ReplayReader(store))
  resumed = ReplayWindow(10, 3, seed=0)
  resumed.load_state_dict(window.state_dict(), ReplayReader(store))
  assert resumed.update(ReplayReader(store)) == 0


def test_resuming_needs_the_store_of_the_window(store, fill, window_of):
  fill(4)
  state = window_of(5).state_dict()
  with pytest.raises(UserError, match="lacks tree 4 of actor 0"):
    window_of(0).load_state_dict(state, ReplayReader(store))


def test_resuming_past_a_damaged_shard(store, fill):
  folder = fill(8)
  window = ReplayWindow(8, 3, seed=0)
  window.update(ReplayReader(store))
  (folder / manifest.read(folder, TREES).shards[0].file).write_bytes(b"")
  resumed = ReplayWindow(8, 3, seed=0)
  reader = ReplayReader(store, skip_damaged=True)
  resumed.load_state_dict(window.state_dict(), reader)
  assert sorted(_sequences(resumed.sample(8))) == [4, 5, 6, 7]
  assert reader.num_damaged == 4
