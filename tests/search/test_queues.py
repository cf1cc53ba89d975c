"""A* and Q* against a plain queue."""

import heapq

import numpy as np
import pytest

from qstar_jax.search import lines
from qstar_jax.search.algorithms import best_first
from tests.search.hash_plays import (
  AGGREGATES,
  MAX_STEPS,
  NUM_TREES,
  PlainWorld,
  committed,
  expanded_paths,
  path,
  play,
  row,
  setting,
)


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


def log_prob(world, line):
  """Of the whole line."""
  return sum(world.log_prob(line[: i + 1]) for i in range(len(line)))


def assert_plays_are_queues(tree, priority_in, num_expansions):
  """Asserts that every tree expands and commits what its queue does.

  Args:
    tree: of all plays.
    priority_in: gives the priority of a line in a `PlainWorld`.
    num_expansions: after which a queue ends.
  """
  num_found = 0
  for b in range(NUM_TREES):
    world = PlainWorld(b)
    expanded, found = in_queue_order(world, priority_in(world), num_expansions)
    assert expanded_paths(tree, b) == expanded
    if found is not None:
      num_found += 1
      assert path(tree, b, committed(tree, b)[-1]) == found
  assert num_found > NUM_TREES // 2


@pytest.mark.parametrize(
  "changes",
  [{}, {"heuristic_weight": 0.0}, {"path_cost": "depth"}, {"policy_cost": 0.7}],
  ids=["prm", "no_heuristic", "depth", "policy"],
)
def test_astar_is_a_queue(changes):
  config = setting("astar", num_simulations=40, **changes)

  def priority_in(world):
    def priority(line):
      scores = [world.prm(line[: i + 1]) for i in range(len(line))]
      g = -len(line) if config.path_cost == "depth" else np.log(np.prod(scores))
      g += config.policy_cost * log_prob(world, line)
      h = 0 if world.is_finished(line) else np.log(world.value(line))
      return g + config.heuristic_weight * h

    return priority

  limit = MAX_STEPS * (1 + config.num_simulations)
  assert_plays_are_queues(play(config), priority_in, limit)


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


@pytest.mark.parametrize("heuristic", ["value", "token_q"])
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("policy_cost", [0.0, 0.4])
def test_best_first_by_estimates_is_a_queue(aggregate, heuristic, policy_cost):
  config = setting(
    "best_first",
    aggregate=aggregate,
    heuristic=heuristic,
    policy_cost=policy_cost,
    num_simulations=40,
  )
  tree = play(config)
  combine = AGGREGATES[aggregate]
  for b in range(NUM_TREES):
    world = PlainWorld(b)

    def priority(line, world=world):
      scores = [world.prm(line[: i + 1]) for i in range(len(line))]
      g = combine(scores) + policy_cost * log_prob(world, line)
      return g + getattr(world, heuristic)(line)

    limit = MAX_STEPS * (1 + config.num_simulations)
    expanded, _ = in_queue_order(world, priority, limit)
    assert expanded_paths(tree, b) == expanded


def test_best_first_takes_a_verdict_for_the_whole_of_f():
  """Of whatever the network says; so no wrong line ends the search."""
  config = setting("best_first", heuristic_weight=2.0, policy_cost=0.01)
  tree = row(play(config), 0)
  plain = best_first.priority(tree, config)
  is_judged = lines.is_finished(tree)
  assert is_judged.any() and plain[is_judged].min() > 0
  for score in 0.0, 1.0:
    judged = tree.replace(
      outcome=np.where(is_judged, 0, tree.outcome),
      score=np.where(is_judged, score, tree.score),
    )
    f = best_first.priority(judged, config)
    np.testing.assert_allclose(f, np.where(is_judged, 3 * score, plain))


@pytest.mark.parametrize("policy_cost", [0.0, 0.4, -0.4])
def test_best_first_by_best_candidate_keys_lines_anew(policy_cost):
  """A line comes back before its candidates join, no earlier than it did."""
  config = setting(
    "best_first",
    heuristic="max_q",
    policy_cost=policy_cost,
    num_simulations=40,
  )
  tree = play(config)
  for b in range(NUM_TREES):
    world = PlainWorld(b)

    def g(line, world=world):
      cost = policy_cost * log_prob(world, line)
      return world.prm(line) + cost if line else np.inf

    order, queue, expanded = 0, [], [()]
    # (key, finished first, order, line, is expanded)
    line, key, is_expanded = (), np.inf, True
    while len(expanded) <= 60:
      if not is_expanded:
        if world.is_finished(line):
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
          child_key = min(g(child) + world.value(child), key)
          kind = -1 if world.is_finished(child) else 0
          heapq.heappush(queue, (-child_key, kind, order, child, False))
      if not queue:
        break
      key, _, _, line, is_expanded = heapq.heappop(queue)
      key = -key
    assert expanded_paths(tree, b) == expanded
