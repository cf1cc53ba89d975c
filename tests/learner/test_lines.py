"""Rows of the warm start, and batches of rows."""

import dataclasses

import numpy as np
import pytest

from qstar_jax.errors import UserError
from qstar_jax.learner.lines import (
  Play,
  batch_lines,
  join,
  plays_to_lines,
  thin_light_lines,
)
from qstar_jax.records import TrainBatch

RIGHT = Play([90, 91], [[11, 12], [13], [14, 15]])
WRONG = Play([92], [[21], [22, 23], [24]], bad_step=1)


def test_warm_start_by_hand():
  batch = plays_to_lines([RIGHT, WRONG], 8)
  expected = {
    "tokens": [[90, 91, 11, 12, 13, 14, 15, 0], [92, 21, 22, 23, 0, 0, 0, 0]],
    "length": [7, 4],
    "policy_weight": [[0, 0, 1, 1, 1, 1, 1, 0], [0, 1, 0, 0, 0, 0, 0, 0]],
    "value_target": [[0, 0, 0, 1, 1, 0, 1, 0], [0, 1, 0, 0, 0, 0, 0, 0]],
    "value_weight": [[0, 0, 0, 1, 1, 0, 1, 0], [0, 1, 0, 1, 0, 0, 0, 0]],
    "prm_target": [[0, 0, 0, 1, 1, 0, 1, 0], [0, 1, 0, 0, 0, 0, 0, 0]],
    "prm_weight": [[0, 0, 0, 1, 1, 0, 1, 0], [0, 1, 0, 1, 0, 0, 0, 0]],
  }
  for name, values in expected.items():
    np.testing.assert_array_equal(getattr(batch, name), values, err_msg=name)


def test_first_step_may_be_the_bad_one():
  batch = plays_to_lines([Play([90], [[11], [12]], bad_step=0)], 3)
  np.testing.assert_array_equal(batch.tokens, [[90, 11, 0]])
  assert not batch.policy_weight.any()
  np.testing.assert_array_equal(batch.value_weight, [[0, 1, 0]])
  assert not batch.value_target.any()


def test_aimless_steps_have_no_targets():
  steps = [[11, 12], [13], [14, 15]]
  batch = plays_to_lines([Play([90], steps, bad_step=2, is_aimless=True)], 7)
  np.testing.assert_array_equal(batch.tokens, [[90, 11, 12, 13, 14, 15, 0]])
  assert not batch.policy_weight.any()
  for name in "value", "prm":
    assert not getattr(batch, f"{name}_target").any()
    np.testing.assert_array_equal(
      getattr(batch, f"{name}_weight"), [[0, 0, 0, 0, 0, 1, 0]]
    )


def test_beside_a_player_only_the_last_step_says_what_v_is():
  first, later = (
    plays_to_lines([RIGHT, WRONG], 8, has_player=has_player)
    for has_player in (False, True)
  )
  np.testing.assert_array_equal(
    later.value_weight, [[0, 0, 0, 0, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0, 0, 0]]
  )
  for name, values in vars(first).items():
    if name != "value_weight":
      np.testing.assert_array_equal(getattr(later, name), values, err_msg=name)


def test_no_plays_are_no_rows():
  assert plays_to_lines([], 8).tokens.shape == (0, 8)


def test_line_too_long():
  with pytest.raises(UserError, match=r"7 tokens does not fit .* of 6"):
    plays_to_lines([RIGHT], 6)


def test_batch_is_filled_with_empty_rows():
  lines = plays_to_lines([RIGHT, WRONG, RIGHT], 8)
  batch = batch_lines(lines, np.array([2, 1]), 4)
  np.testing.assert_array_equal(batch.tokens[:2], lines.tokens[[2, 1]])
  np.testing.assert_array_equal(batch.length, [7, 4, 0, 0])
  for name, values in vars(batch).items():
    if values is not None:
      assert values.shape[0] == 4
      assert values.dtype == getattr(lines, name).dtype
      assert not values[2:].any()


def test_batch_too_small():
  lines = plays_to_lines([RIGHT, WRONG], 8)
  with pytest.raises(ValueError, match="2 rows do not fit a batch of 1"):
    batch_lines(lines, np.array([0, 1]), 1)


def test_joined_rows_weigh_nothing_where_a_part_knows_nothing():
  first, second = plays_to_lines([RIGHT], 8), plays_to_lines([WRONG], 8)
  second = dataclasses.replace(second, reward=np.ones((1, 8), np.float32))
  both = join([first, second])
  whole = plays_to_lines([RIGHT, WRONG], 8)
  np.testing.assert_array_equal(both.reward, [[0] * 8, [1] * 8])
  assert both.reward.dtype == np.float32
  for field in dataclasses.fields(TrainBatch):
    if field.name != "reward":
      np.testing.assert_array_equal(
        getattr(both, field.name), getattr(whole, field.name)
      )


def test_thinning_keeps_every_loss_in_expectation():
  rng = np.random.default_rng(0)
  num_rows = 4000
  shape = (num_rows, 3)
  policy = np.where(rng.random((num_rows, 1)) < 0.3, 0.8, 0.02)
  batch = TrainBatch(
    tokens=rng.integers(1, 9, shape).astype(np.int32),
    length=np.full(num_rows, 3, np.int32),
    policy_weight=np.broadcast_to(policy, shape).astype(np.float32),
    value_target=rng.random(shape).astype(np.float32),
    value_weight=rng.random(shape).astype(np.float32),
    prm_target=rng.random(shape).astype(np.float32),
    prm_weight=rng.random(shape).astype(np.float32),
    action_weight=rng.random(shape).astype(np.float32),
    rival_weight=rng.random(num_rows).astype(np.float32),
  )
  thin = thin_light_lines(batch, 0.25, rng)
  num_heavy = (policy > 0.1).sum()
  num_light = num_rows - num_heavy
  expected_rows = num_heavy + 0.25 * num_light
  assert abs(len(thin.tokens) - expected_rows) < 4 * np.sqrt(num_light * 0.19)
  names = [name for name in vars(batch) if name.endswith("_weight")]
  assert len(names) == 5
  for name in names:
    total, kept = getattr(batch, name).sum(), getattr(thin, name).sum()
    assert kept == pytest.approx(total, rel=0.05), name
  # Heavy lines are untouched, light ones weigh four times as much.
  heavy = thin.policy_weight[:, 0] == np.float32(0.8)
  assert heavy.sum() == num_heavy
  np.testing.assert_allclose(thin.policy_weight[~heavy], 0.08, rtol=1e-6)


def test_thinning_with_share_one_changes_nothing():
  batch = plays_to_lines([Play([1, 2], [[3], [4]], 1)], 6)
  thin = thin_light_lines(batch, 1.0, np.random.default_rng(0))
  for field in dataclasses.fields(TrainBatch):
    np.testing.assert_array_equal(
      getattr(thin, field.name), getattr(batch, field.name)
    )
