import numpy as np
import pytest

from qstar_jax.labels.consensus import consensus


def _labels(*values):
  return np.array(values, np.float32)


def test_where_two_agree(make_line):
  one = make_line(
    *(0, 6),
    label=_labels(0.5, 0.25, 0.0, -1, 0.75, -1),
    tokens=3,
    params_version=-1,
    source="checked",
  )
  other = make_line(*(0, 6), label=_labels(0.75, 0.0, 0.5, 1, -1, -1), tokens=4)
  both = consensus(one, other, tolerance=0.25)
  assert both.label.dtype == np.float32
  assert both.label.tolist() == [0.625, 0.125, -1, -1, -1, -1]
  assert (both.source, both.kind) == ("consensus", "soft")
  assert (both.tokens, both.params_version) == (7, 7)
  assert both.steps == one.steps
  np.testing.assert_array_equal(
    consensus(other, one, tolerance=0.25).label, both.label
  )


def test_no_label_is_no_zero(make_line):
  """However much may lie between two labels."""
  one = make_line(0, label=_labels(0, -1, 0))
  other = make_line(0, label=_labels(-1, -1, 1))
  assert consensus(one, other, tolerance=1).label.tolist() == [-1, -1, 0.5]


def test_of_hard_labels_it_is_hard(make_line):
  one = make_line(0, kind="hard", label=_labels(1, 0, 1))
  other = make_line(0, kind="hard", label=_labels(1, 1, -1))
  both = consensus(one, other, tolerance=0.5)
  assert both.kind == "hard"
  assert both.label.tolist() == [1, -1, -1]


@pytest.mark.parametrize(
  "changes",
  [{"steps": ("a", "b", "c")}, {"prompt": "1 -> 1\n"}, {"is_finished": True}],
)
def test_other_texts_are_refused(make_line, changes):
  with pytest.raises(ValueError, match="a consensus is of one text"):
    consensus(make_line(0), make_line(0, **changes), tolerance=0.5)
