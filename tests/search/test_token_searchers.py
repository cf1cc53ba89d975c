"""Searchers over tokens, against plain ones; here a token is a step."""

import functools

import numpy as np
import pytest

from qstar_jax.records import Outcome
from qstar_jax.search.algorithms import token_astar
from tests.search.hash_plays import (
  BASE,
  NUM_TREES,
  PlainWorld,
  committed,
  expanded_paths,
  path,
  play,
  row,
  setting,
)
from tests.search.test_queues import assert_plays_are_queues


def line_score(config, world):
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
  score_in = functools.partial(line_score, config)
  assert_plays_are_queues(play(config), score_in, num_expansions=100)


def test_token_astar_takes_a_verdict_for_the_value():
  config = setting("token_astar", heuristic_weight=3.0)
  tree = row(play(config), 0)
  before = token_astar.priority(tree, config)
  # A node below the first, whose lines have two steps.
  node = 1
  outcome, score = tree.outcome.copy(), tree.score.copy()
  outcome[node, :2] = Outcome.CORRECT, Outcome.WRONG
  score[node, :2] = 1.0, 0.25
  after = token_astar.priority(
    tree.replace(outcome=outcome, score=score), config
  )
  above = tree.log_prob[tree.parent[node], tree.candidate[node]]
  line_log_prob = above + tree.log_prob[node, :2]
  np.testing.assert_allclose(
    after[node, :2], line_log_prob + np.log([1.0, 0.25]), rtol=1e-5
  )
  np.testing.assert_array_equal(after[node, 2:], before[node, 2:])


@pytest.mark.parametrize("heuristic", ["value", "token_q"])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_token_beam_is_level_by_level(weight, heuristic):
  config = setting("token_beam", heuristic_weight=weight, heuristic=heuristic)
  tree = play(config)
  for b in range(NUM_TREES):
    world = PlainWorld(b)
    score = line_score(config, world)
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
