"""Rows of the warm start, and batches of rows."""

import numpy as np
import pytest

from qstar_jax.errors import UserError
from qstar_jax.learner.lines import Play, batch_lines, plays_to_lines

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
    assert values.shape[0] == 4
    assert values.dtype == getattr(lines, name).dtype
    assert not values[2:].any()


def test_batch_too_small():
  lines = plays_to_lines([RIGHT, WRONG], 8)
  with pytest.raises(ValueError, match="2 rows do not fit a batch of 1"):
    batch_lines(lines, np.array([0, 1]), 1)
