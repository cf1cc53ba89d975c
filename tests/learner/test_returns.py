"""Rewards, returns and other targets of reinforcement learning, by hand."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qstar_jax.config import LearnerConfig, SearchConfig
from qstar_jax.learner import returns, tree_policy
from qstar_jax.learner.forest import plant
from tests.learner import test_random_trees as random_trees
from tests.learner.test_targets import small_tree
from tests.learner.whole_rows import whole_rows

SEARCH = SearchConfig()


def tree():
  """`small_tree` with scores that can be told apart.

  Root -> 0 (V 0.4) -> (0: right, three samples; 1: wrong), and root -> 1, which
  is open (V 0.7).
  """
  return small_tree(
    node_value=np.array([0.5, 0.4], np.float32),
    value=np.array([[0.4, 0.7], [0.9, 0.2]], np.float32),
    prm=np.array([[0.8, 0.3], [0.6, 0.1]], np.float32),
    q=np.array([[0.6, 0.2], [0.9, 0.2]], np.float32),
  )


def policy(forest, learner=None):
  learner = learner or LearnerConfig()
  return tree_policy.search_policy(forest, learner, SEARCH)


def weight_of(batch, token, field="policy_weight"):
  return getattr(batch, field)[batch.tokens == token].sum()


def test_progress_by_hand():
  """Below candidate 0, pi' is of stored Q, and progress of the verdicts."""
  forest = plant([tree()])
  change = returns.progress(forest, policy(forest))
  first = 1 / (1 + np.exp(51 * 0.1 * -0.4))
  value = first * 0.6 + (1 - first) * 0.2
  below = 3 / (3 + np.exp(50 * 0.1 * (0.2 - 0.9)))
  np.testing.assert_allclose(
    change.target, [0.6 - value, 0.2 - value, 1 - below, -below], rtol=1e-5
  )
  np.testing.assert_array_equal(change.weight, 1)


def test_progress_becomes_labels():
  learner = LearnerConfig(prm_target="progress")
  forest = plant([tree()])
  change = returns.progress(forest, policy(forest)).target
  batch = whole_rows([tree()], learner, SEARCH, 6)
  for token, value in zip((12, 13, 22, 32), change, strict=True):
    credited = (batch.tokens == token) & (batch.prm_weight > 0)
    assert batch.prm_target[credited] == pytest.approx((1 + value) / 2)


@pytest.mark.parametrize(
  ("reward", "rewards", "value"),
  [
    # 3 of 4 lines are right.
    ("outcome", [0, 0, 1, 0], [0.75, 0, 1, 0]),
    # 0.8, and 0.6 three times of four, 0.1 once.
    ("prm", [0.8, 0.3, 0.6, 0.1], [0.8 + 1.9 / 4, 0, 0.6, 0.1]),
  ],
)
def test_returns_by_hand(reward, rewards, value):
  forest = plant([tree()])
  earned = returns.rewards(forest, policy(forest), reward)
  np.testing.assert_allclose(earned.target, rewards, rtol=1e-6)
  np.testing.assert_array_equal(earned.weight, [1, 1, 3, 1])
  discount = returns.discounts(forest, 1.0)
  np.testing.assert_array_equal(discount, [1, 1, 0, 0])
  found = returns.returns(forest, earned, discount)
  # Nobody has seen the end of the open line.
  np.testing.assert_array_equal(found.weight, [1, 0, 3, 1])
  is_known = found.weight > 0
  np.testing.assert_allclose(
    found.target[is_known], np.array(value)[is_known], rtol=1e-6
  )


def test_returns_are_discounted_by_step():
  forest = plant([tree()])
  earned = returns.rewards(forest, policy(forest), "outcome")
  found = returns.returns(forest, earned, returns.discounts(forest, 0.5))
  assert found.target[0] == pytest.approx(0.375)


def test_lines_that_say_nothing_of_their_end():
  """Nobody judged the wrong one; an illegal step is judged by the rules."""
  unjudged = dataclasses.replace(
    tree(),
    outcome=np.array([[-1, -1], [0, -1]], np.int8),
    legal=np.array([[1, 0], [1, 1]], np.int8),
  )
  forest = plant([unjudged])
  earned = returns.rewards(forest, policy(forest), "outcome")
  np.testing.assert_array_equal(earned.weight, [1, 1, 3, 0])
  discount = returns.discounts(forest, 1.0)
  found = returns.returns(forest, earned, discount)
  np.testing.assert_array_equal(found.weight, [1, 1, 3, 0])
  np.testing.assert_array_equal(found.target[:3], [1, 0, 1])


def test_awr_weighs_samples_by_the_exponential_of_their_advantage():
  learner = LearnerConfig(
    policy_target="awr", advantage_temperature=0.5, max_advantage_weight=1.5
  )
  batch = whole_rows([tree()], learner, SEARCH, 6)
  expected = {
    12: 1.0,  # The only candidate with a known return.
    13: 0.0,
    22: 3 * 1.5,  # exp((1 - 0.75) / 0.5) is cut.
    32: np.exp((0 - 0.75) / 0.5),
  }
  for token, weight in expected.items():
    assert weight_of(batch, token) == pytest.approx(weight, rel=1e-5)


def test_returns_are_compared_with_those_beside_them():
  learner = LearnerConfig(reward="prm")
  forest = plant([tree()])
  found = returns.advantages(forest, policy(forest), learner)
  mean = 1.9 / 4
  np.testing.assert_allclose(found.target[2:], [0.6 - mean, 0.1 - mean])
  # The only candidate with a known return.
  assert found.target[0] == pytest.approx(0)


def test_imitation_counts_every_right_line_once():
  both_right = dataclasses.replace(
    tree(),
    outcome=np.zeros((2, 2), np.int8),
    ended=np.array([[False, True], [True, True]]),
    score=np.ones((2, 2), np.float32),
    legal=np.ones((2, 2), np.int8),
  )
  # The first candidate does not end a line: it has no verdict.
  both_right.outcome[0, 0] = -1
  learner = LearnerConfig(policy_target="imitation")
  batch = whole_rows([both_right, tree()], learner, SEARCH, 6)
  for token, weight in {11: 2 + 1, 13: 1, 21: 1 + 1, 32: 1 + 0}.items():
    assert weight_of(batch, token) == weight


def test_actions_by_hand():
  learner = LearnerConfig(losses={"token_q": 1.0}, discount=0.5)
  batch = whole_rows([tree()], learner, SEARCH, 10)
  # 90 91, below it 13 and 11 12, below that 21 22 and 31 32.
  np.testing.assert_array_equal(
    batch.action_weight, [[0, 0, 1, 1, 1, 3, 3, 1, 1, 0]]
  )
  np.testing.assert_array_equal(batch.reward, [[*[0] * 6, 1, 0, 0, 0]])
  np.testing.assert_array_equal(
    batch.discount[:, 2:], [[0.5, 1, 0.5, 1, 0, 1, 0, 0]]
  )


def test_fields_that_no_loss_reads_are_not_there():
  batch = whole_rows([tree()], LearnerConfig(), SEARCH, 6)
  names = [name for name, field in vars(batch).items() if field is None]
  assert names == [
    *("reward", "discount", "action_weight"),
    *("rival", "rival_weight"),
  ]


def test_rivals_by_hand():
  """Of the steps one ends its line wrong beside a right one."""
  learner = LearnerConfig(losses={"prm_ranking": 1.0})
  batch = whole_rows([tree()], learner, SEARCH, 9)
  # 31 32 has 21 22 beside it.
  np.testing.assert_array_equal(batch.rival_weight, [[*[0] * 8, 1]])
  np.testing.assert_array_equal(batch.rival, [[*[0] * 8, 6]])


def test_step_q_by_hand():
  forest = plant([tree()])
  of_edges, of_roots = returns.step_q(forest)
  np.testing.assert_allclose(of_edges.target, [1, 0.7, 1, 0], rtol=1e-6)
  np.testing.assert_array_equal(of_edges.weight, [1, 0, 1, 1])
  assert of_roots.target == [1]
  assert of_roots.weight == [1]


def test_a_verdict_stands_whatever_was_expanded_below():
  """The first step solves the problem; the search did not know, and went on."""
  over = dataclasses.replace(
    tree(),
    outcome=np.array([[0, -1], [-1, -1]], np.int8),
    score=np.array([[1, 0], [0, 0]], np.float32),
    legal=np.array([[1, 1], [0, 0]], np.int8),
    final_outcome=1,
  )
  forest = plant([over])
  best, _ = returns.step_q(forest)
  assert best.target[0] == 1
  earned = returns.rewards(forest, policy(forest), "outcome")
  found = returns.returns(forest, earned, returns.discounts(forest, 1.0))
  assert found.target[0] == 1


# Random trees, against recursion over plain edges.


def plain_step_q(record, edge):
  outcome, score = random_trees.outcome_of(record, edge)
  if random_trees.is_failed(record, edge):
    return 0.0
  if outcome is not None:
    return score
  below = [
    e for e in random_trees.edges_of(record) if parent(record, e) == edge
  ]
  if below:
    return max(plain_step_q(record, e) for e in below)
  return record.value[edge]


def parent(record, edge):
  node = edge[0]
  if node == 0:
    return None
  return int(record.node_parent[node]), int(record.node_candidate[node])


def finished_below(record, edge):
  """(samples, return) of what is at or below an edge; None if nothing is."""
  outcome, score = random_trees.outcome_of(record, edge)
  count = record.count[edge]
  above = parent(record, edge)
  if above is not None and random_trees.is_failed(record, above):
    return None
  if random_trees.is_failed(record, edge):
    return count, 0.0
  if outcome is not None:
    return count, score
  if record.ended[edge]:
    return None
  below = [
    finished_below(record, e)
    for e in random_trees.edges_of(record)
    if parent(record, e) == edge
  ]
  below = [found for found in below if found is not None]
  if not below:
    return None
  total = sum(n for n, _ in below)
  return count, sum(n * value for n, value in below) / total


@given(st.integers(0, 2**32 - 1))
def test_random_trees_by_recursion(seed):
  rng = np.random.default_rng(seed)
  records = [random_trees.random_tree(rng, i) for i in range(2)]
  forest = plant(records)
  policy_NA = policy(forest)
  earned = returns.rewards(forest, policy_NA, "outcome")
  found = returns.returns(forest, earned, returns.discounts(forest, 1.0))
  best, best_of_root = returns.step_q(forest)
  first = 0
  for record in records:
    for edge in random_trees.edges_of(record):
      e = first + edge[0] * random_trees.NUM_CANDIDATES + edge[1]
      weight, value = finished_below(record, edge) or (0, 0.0)
      assert found.weight[e] == weight
      if weight:
        assert found.target[e] == pytest.approx(value, abs=1e-6)
      expected = plain_step_q(record, edge)
      assert best.target[e] == pytest.approx(expected, abs=1e-6)
    first += record.count.size
  for record, value in zip(records, best_of_root.target, strict=True):
    roots = [e for e in random_trees.edges_of(record) if e[0] == 0]
    expected = max(plain_step_q(record, e) for e in roots)
    assert value == pytest.approx(expected, abs=1e-6)
