import collections
import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from qstar_jax.config import ReplayConfig
from qstar_jax.errors import UserError
from qstar_jax.replay import ReplayReader, ReplayWindow
from qstar_jax.replay.codec import TREES
from qstar_jax.store import manifest
from tests.replay.conftest import random_tree


def empty_window(
  window_trees=100, max_reuse=100, *, seed=0, priority_fn=None, **config
):
  config = ReplayConfig(window_trees, max_reuse=max_reuse, **config)
  return ReplayWindow(config, seed=seed, priority_fn=priority_fn)


@pytest.fixture
def window_of(make_tree):
  def make(num_trees, **kwargs):
    window = empty_window(**kwargs)
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
    "max_staleness": 0.0,
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
    "max_staleness": 10.0,
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
  window = empty_window(8, 100, seed=0)
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
  window = empty_window(5, 100, seed=0)
  assert window.update(ReplayReader(store)) == 5
  assert sorted(_sequences(window.sample(9))) == [7, 8, 9, 10, 11]


def test_trees_passed_over_do_not_come_as_new_ones(store, fill):
  fill(10, actor_id=0, params_version=0)
  fill(10, actor_id=1, params_version=1)
  reader = ReplayReader(store)
  window = empty_window(5, 100, seed=0)
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
  window = empty_window(10, 3, seed=5)
  window.update(ReplayReader(store))
  for _ in range(num_samples):
    window.sample(4)
  state = json.loads(json.dumps(window.state_dict()))

  resumed = empty_window(10, 3, seed=0)
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
  window = empty_window(10, 3, seed=0)
  window.update(ReplayReader(store))
  resumed = empty_window(10, 3, seed=0)
  resumed.load_state_dict(window.state_dict(), ReplayReader(store))
  assert resumed.update(ReplayReader(store)) == 0


def test_resuming_needs_the_store_of_the_window(store, fill, window_of):
  fill(4)
  state = window_of(5).state_dict()
  with pytest.raises(UserError, match="lacks tree 4 of actor 0"):
    window_of(0).load_state_dict(state, ReplayReader(store))


def test_resuming_past_a_damaged_shard(store, fill):
  folder = fill(8)
  window = empty_window(8, 3, seed=0)
  window.update(ReplayReader(store))
  (folder / manifest.read(folder, TREES).shards[0].file).write_bytes(b"")
  resumed = empty_window(8, 3, seed=0)
  reader = ReplayReader(store, skip_damaged=True)
  resumed.load_state_dict(window.state_dict(), reader)
  assert sorted(_sequences(resumed.sample(8))) == [4, 5, 6, 7]
  assert reader.num_damaged == 4


def test_the_default_window_samples_what_it_always_has(window_of):
  """Runs that were begun before it could do more go on as they would have."""
  window = window_of(9, window_trees=7, max_reuse=2, seed=3)
  rng = np.random.default_rng(3)
  live, uses = list(range(2, 9)), collections.Counter()
  for num_trees in (3, 2, 4, 3):
    size = min(num_trees, len(live))
    expected = [live[i] for i in rng.choice(len(live), size, replace=False)]
    assert _sequences(window.sample(num_trees)) == expected
    uses.update(expected)
    live = [sequence for sequence in live if uses[sequence] < 2]


def _priority(record):
  return [0.0, 1.0, 4.0, 0.25, 9.0][record.sequence % 5]


@pytest.mark.parametrize(
  ("exponent", "uniform_share"), [(1.0, 0.5), (0.5, 0.1), (0.0, 0.5)]
)
def test_trees_come_as_often_as_their_priorities_say(
  window_of, exponent, uniform_share
):
  window = window_of(
    5,
    max_reuse=10**6,
    priority_fn=_priority,
    priority_exponent=exponent,
    uniform_share=uniform_share,
  )
  num_samples = 20_000
  counts = collections.Counter(
    window.sample(1)[0].sequence for _ in range(num_samples)
  )
  power = [p**exponent for p in (0.0, 1.0, 4.0, 0.25, 9.0)]
  expected = [
    num_samples * (uniform_share / 5 + (1 - uniform_share) * p / sum(power))
    for p in power
  ]
  chi_square = sum(
    (counts[i] - mean) ** 2 / mean for i, mean in enumerate(expected)
  )
  # 4 degrees of freedom: above 18.5 once in a thousand.
  assert chi_square < 18.5


def test_several_at_once_are_drawn_one_after_another(window_of):
  """P(2 before 1) of two trees with weights 3/4 and 1/4, without a third."""
  window = window_of(
    3,
    max_reuse=10**6,
    priority_fn=lambda record: [0.0, 1.0, 3.0][record.sequence],
    uniform_share=1e-9,
  )
  num_samples = 4000
  draws = [tuple(_sequences(window.sample(3))) for _ in range(num_samples)]
  assert {draw[2] for draw in draws} == {0}
  share = np.mean([draw == (2, 1, 0) for draw in draws])
  # Standard deviation 0.007.
  assert abs(share - 0.75) < 5 * 0.007


def test_without_any_priority_sampling_is_uniform(window_of):
  window = window_of(4, max_reuse=10**6, priority_fn=lambda record: 0.0)
  counts = collections.Counter(
    window.sample(1)[0].sequence for _ in range(4000)
  )
  assert all(abs(counts[sequence] - 1000) < 5 * 27.4 for sequence in range(4))


def test_a_resumed_window_has_its_priorities_again(store, fill):
  fill(12)
  options = {"priority_fn": _priority, "uniform_share": 0.1}
  window = empty_window(10, 3, **options)
  window.update(ReplayReader(store))
  for _ in range(3):
    window.sample(4)
  state = json.loads(json.dumps(window.state_dict()))
  resumed = empty_window(10, 3, seed=9, **options)
  resumed.load_state_dict(state, ReplayReader(store))
  while records := window.sample(2):
    assert _sequences(resumed.sample(2)) == _sequences(records)


@hypothesis.given(
  max_staleness=st.integers(1, 6),
  versions=st.lists(st.integers(0, 3), min_size=1, max_size=30),
  max_reuse=st.integers(1, 3),
)
def test_no_tree_over_the_bound_is_sampled(max_staleness, versions, max_reuse):
  """The learner takes `versions[i]` steps after tree i has come."""
  window = empty_window(8, max_reuse, max_staleness=max_staleness)
  version, could_be_sampled = 0, 0
  uses = collections.Counter()
  for sequence, steps in enumerate(versions):
    window.add(random_tree(sequence, params_version=version))
    version += steps
    window.expire(version)
    wanted = {
      i
      for i in range(max(0, sequence - 7), sequence + 1)
      if version - sum(versions[:i]) <= max_staleness and uses[i] < max_reuse
    }
    metrics = window.metrics(version)
    assert metrics["size"] == len(wanted)
    assert metrics["max_staleness"] <= max_staleness
    sampled = _sequences(window.sample(100))
    assert set(sampled) == wanted
    uses.update(sampled)
    could_be_sampled += len(wanted)
  assert could_be_sampled or versions[0] > max_staleness


def test_without_a_bound_nothing_expires(window_of):
  window = window_of(4)
  window.expire(10**9)
  assert window.metrics(10**9)["size"] == 4


GROWING = {"window_growth": 0.5, "window_exponent": 0.75}


def test_the_window_grows_as_trees_come(window_of, store, fill):
  # 4 (1 + 0.5 (4^0.75 - 1) / 0.75) = 8.876 once 16 have come.
  window = window_of(16, window_trees=4, **GROWING)
  assert sorted(_sequences(window.sample(99))) == list(range(8, 16))
  # Two actors, the first one's trees all older: what is passed over counts.
  fill(8, actor_id=0, params_version=0)
  fill(8, actor_id=1, params_version=1)
  read = empty_window(4, **GROWING)
  assert read.update(ReplayReader(store)) == 8
  assert [r.actor_id for r in read.sample(99)] == [1] * 8


def test_a_growing_window_resumes(store, fill):
  fill(16)
  window = empty_window(4, 3, **GROWING)
  window.update(ReplayReader(store))
  window.sample(5)
  resumed = empty_window(4, 3, **GROWING)
  resumed.load_state_dict(window.state_dict(), ReplayReader(store))
  fill(8)
  for either in (window, resumed):
    assert either.update(ReplayReader(store)) == 8
  assert resumed.state_dict() == window.state_dict()
  # 4 (1 + 0.5 (6^0.75 - 1) / 0.75) = 11.56.
  assert window.metrics(0)["size"] == 11
  assert _sequences(resumed.sample(99)) == _sequences(window.sample(99))


def test_looking_at_trees_is_no_use_of_them(window_of):
  window = window_of(12, max_reuse=2)
  window.sample(12)
  window.sample(5)
  state = window.state_dict()
  rng = np.random.default_rng(0)
  peeked = [set(_sequences(window.peek(4, rng))) for _ in range(50)]
  # Retired trees are gone, the others come alike, each once at a time.
  live = {i for i, (_, _, uses) in enumerate(state["trees"]) if uses < 2}
  assert len(live) == 7 and set().union(*peeked) == live
  assert all(len(each) == 4 for each in peeked)
  assert len(window.peek(99, rng)) == 7
  assert window.state_dict() == state


def test_problems_of_retired_trees_can_be_drawn(store, fill):
  fill(8)
  window = empty_window(6, max_reuse=1)
  window.update(ReplayReader(store))
  window.sample(5)
  resumed = empty_window(6, max_reuse=1)
  resumed.load_state_dict(window.state_dict(), ReplayReader(store))
  for each in (window, resumed):
    rng = np.random.default_rng(0)
    drawn = each.draw_prompts(99, rng)
    assert sorted(drawn) == [f"{i} 3 5 -> 8\n" for i in range(2, 8)]
    assert len(each.draw_prompts(2, rng)) == 2
  assert window.draw_prompts(3, np.random.default_rng(1)) == (
    resumed.draw_prompts(3, np.random.default_rng(1))
  )
  assert resumed.state_dict() == window.state_dict()
