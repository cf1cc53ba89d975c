"""Searchers over tokens, against plain ones; here a token is a step."""

import numpy as np
import pytest

from tests.search.hash_plays import (
  BASE,
  NUM_TREES,
  PlainWorld,
  committed,
  expanded_paths,
  path,
  play,
  setting,
)
from tests.search.test_queues import in_queue_order


def line_score(world, config):
  """log pi of a line + lambda log V at its end, or log Q, as a function."""
  estimate = world.token_q if config.heuristic == "token_q" else world.value

  def score(line):
    log_prob = sum(world.log_prob(line[: i + 1]) for i in range(len(line)))
    return log_prob + config.heuristic_weight * np.log(estimate(line))

  return score


@pytest.mark.parametrize("heuristic", ["value", "token_q"])
@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
def test_token_astar_is_a_queue(weight, heuristic):
  config = setting(
    "token_astar",
    num_simulations=60,
    heuristic_weight=weight,
    heuristic=heuristic,
  )
  tree = play(config)
  num_found = 0
  for b in range(NUM_TREES):
    world = PlainWorld(b)
    expanded, found = in_queue_order(world, line_score(world, config), 100)
    assert expanded_paths(tree, b) == expanded
    if found is not None:
      num_found += 1
      assert path(tree, b, committed(tree, b)[-1]) == found
  assert num_found > NUM_TREES // 2


@pytest.mark.parametrize("heuristic", ["value", "token_q"])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_token_beam_is_level_by_level(weight, heuristic):
  config = setting("token_beam", heuristic_weight=weight, heuristic=heuristic)
  tree = play(config)
  for b in range(NUM_TREES):
    world = PlainWorld(b)
    score = line_score(world, config)
    level, expanded, results = [()], [], []
    while level:
      expanded += level
      pool = [child for line in level for child in world.children(line)]
      pool.sort(key=score, reverse=True)
      results += [line for line in pool if world.is_finished(line)]
      level = [
        line for line in pool[: BASE.beam_width] if not world.is_terminal(line)
      ]
    assert expanded_paths(tree, b) == expanded
    best = max(results, key=score, default=None)
    if best is not None:
      assert path(tree, b, committed(tree, b)[-1]) == best


@pytest.mark.parametrize("guidance", [0.0, 2.0, 1000.0])
def test_value_guided_takes_the_best_of_each_state(guidance):
  tree = play(setting("value_guided", guidance=guidance))
  for b in range(NUM_TREES):
    world, line = PlainWorld(b), ()
    while not line or not world.is_terminal(line):
      line = max(
        world.children(line),
        key=lambda child: (
          world.log_prob(child) + guidance * world.token_q(child)
        ),
      )
    assert path(tree, b, committed(tree, b)[-1]) == line
