"""What holds of every search, whatever world it searches."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from qstar_jax.config import SearchConfig
from qstar_jax.search import driver
from qstar_jax.search.expand import NOTHING
from qstar_jax.search.tree import NONE
from qstar_jax.search.values import q_values

MAX_STEPS = 5
NUM_TREES = 8
CONFIGS = [
  SearchConfig(
    num_candidates=3,
    num_simulations=8,
    max_considered=3,
    leaves_per_round=leaves_per_round,
    terminal_value="outcome",
    prune_illegal=prune_illegal,
  )
  for leaves_per_round, prune_illegal in [(1, True), (2, False), (4, True)]
]

rate = st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1, width=32))


def rows(record, index):
  """The record of some of the trees."""
  return jax.tree.map(lambda x: x[index], record)


def assert_same_trees(one, other):
  """Bit for bit, but for what stands in holes."""
  is_node = one.depth != NONE
  for name in one:
    left, right = one[name], other[name]
    if left.shape[:2] == is_node.shape:
      left, right = left[is_node], right[is_node]
    np.testing.assert_array_equal(left, right, err_msg=name)
  np.testing.assert_array_equal(is_node, other.depth != NONE)


def committed_edges(tree):
  edges, edge = set(), (int(tree.root_parent), int(tree.root_candidate))
  while edge[0] != NONE:
    edges.add(edge)
    edge = (int(tree.parent[edge[0]]), int(tree.candidate[edge[0]]))
  return edges


def num_nodes_below(tree, edge):
  node = tree.child[edge]
  if node == NONE:
    return 0
  num_candidates = len(tree.child[node])
  return 1 + sum(
    num_nodes_below(tree, (node, a)) for a in range(num_candidates)
  )


@hypothesis.settings(max_examples=40)
@hypothesis.given(
  config=st.sampled_from(CONFIGS),
  first_root=st.integers(0, 2**31),
  rates=st.tuples(rate, rate, rate, rate, rate),
)
def test_every_search(searches, config, first_root, rates):
  roots = np.arange(NUM_TREES, dtype=np.uint32) + np.uint32(first_root)
  world = searches.World(*(np.full(NUM_TREES, r, np.float32) for r in rates))
  rounds = list(searches.judged_play(roots, world, config, MAX_STEPS))
  num_nodes = driver.num_nodes_needed(config, MAX_STEPS)
  assert len(rounds) * config.leaves_per_round <= num_nodes
  for round_ in rounds:
    check_round(round_, config)
  for row in range(NUM_TREES):
    check_finished_tree(rows(rounds[-1].advanced, row))


def check_round(round_, config):
  after, advanced = round_.after, round_.advanced
  np.testing.assert_array_equal(after.pending, 0)
  for values in (q_values(after), after.utility, after.value):
    assert (values >= 0).all() and (values <= 1 + 1e-6).all()
  # A move is over when its budget is spent, or nothing is left to expand.
  is_over = advanced.root_depth > round_.before.root_depth
  root_open = np.take_along_axis(
    after.is_open, after.root_node[:, None, None], axis=1
  )[:, 0].any(axis=-1)
  spent = after.simulations == config.num_simulations
  np.testing.assert_array_equal(
    is_over, ~round_.before.is_done & (spent | ~root_open)
  )
  assert (after.simulations <= config.num_simulations).all()
  # Every move has noise of its own.
  goes_on = is_over & ~advanced.is_done
  is_new = (advanced.noise != after.noise).all(axis=1)
  assert is_new[goes_on].all()
  # A finished tree rests; no other waits for its neighbours.
  is_done = round_.before.is_done
  is_idle = (round_.leaf == NOTHING).all(axis=1)
  np.testing.assert_array_equal(is_idle, is_done)
  assert_same_trees(rows(round_.before, is_done), rows(advanced, is_done))


def check_finished_tree(tree):
  committed = committed_edges(tree)
  assert tree.is_done
  assert len(committed) == tree.root_depth >= 1
  last = (tree.root_parent, tree.root_candidate)
  has_choice = (tree.count[tree.root_parent] > 0).any()
  assert tree.is_terminal[last] if has_choice else last[1] == 0
  for node in range(len(tree.parent)):
    if tree.depth[node] == NONE:
      assert not tree.sampled[node].any()
      assert not tree.visits[node].any()
      assert (tree.child[node] == NONE).all()
      continue
    if tree.parent[node] != NONE:
      above = (tree.parent[node], tree.candidate[node])
      assert tree.parent[node] < node
      assert tree.child[above] == node
      assert tree.depth[node] == tree.depth[tree.parent[node]] + 1
      # Neither finished lines, nor duplicates, nor what was pruned.
      assert not tree.is_terminal[above]
      assert tree.count[above] > 0
    for a in range(len(tree.child[node])):
      check_visits(tree, (node, a), (node, a) in committed)


def check_visits(tree, edge, is_committed):
  num_below = num_nodes_below(tree, edge)
  visits = tree.visits[edge]
  if is_committed:
    # Later moves search below it and do not count here.
    assert visits <= num_below
    return
  assert visits == num_below
  if visits:
    assert visits == 1 + tree.visits[tree.child[edge]].sum()
  else:
    assert tree.value_sum[edge] == 0


@pytest.fixture(scope="module")
def batch(searches):
  """Roots, their world and their finished trees."""
  rng = np.random.default_rng(0)
  roots = rng.integers(2**32, size=NUM_TREES, dtype=np.uint32)
  world = searches.random_world(rng, NUM_TREES)
  return roots, world, play(searches, roots, world)


def play(searches, roots, world):
  config = dataclasses.replace(CONFIGS[1], terminal_value="value")
  state = searches.play(roots, world, config, MAX_STEPS)
  return jax.device_get(state.tree)


def test_order_of_the_trees_does_not_matter(searches, batch):
  roots, world, trees = batch
  order = np.random.default_rng(1).permutation(NUM_TREES)
  permuted = play(searches, roots[order], rows(world, order))
  assert_same_trees(permuted, rows(trees, order))


def test_neighbours_do_not_matter(searches, batch):
  roots, world, trees = batch
  rng = np.random.default_rng(2)
  kept = np.arange(NUM_TREES) % 2 == 0
  others = searches.random_world(rng, NUM_TREES)
  world = searches.World(
    *(np.where(kept, a, b) for a, b in zip(world, others, strict=True))
  )
  changed = play(searches, np.where(kept, roots, roots + 1), world)
  assert_same_trees(rows(changed, kept), rows(trees, kept))
  assert (changed.visits != trees.visits)[~kept].any()
