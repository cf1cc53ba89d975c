"""Rows of the warm start."""

import numpy as np
import pytest

from qstar_jax.errors import UserError
from qstar_jax.learner.plays import Play, plays_to_rows

RIGHT = Play([90, 91], [[11, 12], [13], [14, 15]])
WRONG = Play([92], [[21], [22, 23], [24]], bad_step=1)


def test_warm_start_by_hand():
  batch = plays_to_rows([RIGHT, WRONG], 8)
  expected = {
    "tokens": [[90, 91, 11, 12, 13, 14, 15, 0], [92, 21, 22, 23, 0, 0, 0, 0]],
    "position": [[0, 1, 2, 3, 4, 5, 6, 0], [0, 1, 2, 3, 0, 0, 0, 0]],
    "previous": [[0, 0, 1, 2, 3, 4, 5, 0], [0, 0, 1, 2, 0, 0, 0, 0]],
    "last": [[6, 6, 6, 6, 6, 6, 6, 0], [3, 3, 3, 3, 0, 0, 0, 0]],
    "policy_weight": [[0, 0, 1, 1, 1, 1, 1, 0], [0, 1, 0, 0, 0, 0, 0, 0]],
    "value_target": [[0, 0, 0, 1, 1, 0, 1, 0], [0, 1, 0, 0, 0, 0, 0, 0]],
    "value_weight": [[0, 0, 0, 1, 1, 0, 1, 0], [0, 1, 0, 1, 0, 0, 0, 0]],
    "prm_target": [[0, 0, 0, 1, 1, 0, 1, 0], [0, 1, 0, 0, 0, 0, 0, 0]],
    "prm_weight": [[0, 0, 0, 1, 1, 0, 1, 0], [0, 1, 0, 1, 0, 0, 0, 0]],
  }
  for name, values in expected.items():
    np.testing.assert_array_equal(getattr(batch, name), values, err_msg=name)


def test_first_step_may_be_the_bad_one():
  batch = plays_to_rows([Play([90], [[11], [12]], bad_step=0)], 3)
  np.testing.assert_array_equal(batch.tokens, [[90, 11, 0]])
  assert not batch.policy_weight.any()
  np.testing.assert_array_equal(batch.value_weight, [[0, 1, 0]])
  assert not batch.value_target.any()


def test_aimless_steps_are_legal_and_nothing_else_is_known_of_them():
  steps = [[11, 12], [13], [14, 15]]
  batch = plays_to_rows([Play([90], steps, bad_step=2, is_aimless=True)], 7)
  np.testing.assert_array_equal(batch.tokens, [[90, 11, 12, 13, 14, 15, 0]])
  np.testing.assert_array_equal(batch.policy_weight, [[0, 1, 1, 1, 1, 1, 0]])
  for name in "value", "prm":
    assert not getattr(batch, f"{name}_target").any()
    np.testing.assert_array_equal(
      getattr(batch, f"{name}_weight"), [[0, 0, 0, 0, 0, 1, 0]]
    )


def test_beside_a_player_only_the_last_step_says_what_v_is():
  first, later = (
    plays_to_rows([RIGHT, WRONG], 8, has_player=has_player)
    for has_player in (False, True)
  )
  np.testing.assert_array_equal(
    later.value_weight, [[0, 0, 0, 0, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0, 0, 0]]
  )
  for name, values in vars(first).items():
    if name != "value_weight":
      np.testing.assert_array_equal(getattr(later, name), values, err_msg=name)


def test_no_plays_are_no_rows():
  assert plays_to_rows([], 8).tokens.shape == (0, 8)


def test_line_too_long():
  with pytest.raises(UserError, match=r"7 tokens does not fit .* 6;"):
    plays_to_rows([RIGHT], 6)


def test_lines_stand_beside_each_other_in_a_row():
  batch = plays_to_rows([WRONG, RIGHT, WRONG], 8, lines_per_row=2)
  expected = {
    "tokens": [92, 21, 22, 23, 0, 0, 0, 0, 90, 91, 11, 12, 13, 14, 15, 0],
    "position": [0, 1, 2, 3, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 0],
    "previous": [0, 0, 1, 2, 0, 0, 0, 0, 0, 8, 9, 10, 11, 12, 13, 0],
    "last": [3, 3, 3, 3, 0, 0, 0, 0, *[14] * 7, 0],
    "policy_weight": [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 0],
  }
  alone = plays_to_rows([WRONG], 8)
  for name, values in expected.items():
    found = getattr(batch, name)
    np.testing.assert_array_equal(found[0], values, err_msg=name)
    np.testing.assert_array_equal(found[1, :8], getattr(alone, name)[0])
    assert not found[1, 8:].any()
