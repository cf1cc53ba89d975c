"""Every searcher: what holds of all, and each against its definition."""

import dataclasses
import functools
import heapq

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import mctx
import numpy as np
import pytest

from qstar_jax.config import SearchConfig
from qstar_jax.search import driver, testing
from qstar_jax.search.searchers import SEARCHERS, for_evaluation
from qstar_jax.search.tree import NONE, UNLIMITED

A, MAX_STEPS, NUM_TREES = 3, 4, 16
# Tokens of a step in the hash world, its delimiter included.
STEP_TOKENS = 2
BASE = SearchConfig(
  num_candidates=A, num_simulations=12, num_lines=6, beam_width=2
)
ROOTS = jnp.arange(7, 7 + NUM_TREES, dtype=jnp.uint32)
LEAST_BUDGET = 1 + STEP_TOKENS + 2 * STEP_TOKENS * (MAX_STEPS - 1)


@functools.partial(jax.jit, static_argnames="config")
def play_on_device(roots_B, budget, config):
  expand_fn = testing.make_hash_expand_fn(
    config.num_candidates, end_probability=0.3
  )
  state = testing.new_state(roots_B, config, MAX_STEPS, budget)
  return driver.play(None, state, expand_fn, config, MAX_STEPS).tree


def play(config, roots=ROOTS, budget=UNLIMITED):
  return jax.device_get(play_on_device(roots, budget, config))


def setting(name, **changes):
  return for_evaluation(dataclasses.replace(BASE, **changes), name)


def row(tree, b):
  return jax.tree.map(lambda x: x[b], tree)


def committed(tree, b):
  """(node, candidate) pairs of the committed line, first to last."""
  edges, edge = [], (int(tree.root_parent[b]), int(tree.root_candidate[b]))
  while edge[0] != NONE:
    edges.append(edge)
    edge = (int(tree.parent[b, edge[0]]), int(tree.candidate[b, edge[0]]))
  return edges[::-1]


def path(tree, b, edge):
  """Candidate indices from the problem to an edge."""
  steps = []
  while edge[0] != NONE:
    steps.append(int(edge[1]))
    edge = tree.parent[b, edge[0]], tree.candidate[b, edge[0]]
  return tuple(steps[::-1])


def expanded_paths(tree, b):
  """Paths of the nodes, in the order in which they were made."""
  return [
    path(tree, b, (tree.parent[b, n], tree.candidate[b, n]))
    for n in np.flatnonzero(tree.depth[b] != NONE)
  ]


@functools.cache
def all_numbers():
  """By stream and depth: float [NUM_TREES, A ** depth], in order of paths."""
  level, levels = ROOTS[:, None], []
  for _ in range(MAX_STEPS):
    shape = (*level.shape, A)
    candidates = jnp.broadcast_to(jnp.arange(A)[None, None], shape)
    above = jnp.broadcast_to(level[..., None], shape)
    level = testing.child_state(above, candidates).reshape(NUM_TREES, -1)
    levels.append(level)
  return {
    stream: [np.asarray(testing.unit(level, stream)) for level in levels]
    for stream in (1, 2, 3)
  }


class PlainWorld:
  """One tree of the hash world, path by path."""

  def __init__(self, b):
    self.b = b

  def number(self, path_, stream):
    index = 0
    for a in path_:
      index = index * A + a
    return float(all_numbers()[stream][len(path_) - 1][self.b, index])

  def value(self, path_):
    return self.number(path_, 1)

  def prm(self, path_):
    return self.number(path_, 2)

  def is_finished(self, path_):
    return self.number(path_, 3) < 0.3

  def is_terminal(self, path_):
    return self.is_finished(path_) or len(path_) == MAX_STEPS

  def children(self, path_):
    return [(*path_, a) for a in range(A)]


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
      assert finished[line[-1]] or name in ("gumbel", "puct")


@hypothesis.settings(max_examples=25)
@hypothesis.given(
  name=st.sampled_from(SEARCHERS),
  budgets=st.lists(
    st.integers(LEAST_BUDGET, 150), min_size=NUM_TREES, max_size=NUM_TREES
  ),
)
def test_no_budget_is_exceeded_and_every_line_ends(name, budgets):
  tree = play(setting(name), budget=jnp.asarray(budgets))
  assert (tree.tokens_used <= budgets).all()
  for b in range(NUM_TREES):
    line = committed(tree, b)
    assert tree.is_terminal[b][line[-1]], (name, budgets[b])


@pytest.mark.parametrize("name", SEARCHERS)
def test_what_is_spent_grows_with_the_budget(name):
  used = [
    play(setting(name), budget=budget).tokens_used.mean()
    for budget in (LEAST_BUDGET, 35, UNLIMITED)
  ]
  if name in ("greedy", "sample"):
    assert used[0] == used[2]
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


def test_breadth_first_thoughts_by_value_are_a_beam():
  beam, thoughts = play(setting("beam")), play(setting("tot_bfs"))
  jax.tree.map(np.testing.assert_array_equal, beam, thoughts)


@pytest.mark.parametrize("aggregate", ["last", "min", "product", "mean"])
def test_line_scores(aggregate):
  tree = play(setting("beam", utility="prm", aggregate=aggregate))
  combine = {
    "last": lambda scores: scores[-1],
    "min": min,
    "product": np.prod,
    "mean": np.mean,
  }[aggregate]
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
    assert tree.tokens_used[b] == 1 + BASE.num_lines * (
      STEP_TOKENS * len(line) + STEP_TOKENS * (len(line) - 1)
    )


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


def in_queue_order(world, priority, num_expansions):
  """Paths that a queue expands, and the finished line that comes first."""
  order, expanded = 0, [()]
  queue = []
  while True:
    for child in world.children(expanded[-1]):
      order += 1
      if world.is_finished(child):
        heapq.heappush(queue, (-priority(child), -1, order, child))
      elif not world.is_terminal(child):
        heapq.heappush(queue, (-priority(child), 0, order, child))
    if not queue or len(expanded) == num_expansions:
      return expanded, None
    _, _, _, line = heapq.heappop(queue)
    if world.is_finished(line):
      return expanded, line
    expanded.append(line)


@pytest.mark.parametrize(
  "changes",
  [{}, {"heuristic_weight": 0.0}, {"path_cost": "depth"}],
  ids=["prm", "no_heuristic", "depth"],
)
def test_astar_is_a_queue(changes):
  config = setting("astar", num_simulations=40, **changes)
  tree = play(config)
  num_found = 0
  for b in range(NUM_TREES):
    world = PlainWorld(b)

    def priority(line, world=world):
      scores = [world.prm(line[: i + 1]) for i in range(len(line))]
      g = -len(line) if config.path_cost == "depth" else np.log(np.prod(scores))
      h = 0 if world.is_finished(line) else np.log(world.value(line))
      return g + config.heuristic_weight * h

    limit = MAX_STEPS * (1 + config.num_simulations)
    expanded, found = in_queue_order(world, priority, limit)
    assert expanded_paths(tree, b) == expanded
    if found is not None:
      num_found += 1
      assert path(tree, b, committed(tree, b)[-1]) == found
  assert num_found > NUM_TREES // 2


def test_astar_by_depth_alone_is_uniform_cost():
  config = setting(
    "astar", path_cost="depth", heuristic_weight=0.0, num_simulations=40
  )
  tree = play(config)
  for b in range(NUM_TREES):
    depths = [len(line) for line in expanded_paths(tree, b)]
    assert depths == sorted(depths)
    assert expanded_paths(tree, b) == sorted(
      expanded_paths(tree, b), key=lambda line: (len(line), line)
    )


@pytest.mark.parametrize("aggregate", ["last", "min", "product", "mean"])
def test_best_first_by_value_is_a_queue(aggregate):
  config = setting("best_first", aggregate=aggregate, num_simulations=40)
  tree = play(config)
  combine = {
    "last": lambda scores: scores[-1],
    "min": min,
    "product": np.prod,
    "mean": np.mean,
  }[aggregate]
  for b in range(NUM_TREES):
    world = PlainWorld(b)

    def priority(line, world=world):
      scores = [world.prm(line[: i + 1]) for i in range(len(line))]
      return combine(scores) + world.value(line)

    limit = MAX_STEPS * (1 + config.num_simulations)
    expanded, _ = in_queue_order(world, priority, limit)
    assert expanded_paths(tree, b) == expanded


def test_best_first_by_best_candidate_keys_lines_anew():
  """The queue of the paper: a line comes back before its candidates join."""
  config = setting("best_first", heuristic="max_q", num_simulations=40)
  tree = play(config)
  for b in range(NUM_TREES):
    world = PlainWorld(b)

    def g(line, world=world):
      return world.prm(line)

    order, queue, expanded = 0, [], [()]
    found = None
    # (key, finished first, order, line, is expanded)
    waiting = [((), True)]
    while found is None:
      line, is_expanded = waiting.pop()
      if not is_expanded:
        if world.is_finished(line):
          found = line
          break
        expanded.append(line)
        best = max(world.value(child) for child in world.children(line))
        order += 1
        heapq.heappush(queue, (-(g(line) + best), 0, order, line, True))
      else:
        for child in world.children(line):
          if world.is_terminal(child) and not world.is_finished(child):
            continue
          order += 1
          key = -(g(child) + world.value(child))
          kind = -1 if world.is_finished(child) else 0
          heapq.heappush(queue, (key, kind, order, child, False))
      if not queue or len(expanded) > 60:
        break
      _, _, _, line, is_expanded = heapq.heappop(queue)
      waiting.append((line, is_expanded))
    assert expanded_paths(tree, b) == expanded


def test_depth_first_thoughts_go_back():
  config = setting(
    "tot_dfs", prune_below=0.3, accept_above=0.9, num_simulations=40
  )
  tree = play(config)
  num_back = 0
  for b in range(NUM_TREES):
    world = PlainWorld(b)
    expanded = []

    def visit(line, world=world, expanded=expanded):
      """True once a good line is found."""
      expanded.append(line)
      children = world.children(line)
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
    assert expanded_paths(tree, b) == expanded
    depths = [len(line) for line in expanded]
    num_back += sum(np.diff(depths) < 1)
  assert num_back > 5


@pytest.mark.parametrize(
  ("num_simulations", "dirichlet_share"), [(1, 0.0), (30, 0.0), (20, 0.25)]
)
def test_puct_in_mctx_mode_is_mctx(num_simulations, dirichlet_share):
  num_trees, num_candidates = 64, 4
  config = SearchConfig(
    searcher="puct",
    num_candidates=num_candidates,
    num_simulations=num_simulations,
    dirichlet_share=dirichlet_share,
    mctx_mode=True,
  )
  roots = jnp.arange(500, 500 + num_trees, dtype=jnp.uint32)
  actions = jnp.arange(num_candidates)[None]

  def prior(states):
    children = testing.child_state(
      jnp.repeat(states[:, None], num_candidates, axis=1), actions
    )
    return 2.0 * testing.unit(children, 0)

  def recurrent_fn(params, rng_key, action, states):
    del params, rng_key
    states = testing.child_state(states, action)
    zeros = jnp.zeros((num_trees,))
    output = mctx.RecurrentFnOutput(
      reward=zeros,
      discount=zeros + 1,
      prior_logits=prior(states),
      value=testing.unit(states, 1),
    )
    return output, states

  root = mctx.RootFnOutput(
    prior_logits=prior(roots), value=testing.unit(roots, 1), embedding=roots
  )
  key = jax.random.key(3)
  policy = functools.partial(
    mctx.muzero_policy,
    recurrent_fn=recurrent_fn,
    num_simulations=num_simulations,
    dirichlet_fraction=dirichlet_share,
    temperature=0.0,
  )
  expected = jax.jit(lambda key, root: policy(None, key, root))(key, root)
  # mctx draws its noise for the whole batch from the second of three keys.
  noise = jax.random.dirichlet(
    jax.random.split(key, 3)[1],
    jnp.full((num_candidates,), 0.3),
    shape=(num_trees,),
  )
  state = testing.new_state(roots, config, num_simulations + 1)
  state = state._replace(tree=state.tree.replace(noise=noise))
  expand_fn = testing.make_hash_expand_fn(num_candidates)
  state = jax.jit(
    lambda state: driver.search_move(
      None, state, expand_fn, config, num_simulations + 1
    )
  )(state)
  n = num_simulations + 1
  tree = state.tree
  theirs = expected.search_tree
  np.testing.assert_array_equal(tree.parent[:, :n], theirs.parents)
  np.testing.assert_array_equal(tree.child[:, :n], theirs.children_index)
  np.testing.assert_array_equal(tree.visits[:, :n], theirs.children_visits)
  visits = tree.visits[:, 0]
  np.testing.assert_allclose(
    visits / visits.sum(axis=1, keepdims=True),
    expected.action_weights,
    atol=1e-5,
  )
  chosen = driver.commit(state, config).tree.root_candidate
  most = np.take_along_axis(np.asarray(visits), chosen[:, None], axis=1)[:, 0]
  np.testing.assert_array_equal(most, visits.max(axis=1))


def test_puct_of_one_level_is_the_formula():
  """With one candidate per visit count the numbers can be written down."""
  config = setting("puct", num_simulations=0)
  tree = play(config, budget=UNLIMITED)
  for b in range(NUM_TREES):
    world = PlainWorld(b)
    first = committed(tree, b)[0]
    # No visit anywhere: largest V, then largest prior.
    values = [world.value((a,)) for a in range(A)]
    assert first == (0, int(np.argmax(values)))
