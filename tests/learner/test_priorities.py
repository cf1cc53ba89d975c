"""What makes a tree surprising, against numbers by hand."""

import dataclasses
import math

import numpy as np
import pytest

from qstar_jax.config import ExperimentConfig, ReplayConfig, SearchConfig
from qstar_jax.learner import priorities
from tests.replay.conftest import random_tree


@pytest.fixture
def tree():
  """Two nodes of three candidates; the second one's last slot is empty."""
  noise = random_tree(0, num_nodes=2, num_candidates=3)
  return dataclasses.replace(
    noise,
    count=np.array([[2, 1, 1], [1, 1, 0]], np.int32),
    # Sampled at temperature 1: the prior is the counts alone.
    log_prob=np.array([[-1.0, -2.0, -3.0], [-0.5, -9.0, -1.0]], np.float32),
    proposal_log_prob=np.array(
      [[-1.0, -2.0, -3.0], [-0.5, -9.0, -7.0]], np.float32
    ),
    visits=np.array([[3, 0, 1], [0, 0, 8]], np.int32),
    value=np.array([[0.5, 0.5, 0.5], [0.2, 0.4, 0.0]], np.float32),
    q=np.array([[0.9, 0.0, 0.3], [0.2, 0.4, 1.0]], np.float32),
    committed_node=np.array([0, 1], np.int32),
    committed_candidate=np.array([0, 1], np.int32),
  )


def test_value_error_is_over_what_was_visited(tree):
  # 0.4 and 0.2; the empty slot says nothing, whatever it holds.
  assert priorities.value_error(tree) == pytest.approx(0.3)
  unvisited = dataclasses.replace(tree, visits=np.zeros((2, 3), np.int32))
  assert priorities.value_error(unvisited) == 0.0


def _kl(prior, scaled_q):
  """KL(pi' || prior), written differently: over weights and their ratio."""
  weights = [p * math.exp(q) for p, q in zip(prior, scaled_q, strict=True)]
  policy = [w / sum(weights) for w in weights]
  return sum(
    p * math.log(p / b) for p, b in zip(policy, prior, strict=True) if p
  )


def test_policy_surprise_by_hand(tree):
  search = SearchConfig(maxvisit_init=10.0, value_scale=0.2)
  # sigma is (10 + 3) * 0.2 = 2.6 at the root, (10 + 8) * 0.2 = 3.6 below.
  expected = np.mean(
    [
      _kl([0.5, 0.25, 0.25], [2.6 * 0.9, 0.0, 2.6 * 0.3]),
      _kl([0.5, 0.5], [3.6 * 0.2, 3.6 * 0.4]),
    ]
  )
  found = priorities.policy_surprise(tree, search)
  assert found == pytest.approx(expected, rel=1e-5)


def test_only_the_committed_line_surprises(tree):
  search = SearchConfig(maxvisit_init=10.0, value_scale=0.2)
  root = dataclasses.replace(
    tree, committed_node=np.array([0]), committed_candidate=np.array([1])
  )
  expected = _kl([0.5, 0.25, 0.25], [2.6 * 0.9, 0.0, 2.6 * 0.3])
  found = priorities.policy_surprise(root, search)
  assert found == pytest.approx(expected, rel=1e-5)


def test_where_all_is_equally_good_nothing_surprises(tree):
  flat = dataclasses.replace(tree, q=np.full((2, 3), 0.7, np.float32))
  surprise = priorities.policy_surprise(flat, SearchConfig())
  assert surprise == pytest.approx(0.0, abs=1e-6)


def test_a_prior_that_underflows_surprises_finitely(tree):
  sure = dataclasses.replace(
    tree, log_prob=np.array([[0, -500, -500], [0, -500, 0]], np.float32)
  )
  assert math.isfinite(priorities.policy_surprise(sure, SearchConfig()))


def test_the_config_chooses(tree):
  def priority_fn(sampling):
    config = ExperimentConfig(replay=ReplayConfig(sampling=sampling))
    return priorities.make_priority_fn(config)

  assert priority_fn("uniform") is None
  assert priority_fn("prioritised")(tree) == priorities.value_error(tree)
  expected = priorities.policy_surprise(tree, SearchConfig())
  assert priority_fn("surprise")(tree) == expected
