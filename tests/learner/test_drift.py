"""Which steps drift is measured on, and what is said of them."""

import collections
import dataclasses
import math

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from qstar_jax.config import (
  ExperimentConfig,
  LearnerConfig,
  MeshConfig,
  ModelConfig,
  TextConfig,
)
from qstar_jax.distributed.mesh import make_mesh
from qstar_jax.learner import drift
from qstar_jax.model.transformer import init_model
from tests.replay.conftest import random_tree


def _tree(sequence=0):
  """Three nodes: the root, one below its candidate 1, one below that's 0."""
  tree = random_tree(sequence, num_candidates=3)
  length = np.array([[2, 1, 3], [1, 0, 2], [2, 2, 1]], np.int32)
  return dataclasses.replace(
    tree,
    node_parent=np.array([-1, 0, 1], np.int32),
    node_candidate=np.array([-1, 1, 0], np.int32),
    length=length,
    tokens=np.arange(100, 100 + length.sum(), dtype=np.int32),
    count=np.array([[1, 2, 1], [3, 0, 1], [1, 1, 1]], np.int32),
    log_prob=np.array(
      [[-1.0, -2.0, -3.0], [-4.0, 0.0, -5.0], [-6.0, -7.0, -8.0]], np.float32
    ),
    proposal_log_prob=np.array(
      [[-1.0, -2.0, -3.0], [-4.0, 0.0, -5.0], [-6.0, -8.0, -6.0]], np.float32
    ),
    committed_node=np.array([0, 1], np.int32),
    committed_candidate=np.array([1, 0], np.int32),
  )


def _line(tree, node, candidate):
  """Tokens of the prompt and of the steps down to a candidate, one by one."""
  ends = np.cumsum(tree.length.ravel())
  step = node * tree.length.shape[1] + candidate
  own = tree.tokens[ends[step] - tree.length.ravel()[step] : ends[step]]
  if node == 0:
    return [*tree.prompt_tokens, *own]
  parent = tree.node_parent[node], tree.node_candidate[node]
  return [*_line(tree, *parent), *own]


def test_rows_end_in_a_step_and_weigh_it_alone():
  trees = [_tree(i) for i in range(40)]
  batch, log_prob = drift.draw_steps(trees, np.random.default_rng(0), 20)
  nodes = set()
  for i, tree in enumerate(trees):
    (node,), (candidate,) = np.nonzero(tree.log_prob == log_prob[i])
    nodes.add(int(node))
    line = _line(tree, node, candidate)
    num_tokens = tree.length[node, candidate]
    assert np.flatnonzero(batch.last[i]).size == len(line)
    assert batch.tokens[i, : len(line)].tolist() == line
    weight = np.zeros(20)
    weight[len(line) - num_tokens : len(line)] = 1
    np.testing.assert_array_equal(batch.policy_weight[i], weight)
  assert nodes == {0, 1, 2}
  assert not batch.value_weight.any() and not batch.prm_weight.any()


def test_steps_are_drawn_as_the_policy_samples_them():
  """Nodes uniformly, candidates by count * pi / beta: chi-square."""
  num_draws = 3000
  _, log_prob = drift.draw_steps(
    [_tree()] * num_draws, np.random.default_rng(1), 20
  )
  counts = collections.Counter(log_prob.tolist())
  e = math.e
  probability = {
    -1.0: 1 / 4, -2.0: 2 / 4, -3.0: 1 / 4,
    -4.0: 3 / 4, -5.0: 1 / 4,
    -6.0: 1 / (1 + e + e**-2),
    -7.0: e / (1 + e + e**-2),
    -8.0: e**-2 / (1 + e + e**-2),
  }  # fmt: skip
  assert set(counts) == set(probability)
  chi_square = sum(
    (counts[key] - num_draws / 3 * p) ** 2 / (num_draws / 3 * p)
    for key, p in probability.items()
  )
  # 7 degrees of freedom: above 24.3 once in a thousand.
  assert chi_square < 24.3


def test_statistics_by_hand():
  found = drift.statistics(np.log([2.0, 0.5, 1.0, 1.0]))
  assert found == pytest.approx(
    {
      "logprob_drift": math.log(2) / 2,
      "drift_ratio": 4.5 / 4,
      "drift_kl_k1": 0.0,
      "drift_kl_k3": 0.5 / 4,
    }
  )
  assert all(map(math.isfinite, drift.statistics([5e3, -5e3]).values()))


def test_both_estimates_of_kl_agree_with_the_sum():
  actor, learner = np.array([0.5, 0.3, 0.2]), np.array([0.3, 0.3, 0.4])
  kl = (actor * np.log(actor / learner)).sum()
  steps = np.random.default_rng(0).choice(3, size=200_000, p=actor)
  found = drift.statistics(np.log(learner / actor)[steps])
  # Standard deviations 0.0011 and 0.0006.
  assert found["drift_kl_k1"] == pytest.approx(kl, abs=5 * 0.0011)
  assert found["drift_kl_k3"] == pytest.approx(kl, abs=5 * 0.0006)
  assert found["drift_ratio"] == pytest.approx(1, abs=0.01)


def test_devices_need_not_divide_the_learners_batch():
  """Actors measure drift too, and have devices of their own."""
  config = ExperimentConfig(
    text=TextConfig(max_prompt_tokens=8, max_step_tokens=4, max_steps=3),
    model=ModelConfig(
      num_layers=1,
      model_dim=8,
      num_heads=2,
      num_kv_heads=1,
      head_dim=4,
      ffn_dim=8,
    ),
    learner=LearnerConfig(batch_size=5),
  )
  graphdef, params = init_model(config.model, 600, seed=0)
  trees = [_tree(i) for i in range(9)]
  one, eight = (
    drift.DriftMeter(
      graphdef, config, make_mesh(MeshConfig(), jax.devices()[:num_devices])
    ).measure(jax.device_get(params), trees, np.random.default_rng(0))
    for num_devices in (1, 8)
  )
  assert one == pytest.approx(eight, rel=1e-4)


@hypothesis.given(st.lists(st.floats(-100, 40), min_size=1))
def test_k3_is_never_negative(log_ratio):
  assert drift.statistics(np.array(log_ratio))["drift_kl_k3"] > -1e-15
