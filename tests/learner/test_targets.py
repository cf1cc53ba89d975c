"""Targets of a small tree, worked out by hand."""

import dataclasses

import numpy as np
import pytest

from qstar_jax.config import LearnerConfig, SearchConfig
from qstar_jax.errors import UserError
from qstar_jax.learner.targets import trees_to_rows
from qstar_jax.records import Outcome, TreeRecord
from tests.learner.whole_rows import whole_rows


def small_tree(**changes):
  """Two steps: root -> 0 -> (0 is right, 1 is wrong), and root -> 1."""
  tree = TreeRecord(
    domain="test",
    domain_version=1,
    problem_key="key",
    prompt="prompt\n",
    actor_id=0,
    sequence=0,
    params_version=0,
    terminal_value="value",
    temperature=1.0,
    prompt_tokens=np.array([90, 91], np.int32),
    node_parent=np.array([-1, 0], np.int32),
    node_candidate=np.array([-1, 0], np.int32),
    node_value=np.array([0.5, 0.5], np.float32),
    tokens=np.array([11, 12, 13, 21, 22, 31, 32], np.int32),
    length=np.array([[2, 1], [2, 2]], np.int32),
    count=np.array([[1, 1], [3, 1]], np.int32),
    log_prob=np.array([[-1, -1], [-1, -2]], np.float32),
    proposal_log_prob=np.array([[-1, -1], [-1, -2]], np.float32),
    value=np.full((2, 2), 0.5, np.float32),
    prm=np.full((2, 2), 0.5, np.float32),
    ended=np.array([[False, False], [True, True]]),
    visits=np.array([[1, 0], [0, 0]], np.int32),
    q=np.array([[0.6, 0.6], [0.5, 0.5]], np.float32),
    legal=np.array([[1, -1], [1, 1]], np.int8),
    outcome=np.array([[-1, -1], [0, 1]], np.int8),
    score=np.array([[0, 0], [1, 0]], np.float32),
    committed_node=np.array([0, 1], np.int32),
    committed_candidate=np.array([0, 0], np.int32),
    final_outcome=0,
    final_score=1.0,
  )
  return dataclasses.replace(tree, **changes)


def test_small_tree_by_hand():
  batch = whole_rows([small_tree()], LearnerConfig(), SearchConfig(), 10)
  expected = {
    "tokens": [90, 91, 13, 11, 12, 21, 22, 31, 32, 0],
    "position": [0, 1, 2, 2, 3, 4, 5, 4, 5, 0],
    "previous": [0, 0, 1, 1, 3, 4, 5, 4, 7, 0],
    "last": [8, 8, 2, 8, 8, 6, 6, 8, 8, 0],
    # Q is constant at both nodes, so pi' are the counts: 1/2 and 1/2 at the
    # root, 3/4 and 1/4 below its second candidate.
    "policy_weight": [0, 0, 0.5, 0.5, 0.5, *[0.375] * 2, *[0.125] * 2, 0],
    "value_weight": [0, 1, 0, 0, 1, 0, 1, 0, 1, 0],
    # Outcome 1 and search value 0.6, at lambda 0.75; then the verdicts.
    "value_target": [0, 0.9, 0, 0, 0.9, 0, 1, 0, 0, 0],
    "prm_weight": [0, 0, 0, 0, 1, 0, 1, 0, 1, 0],
    "prm_target": [0, 0, 0, 0, 1, 0, 1, 0, 0, 0],
  }
  for name, values in expected.items():
    np.testing.assert_allclose(
      getattr(batch, name)[0], values, rtol=1e-6, err_msg=name
    )
  assert len(batch.tokens) == 1


def two_lines():
  """The nodes of the small tree, each at the prompt: two lines, drawn apart."""
  return small_tree(
    node_parent=np.array([-1, -1], np.int32),
    node_candidate=np.array([-1, -1], np.int32),
    committed_node=np.array([1], np.int32),
    committed_candidate=np.array([0], np.int32),
  )


def test_every_line_that_was_drawn_apart_is_learned_from():
  batch = whole_rows([two_lines()], LearnerConfig(), SearchConfig(), 10)
  expected = {
    "tokens": [90, 91, 11, 12, 13, 21, 22, 31, 32, 0],
    "position": [0, 1, 2, 3, 2, 2, 3, 2, 3, 0],
    "policy_weight": [0, 0, 0.5, 0.5, 0.5, *[0.75] * 2, *[0.25] * 2, 0],
    # Outcome 1 and the mean of the roots' 0.6 and 0.5, at lambda 0.75.
    "value_weight": [0, 1, 0, 0.25, 0, 0, 1, 0, 1, 0],
    "value_target": [0, 0.8875, 0, 0.6, 0, 0, 1, 0, 0, 0],
  }
  for name, values in expected.items():
    np.testing.assert_allclose(
      getattr(batch, name)[0], values, rtol=1e-6, err_msg=name
    )


def test_a_prompt_is_worth_the_best_of_its_lines():
  learner = LearnerConfig(value_target="step_q")
  for best in 0, 1:
    tree = two_lines()
    tree.ended[:], tree.outcome[:] = False, -1
    tree.value[:] = 0.25
    tree.value[best, 1] = 0.75
    batch = whole_rows([tree], learner, SearchConfig(), 10)
    assert batch.value_target[0, 1] == 0.75
    assert batch.value_weight[0, 1] == 1


def test_own_expansion_counts_as_a_visit():
  """Below the root all candidates are finished lines, which nothing visits.

  Were their node no target, no line's last step would ever be learned.
  """
  weights = {}
  for min_visits in 1, 2, 3:
    learner = LearnerConfig(min_visits=min_visits)
    batch = whole_rows([small_tree()], learner, SearchConfig(), 6)
    weights[min_visits] = [
      batch.policy_weight[batch.tokens == token].sum() for token in (13, 21)
    ]
  expected = {1: [0.5, 0.375], 2: [0.5, 0], 3: [0, 0]}
  for min_visits, values in expected.items():
    np.testing.assert_allclose(weights[min_visits], values, rtol=1e-6)


def test_refused_candidates_leave_the_policy_if_the_search_knew():
  legal = np.array([[1, 0], [1, 1]], np.int8)
  weights = {}
  for terminal_value in "value", "outcome":
    tree = small_tree(legal=legal, terminal_value=terminal_value)
    batch = whole_rows([tree], LearnerConfig(), SearchConfig(), 6)
    weights[terminal_value] = [
      batch.policy_weight[batch.tokens == token].sum() for token in (12, 13)
    ]
    is_refused = batch.tokens == 13
    assert batch.value_weight[is_refused] == 1
    assert batch.prm_weight[is_refused] == 1
    assert batch.value_target[is_refused] == batch.prm_target[is_refused] == 0
  assert weights["value"] == [0.5, 0.5]
  assert weights["outcome"] == [1, 0]


def test_node_whose_candidates_are_all_refused_is_no_policy_target():
  tree = small_tree(
    legal=np.zeros((2, 2), np.int8), terminal_value="outcome", final_outcome=1
  )
  batch = whole_rows([tree], LearnerConfig(), SearchConfig(), 6)
  assert not batch.policy_weight.any()


def test_timeout_teaches_no_value():
  tree = small_tree(
    final_outcome=int(Outcome.TIMEOUT), outcome=np.full((2, 2), -1, np.int8)
  )
  learner = LearnerConfig(value_lambda=1.0)
  batch = whole_rows([tree], learner, SearchConfig(), 6)
  assert not batch.value_weight.any()
  assert not batch.prm_weight.any()


def test_nothing_to_teach_is_no_rows():
  tree = small_tree(
    visits=np.zeros((2, 2), np.int32),
    outcome=np.full((2, 2), -1, np.int8),
    final_outcome=int(Outcome.TIMEOUT),
  )
  learner = LearnerConfig(min_visits=2)
  batch = whole_rows([tree], learner, SearchConfig(), 6)
  assert batch.tokens.shape == (0, 6)


def test_line_too_long():
  with pytest.raises(UserError, match=r"6 tokens does not fit .* 5;"):
    whole_rows([small_tree()], LearnerConfig(), SearchConfig(), 5)


@pytest.mark.parametrize(
  ("known", "fooled", "draws_known", "draws_fooled"),
  [
    pytest.param((0.2, 0.1), (0.2, 0.1), 1, 1, id="all alike"),
    pytest.param((0, 0), (0, 0), 1, 1, id="nothing is news"),
    pytest.param((0.1, 0.2), (0.6, 0), 0.75, 1.25, id="value fooled"),
    pytest.param((0.2, 0.2), (0.1, 0.6), 0.75, 1.25, id="prm fooled"),
    pytest.param((0, 0), (0.1, 0), 0.5, 1.5, id="the only news"),
  ],
)
def test_light_steps_are_thinned_without_bias(
  known, fooled, draws_known, draws_fooled
):
  """The last step weighs 1/8, is wrong, and nothing goes on from it.

  In one tree V and PRM give it `known`, in another `fooled`.
  """

  def tree(right_token, value, prm):
    return small_tree(
      tokens=np.array([11, 12, 13, 21, 22, 31, right_token], np.int32),
      q=np.array([[0.6, 0.6], [0.5, 0.35]], np.float32),
      value=np.array([[0.5, 0.5], [0.5, value]], np.float32),
      prm=np.array([[0.5, 0.5], [0.5, prm]], np.float32),
    )

  p_of = {32: 1 - 0.75**draws_known, 33: 1 - 0.75**draws_fooled}
  trees = [tree(32, *known), tree(33, *fooled)]
  learner = LearnerConfig(light_steps=0.25)
  rng = np.random.default_rng(0)
  num_pairs = 4000
  batch = trees_to_rows(trees * num_pairs, learner, SearchConfig(), 9, rng)
  whole = whole_rows(trees, learner, SearchConfig(), 9)
  for token in (91, 13, 12, 22, 32, 33):
    p = p_of.get(token, 1)
    count = num_pairs if token in p_of else 2 * num_pairs
    for name in ("policy_weight", "value_weight", "prm_weight"):
      weights = getattr(batch, name)[batch.tokens == token]
      weights = weights[weights > 0]
      one = getattr(whole, name)[whole.tokens == token].max()
      if one == 0:
        assert not weights.size
        continue
      np.testing.assert_allclose(weights, one / p, 1e-6)
      assert weights.size / count == (
        pytest.approx(p, abs=0.03) if p < 1 else 1
      )


def test_candidates_that_are_not_there_are_no_light_steps():
  """Only the last step is: all are alike, and a share of them stays."""
  tree = small_tree(
    tokens=np.array([11, 12, 21, 22, 31, 32], np.int32),
    length=np.array([[2, 0], [2, 2]], np.int32),
    count=np.array([[1, 0], [3, 1]], np.int32),
    q=np.array([[0.6, 0.0], [0.5, 0.2]], np.float32),
    prm=np.array([[0.5, 0.0], [0.5, 0.2]], np.float32),
    value=np.array([[0.5, 0.0], [0.5, 0.2]], np.float32),
  )
  learner = LearnerConfig(light_steps=0.25)
  rng = np.random.default_rng(0)
  batch = trees_to_rows([tree] * 1000, learner, SearchConfig(), 9, rng)
  weights = batch.value_weight[batch.tokens == 32]
  np.testing.assert_allclose(weights[weights > 0], 4, 1e-6)


def test_a_step_with_nothing_to_teach_stays_if_it_leads_somewhere():
  """11 12 was not visited, and nobody knows if it is right."""
  tree = small_tree(
    visits=np.zeros((2, 2), np.int32),
    outcome=np.array([[-1, -1], [1, 1]], np.int8),
    score=np.zeros((2, 2), np.float32),
    final_outcome=int(Outcome.TIMEOUT),
  )
  learner = LearnerConfig(min_visits=2)
  batch = whole_rows([tree], learner, SearchConfig(), 8)
  np.testing.assert_array_equal(batch.tokens, [[90, 91, 11, 12, 31, 32, 0, 0]])
  np.testing.assert_array_equal(batch.value_weight, [[0, 0, 0, 0, 0, 1, 0, 0]])
