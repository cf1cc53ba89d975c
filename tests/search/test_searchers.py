"""Every searcher: what holds of all, and the simpler ones by definition."""

import dataclasses
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qstar_jax.config import TextConfig
from qstar_jax.search import budget, driver, testing
from qstar_jax.search.searchers import SEARCHERS, sized_for_budget
from qstar_jax.search.tree import NONE, UNLIMITED
from tests.search.hash_plays import (
  AGGREGATES,
  BASE,
  LEAST_BUDGET,
  MAX_STEPS,
  NUM_TREES,
  ROOTS,
  STEP_TOKENS,
  A,
  PlainWorld,
  committed,
  expanded_paths,
  path,
  play,
  row,
  setting,
)


@pytest.mark.parametrize("name", SEARCHERS)
def test_every_search_commits_a_line_of_its_tree(name):
  tree = play(setting(name))
  assert tree.is_done.all()
  for b in range(NUM_TREES):
    line = committed(tree, b)
    assert 1 <= len(line) <= MAX_STEPS
    assert tree.is_terminal[b][line[-1]]
    finished = (tree.count[b] > 0) & tree.is_terminal[b] & ~tree.is_failed[b]
    if finished.any():
      # Some commit to their first steps before they know of that line.
      one_way = ("gumbel", "puct", "mpc", "value_guided")
      assert finished[line[-1]] or name in one_way


@hypothesis.settings(max_examples=50)
@hypothesis.given(
  name=st.sampled_from(SEARCHERS),
  leaves_per_round=st.sampled_from([1, 4]),
  budgets=st.lists(
    st.integers(LEAST_BUDGET, 150), min_size=NUM_TREES, max_size=NUM_TREES
  ),
)
def test_no_budget_is_exceeded_and_every_line_ends(
  name, leaves_per_round, budgets
):
  config = setting(name, leaves_per_round=leaves_per_round)
  tree = play(config, budget=jnp.asarray(budgets))
  assert (tree.tokens_used <= budgets).all()
  for b in range(NUM_TREES):
    line = committed(tree, b)
    assert tree.is_terminal[b][line[-1]], (name, budgets[b])


@pytest.mark.parametrize("name", SEARCHERS)
def test_a_play_ends_within_its_room(name):
  """Short steps leave tokens over, for lines that begin late."""
  text = TextConfig(max_prompt_tokens=1, max_step_tokens=8, max_steps=MAX_STEPS)
  config = sized_for_budget(setting(name), 512, text)
  expand_fn = testing.make_hash_expand_fn(
    config.num_candidates, max_step_tokens=8, end_probability=0.3
  )

  @jax.jit
  def play_on(state):
    num_rounds = state.num_nodes // config.leaves_per_round
    return jax.lax.while_loop(
      lambda s: ~s.tree.is_done.all() & (s.round[0] <= num_rounds),
      lambda s: driver.advance(
        driver.search_round(None, s, expand_fn, config, MAX_STEPS),
        config,
        MAX_STEPS,
      ),
      state,
    )

  budgets = jnp.linspace(100, 512, NUM_TREES).astype(jnp.int32)
  state = testing.new_state(ROOTS, config, MAX_STEPS, budgets, 8)
  tree = jax.device_get(play_on(state).tree)
  assert tree.is_done.all()
  assert (tree.tokens_used <= budgets).all()


@pytest.mark.parametrize("breadth", [0.3, 1.0, 4.0])
def test_width_is_breadth_times_the_expansions(breadth):
  """w candidates, n expansions, w n steps: w is the root of breadth w n."""
  text = TextConfig(max_step_tokens=8)
  wide = dataclasses.replace(
    setting("best_first"), num_candidates=20, breadth=breadth
  )
  budgets = np.array([0, 7, 8, 100, 1000, 4000, 1 << 30])
  expected = [
    max(min(math.isqrt(int(breadth * (b // 8))), 20), 1) for b in budgets
  ]
  tree = testing.new_state(ROOTS[:7], wide, MAX_STEPS, budgets, 8).tree
  found = [
    budget.width_bound(jax.tree.map(lambda x, b=b: x[b], tree), wide)
    for b in range(len(budgets))
  ]
  assert found == expected
  sized = [sized_for_budget(wide, int(b), text) for b in budgets]
  assert [config.num_candidates for config in sized] == expected


@pytest.mark.parametrize("name", SEARCHERS)
def test_what_is_spent_grows_with_the_budget(name):
  used = [
    play(setting(name), budget=budget).tokens_used.mean()
    for budget in (LEAST_BUDGET, 35, UNLIMITED)
  ]
  if name in ("greedy", "sample"):
    assert used[0] == used[2]
  elif name == "value_guided":  # One line, of all candidates if it can.
    assert used[0] < used[1] <= used[2]
  else:
    assert used[0] < used[1] < used[2]


@pytest.mark.parametrize("name", SEARCHERS)
def test_a_tree_does_not_depend_on_its_neighbours(name):
  config = setting(name)
  order = np.random.default_rng(0).permutation(NUM_TREES)
  # Some neighbours change, and all places do.
  others = play(config, jnp.where(order % 4 == 0, 999, ROOTS[order]))
  tree = play(config)
  for b, a in enumerate(order):
    if a % 4:
      one, other = row(others, b), row(tree, a)
      np.testing.assert_array_equal(one.parent, other.parent)
      np.testing.assert_array_equal(one.root_candidate, other.root_candidate)
      np.testing.assert_array_equal(one.tokens_used, other.tokens_used)


def test_beam_is_level_by_level():
  tree = play(setting("beam"))
  for b in range(NUM_TREES):
    world = PlainWorld(b)
    level, expanded, results = [()], [], []
    while level:
      expanded += level
      pool = [child for line in level for child in world.children(line)]
      # The sort is stable: of equals the first.
      pool.sort(key=lambda line: -world.value(line))
      results += [line for line in pool if world.is_finished(line)]
      level = [
        line for line in pool[: BASE.beam_width] if not world.is_terminal(line)
      ]
    assert expanded_paths(tree, b) == expanded
    best = max(results, key=world.value, default=None)
    if best is not None:
      assert path(tree, b, committed(tree, b)[-1]) == best


def test_a_beam_of_one_line_and_candidate_is_greedy():
  beam = play(setting("beam", num_candidates=1, beam_width=1, temperature=0.0))
  greedy = play(setting("greedy"))
  for b in range(NUM_TREES):
    lines = [path(t, b, committed(t, b)[-1]) for t in (beam, greedy)]
    assert lines[0] == lines[1]
    assert expanded_paths(beam, b) == expanded_paths(greedy, b)
  np.testing.assert_array_equal(beam.tokens_used, greedy.tokens_used)


def test_breadth_first_thoughts_by_value_are_a_beam():
  beam, thoughts = play(setting("beam")), play(setting("tot_bfs"))
  jax.tree.map(np.testing.assert_array_equal, beam, thoughts)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_line_scores(aggregate):
  tree = play(setting("beam", utility="prm", aggregate=aggregate))
  combine = AGGREGATES[aggregate]
  for b in range(3):
    world = PlainWorld(b)
    for n in np.flatnonzero(tree.depth[b] != NONE):
      for a in range(A):
        line = path(tree, b, (n, a))
        scores = [world.prm(line[: i + 1]) for i in range(len(line))]
        expected = combine(scores)
        if len(line) == MAX_STEPS and not world.is_finished(line):
          expected = 0.0
        np.testing.assert_allclose(
          tree.line_score[b, n, a], expected, rtol=1e-5
        )


def test_lanes_of_one_candidate_are_lines_apart():
  tree = play(setting("best_of_n"))
  for b in range(NUM_TREES):
    world = PlainWorld(b)
    assert (tree.depth[b] == 0).sum() == BASE.num_lines
    # In this world all samples are the same: candidate 0 each time.
    line = (0,)
    while not world.is_terminal(line):
      line = (*line, 0)
    assert len(expanded_paths(tree, b)) == BASE.num_lines * len(line)
    assert path(tree, b, committed(tree, b)[-1]) == line
    # An only candidate is not run again.
    num_steps = BASE.num_lines * len(line)
    assert tree.tokens_used[b] == 1 + STEP_TOKENS * num_steps


def test_one_line_is_a_sample():
  ours, theirs = setting("best_of_n", num_lines=1), setting("sample")
  assert dataclasses.replace(ours, searcher="sample") == theirs


def test_dvts_follows_the_best_candidate_of_each_line():
  tree = play(setting("dvts"))
  for b in range(NUM_TREES):
    world = PlainWorld(b)
    line, lane = (), []
    while True:
      lane.append(line)
      line = max(world.children(line), key=world.value)
      if world.is_terminal(line):
        break
    # Both lanes are asked the same, and in this world answer the same.
    expected = [step for step in lane for _ in range(BASE.beam_width)]
    assert expanded_paths(tree, b) == expected


def test_depth_first_thoughts_go_back():
  config = setting(
    "tot_dfs", prune_below=0.3, accept_above=0.9, num_simulations=40
  )
  tree = play(config)
  num_back = 0
  for b in range(NUM_TREES):
    world = PlainWorld(b)
    expanded, pruned, finished = [], [], []

    def visit(line, world=world, lists=(expanded, pruned, finished)):
      """True once a good line is found."""
      expanded, pruned, finished = lists
      expanded.append(line)
      children = world.children(line)
      finished += filter(world.is_finished, children)
      pruned += [
        c for c in children if not world.is_terminal(c) and world.value(c) < 0.3
      ]
      if any(world.is_finished(c) and world.value(c) >= 0.9 for c in children):
        return True
      open_ = [
        c
        for c in children
        if not world.is_terminal(c) and world.value(c) >= 0.3
      ]
      open_.sort(key=lambda c: -world.value(c))
      return any(visit(c) for c in open_)

    visit(())
    while pruned and not finished:
      pruned.sort(key=world.value)
      visit(pruned.pop())
    assert expanded_paths(tree, b) == expanded
    depths = [len(line) for line in expanded]
    num_back += sum(np.diff(depths) < 1)
  assert num_back > 5


@pytest.mark.parametrize("name", ["gumbel", "beam", "dvts", "astar"])
def test_a_budget_gives_the_same_whatever_else_is_compared(name):
  text = TextConfig(max_step_tokens=STEP_TOKENS, max_steps=MAX_STEPS)
  small, large = (
    play(sized_for_budget(setting(name), limit, text), budget=60)
    for limit in (60, 200)
  )
  assert small.depth.shape != large.depth.shape
  for b in range(NUM_TREES):
    assert expanded_paths(small, b) == expanded_paths(large, b)
    lines = [path(t, b, committed(t, b)[-1]) for t in (small, large)]
    assert lines[0] == lines[1]
  np.testing.assert_array_equal(small.tokens_used, large.tokens_used)
