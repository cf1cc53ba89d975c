import numpy as np
import pytest

from qstar_jax.labels.codec import LINES
from qstar_jax.labels.consensus import Agreement, consensus
from qstar_jax.store.reader import StoreReader
from qstar_jax.store.writer import StoreWriter


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


def _stored(folder, lines):
  with StoreWriter(folder, LINES, shard_records=2) as writer:
    writer.extend(lines)
  return StoreReader(folder, LINES)


def test_datasets_agree_line_by_line(make_line, tmp_path):
  """Lines of one text and one origin meet, in the order of the first."""

  def line(origin, *values, **changes):
    return make_line(0, label=_labels(*values), origin=origin, **changes)

  ones = [line("a", 1, 0, -1), line("b", 0, 1, 1), line("c", 1, 1, 1)]
  ones += [line("d", 1, 1, 1), line("e", 0, 0, 0)]
  others = [line("e", 0.25, 1, -1), line("x", 1, 1, 1), line("c", 0, 0, 0)]
  others += [line("a", 1, 1, 1), line("d", 1, 1, 1, is_finished=True)]
  agreement = Agreement(
    _stored(tmp_path / "ones", ones), _stored(tmp_path / "others", others), 0.25
  )
  found = [list(agreement(index)) for index in range(len(ones))]
  assert [len(lines) for lines in found] == [1, 0, 0, 0, 1]
  assert found[0][0].label.tolist() == [1, -1, -1]
  assert found[4][0].label.tolist() == [0.125, -1, -1]
  assert found[4][0].origin == "e"
