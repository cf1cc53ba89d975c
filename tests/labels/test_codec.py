import dataclasses

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from qstar_jax.labels import codec
from qstar_jax.records import LabelledLine
from qstar_jax.store import manifest as manifest_lib
from qstar_jax.store.reader import CorruptRecordError, StoreReader
from qstar_jax.store.writer import StoreWriter

_TEXT = st.text(st.characters(exclude_characters="\n", codec="utf-8"))
_FRACTION = st.floats(0, 1, width=32)


@st.composite
def _lines(draw):
  steps = tuple(draw(st.lists(_TEXT, min_size=1, max_size=6)))
  kind = draw(st.sampled_from(["hard", "soft"]))
  value = st.sampled_from([0, 1]) if kind == "hard" else _FRACTION
  labels = st.lists(
    st.just(-1) | value, min_size=len(steps), max_size=len(steps)
  )
  return LabelledLine(
    domain=draw(_TEXT),
    problem_key=draw(_TEXT),
    prompt=draw(_TEXT) + "\n",
    steps=steps,
    is_finished=draw(st.booleans()),
    label=np.array(draw(labels), np.float32),
    kind=kind,
    source=draw(_TEXT),
    params_version=draw(st.integers(-1, 2**63 - 1)),
    tokens=draw(st.integers(0, 2**63 - 1)),
    origin=draw(_TEXT),
  )


@hypothesis.given(_lines())
@hypothesis.settings(max_examples=100)
def test_every_line_comes_back_bit_for_bit(same_line, line):
  assert same_line(codec.decode(codec.encode(line)), line)


@hypothesis.given(st.data(), _lines())
@hypothesis.settings(max_examples=100)
def test_changed_bytes_are_refused_or_a_line(data, line):
  """Garbage raises nothing else, and what is read keeps every rule."""
  example = bytearray(codec.encode(line))
  for _ in range(data.draw(st.integers(1, 3))):
    at = data.draw(st.integers(0, len(example) - 1))
    example[at] = data.draw(st.integers(0, 255))
  try:
    codec.check(codec.decode(bytes(example)))
  except ValueError as error:
    assert str(error)


def test_schema():
  """A change here makes stored lines unreadable: raise SCHEMA_VERSION."""
  stored = {
    name: (info.shape, np.dtype(info.np_dtype).name)
    for name, info in codec.features().get_tensor_info().items()
  }
  scalar, vector = (), (None,)
  assert codec.SCHEMA_VERSION == 1
  assert stored == {
    "domain": (scalar, "object"),
    "problem_key": (scalar, "object"),
    "prompt": (scalar, "object"),
    "steps": (vector, "object"),
    "is_finished": (scalar, "bool"),
    "label": (vector, "float32"),
    "kind": (scalar, "object"),
    "source": (scalar, "object"),
    "params_version": (scalar, "int64"),
    "tokens": (scalar, "int64"),
    "origin": (scalar, "object"),
  }
  assert set(stored) == {f.name for f in dataclasses.fields(LabelledLine)}


def _labels(*values):
  return np.array(values, np.float32)


_WRONG = [
  ({"label": _labels(0.5, 1.5, 0)}, "1.5 is no soft label"),
  ({"label": _labels(0.5, -0.5, 0)}, "-0.5 is no soft label"),
  ({"label": _labels(0.5, np.nan, 0)}, "nan is no soft label"),
  ({"kind": "hard", "label": _labels(1, 0.5, -1)}, "0.5 is no hard label"),
  ({"label": _labels(1, 0)}, "2 labels for 3 steps"),
  ({"steps": (), "label": _labels()}, "it has no steps"),
  ({"steps": ("a", "b\nc", "d")}, r"step 'b\\nc' has a newline"),
  ({"prompt": "1 2 -> 3"}, "does not end in its one newline"),
  ({"prompt": "1\n2\n"}, "does not end in its one newline"),
  ({"kind": "firm"}, "'firm', neither hard nor soft"),
  ({"tokens": -1}, "tokens is -1"),
  ({"params_version": -2}, "params_version -2"),
]


@pytest.mark.parametrize(("changes", "what"), _WRONG)
def test_lines_that_break_a_rule_are_neither_written_nor_read(
  tmp_path, make_line, monkeypatch, changes, what
):
  """The second record of a store is wrong: it is named, and counted."""
  wrong = make_line(1, **changes)
  with pytest.raises(ValueError, match=what):
    codec.encode(wrong)
  with (
    StoreWriter(tmp_path, codec.LINES, shard_records=4) as writer,
    monkeypatch.context() as patch,
  ):
    patch.setattr(codec, "check", lambda line: None)
    writer.extend([make_line(0), wrong, make_line(2)])
  (shard,) = manifest_lib.read(writer.folder, codec.LINES).shards
  with pytest.raises(CorruptRecordError, match=what) as caught:
    list(StoreReader(tmp_path, codec.LINES))
  assert f"{writer.folder / shard.file}, record 1 is" in str(caught.value)
  reader = StoreReader(tmp_path, codec.LINES, skip_damaged=True)
  assert [line.origin for line in reader] == ["item 0", "item 2"]
  assert reader.num_damaged == 1


@pytest.mark.parametrize(
  ("changes", "what"),
  [
    ({"tokens": np.int64(3)}, "tokens is .* must be int"),
    ({"is_finished": 1}, "is_finished is 1; it must be bool"),
    ({"origin": None}, "origin is None; it must be str"),
    ({"label": np.zeros(3)}, "label is float64"),
    ({"label": np.zeros((3, 1), np.float32)}, "one dimension"),
  ],
)
def test_other_types_are_refused(make_line, changes, what):
  with pytest.raises(ValueError, match=what):
    codec.encode(make_line(0, **changes))
