"""A play that gives up what it leaves behind is the play that keeps it all."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qstar_jax.config import SearchConfig
from qstar_jax.search import testing
from qstar_jax.search.tree import NONE

NUM_TREES = 16
BASE = SearchConfig(
  num_candidates=3,
  num_simulations=8,
  max_considered=3,
  terminal_value="outcome",
)


def rows(record, index):
  return jax.tree.map(lambda x: x[index], record)


def by_serial(tree, name):
  """Node indices as serial numbers, NONE as it is."""
  index = tree[name]
  return np.where(index == NONE, NONE, tree.serial[index])


def assert_survivors(compacted, whole):
  """What is left of a tree is what it is in the whole one, bit for bit."""
  nodes = np.flatnonzero(compacted.depth != NONE)
  serial = compacted.serial[nodes]
  assert (np.diff(serial) > 0).all()
  np.testing.assert_array_equal(whole.serial, np.arange(whole.serial.size))
  for name in compacted:
    found, expected = compacted[name], whole[name]
    if name in ("parent", "root_parent", "root_node"):
      found = by_serial(compacted, name)
    if found.shape[:1] == compacted.depth.shape:
      found, expected = found[nodes], expected[serial]
    if name == "child":
      # Its node may have been given up.
      is_kept = found != NONE
      found = compacted.serial[found[is_kept]]
      expected = expected[is_kept]
    if name not in ("serial", "num_nodes", "num_dropped"):
      np.testing.assert_array_equal(found, expected, err_msg=name)
  assert compacted.num_made == whole.num_nodes


def is_short(rounds, config):
  """bool [B], some move had no room for all of its simulations."""
  planned = np.array([r.advanced.move_simulations for r in rounds])
  return (planned < config.num_simulations).any(axis=0)


@pytest.mark.parametrize(
  ("searcher", "max_steps"), [("gumbel", 10), ("puct", 10), ("mpc", 10)]
)
@pytest.mark.parametrize("leaves_per_round", [1, 2])
def test_compacted_play_is_the_whole_one(
  searches, searcher, max_steps, leaves_per_round
):
  whole = dataclasses.replace(
    BASE,
    searcher=searcher,
    leaves_per_round=leaves_per_round,
    num_rollouts=3,
  )
  compacted = dataclasses.replace(whole, compact=True)
  rng = np.random.default_rng(leaves_per_round)
  num_compared = num_dropped = 0
  for _ in range(2):
    roots = rng.integers(2**32, size=NUM_TREES, dtype=np.uint32)
    # Every other line goes on to the last depth.
    world = jax.tree.map(
      lambda rate_B: rate_B * (np.arange(NUM_TREES) % 2),
      searches.random_world(rng, NUM_TREES),
    )
    expected = list(searches.judged_play(roots, world, whole, max_steps))
    found = list(searches.judged_play(roots, world, compacted, max_steps))
    last, whole_last = found[-1].advanced, expected[-1].advanced
    assert last.depth.shape[1] < whole_last.depth.shape[1]
    may_differ = is_short(found, compacted) & (searcher != "mpc")
    for row in np.flatnonzero(~may_differ):
      for one, other in zip(found, expected, strict=False):
        np.testing.assert_array_equal(one.leaf[row], other.leaf[row])
        np.testing.assert_array_equal(
          one.advanced.noise[row], other.advanced.noise[row]
        )
      assert_survivors(rows(last, row), rows(whole_last, row))
      num_compared += 1
      num_dropped += last.num_dropped[row] > 0
  assert num_compared > NUM_TREES
  # Roll-outs thin out: they need even less than there is.
  assert num_dropped > 4 or searcher == "mpc"


def check_tree(tree, root):
  """A tree as it should be, every node on the line that it says it is on."""
  nodes = np.flatnonzero(tree.depth != NONE)
  num_candidates = tree.count.shape[1]
  states = np.zeros((tree.depth.size, num_candidates), np.uint32)
  for node in nodes:
    above = (tree.parent[node], tree.candidate[node])
    if above[0] == NONE:
      state, depth = root, 0
    else:
      assert above[0] < node
      assert tree.child[above] == node
      assert not tree.is_terminal[above]
      state, depth = states[above], tree.depth[above[0]] + 1
    assert tree.depth[node] == depth
    states[node] = testing.child_state(
      jnp.full(num_candidates, state, jnp.uint32), jnp.arange(num_candidates)
    )
  values = np.asarray(testing.unit(jnp.asarray(states), 1))
  np.testing.assert_array_equal(tree.value[nodes], values[nodes])
  is_hole = tree.depth == NONE
  for name, empty in (("count", 0), ("visits", 0), ("child", NONE)):
    np.testing.assert_array_equal(tree[name][is_hole], empty)


@pytest.mark.parametrize("leaves_per_round", [1, 2])
def test_a_tree_that_has_no_room_searches_less(searches, leaves_per_round):
  """Few nodes have a choice: most of what is searched is kept."""
  config = dataclasses.replace(
    BASE,
    num_candidates=2,
    num_simulations=12,
    leaves_per_round=leaves_per_round,
    compact=True,
  )
  max_steps = 24
  roots = np.arange(NUM_TREES, dtype=np.uint32) + 5
  zeros = np.zeros(NUM_TREES, np.float32)
  world = searches.World(
    ended=zeros,
    truncated=zeros,
    merged=zeros + 0.8,
    illegal=zeros,
    finished=zeros,
  )
  num_slots, num_short = leaves_per_round, 0
  for one in searches.judged_play(roots, world, config, max_steps):
    before, after = one.before, one.advanced
    goes_on = ~after.is_done
    room = after.depth.shape[1] - after.num_nodes
    assert (room[goes_on] >= num_slots).all()
    # Of a move that begins: all simulations, or what there is room for.
    begins = goes_on & (after.root_depth > before.root_depth)
    for row in np.flatnonzero(begins):
      planned = after.move_simulations[row]
      left = min(num_nodes_free(rows(after, row), num_slots), 12)
      assert planned == left
      num_short += planned < 12
  assert num_short > 4
  last = one.advanced
  for row in range(NUM_TREES):
    check_tree(rows(last, row), roots[row])
  assert (last.num_dropped > 0).any()


def num_nodes_free(tree, num_slots):
  """Simulations that find room once all that is left behind has gone."""
  kept, line = set(), tree.root_parent
  while line != NONE:
    kept.add(int(line))
    line = tree.parent[line]
  for node in np.flatnonzero(tree.depth != NONE):
    if is_below(tree, node):
      kept.add(int(node))
  rounds = tree.depth.size // num_slots - -(-len(kept) // num_slots)
  return num_slots * (rounds - (tree.root_node == NONE))


def is_below(tree, node):
  while node not in (NONE, tree.root_node):
    node = tree.parent[node]
  return node == tree.root_node != NONE
