"""Rows of labelled lines, position by position."""

import numpy as np

from qstar_jax.learner.labelled import LabelledTokens, labelled_to_rows


def test_every_position():
  batch = labelled_to_rows(
    [
      LabelledTokens([5, 6], [[7, 8], [9], [10, 11]], [1.0, -1.0, 0.25]),
      LabelledTokens([12], [[13, 14]], [0.0]),
    ],
    max_line_tokens=8,
  )
  expected = {
    "tokens": [[5, 6, 7, 8, 9, 10, 11, 0], [12, 13, 14, 0, 0, 0, 0, 0]],
    "policy_weight": [[0, 0, 1, 1, 0, 0.25, 0.25, 0], [0] * 8],
    "prm_target": [[0, 0, 0, 1, 0, 0, 0.25, 0], [0] * 8],
    "prm_weight": [[0, 0, 0, 1, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0, 0, 0]],
    "value_weight": np.zeros((2, 8)),
  }
  for name, value in expected.items():
    np.testing.assert_array_equal(getattr(batch, name), value, err_msg=name)
