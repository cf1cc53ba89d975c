import dataclasses

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis.extra import numpy as hnp

from qstar_jax.records import TreeRecord
from qstar_jax.replay import codec

_INT64 = st.integers(-(2**63), 2**63 - 1)


def _arrays(dtype, shape):
  # tf.Example makes every float32 NaN the same NaN; records have none.
  return hnp.arrays(
    dtype, shape, elements=hnp.from_dtype(np.dtype(dtype), allow_nan=False)
  )


@st.composite
def _records(draw):
  num_nodes = draw(st.integers(1, 5))
  num_candidates = draw(st.integers(1, 5))
  vectors = {
    name: draw(
      _arrays(
        dtype,
        num_nodes if name.startswith("node_") else draw(st.integers(0, 9)),
      )
    )
    for name, dtype in codec.VECTORS.items()
  }
  matrices = {
    name: draw(_arrays(dtype, (num_nodes, num_candidates)))
    for name, dtype in codec.MATRICES.items()
  }
  return TreeRecord(
    **{name: draw(st.text(max_size=20)) for name in codec.TEXTS},
    **{name: draw(_INT64) for name in codec.INTEGERS},
    **{name: draw(st.floats()) for name in codec.DOUBLES},
    **vectors,
    **matrices,
  )


@hypothesis.given(_records())
@hypothesis.settings(max_examples=100)
def test_every_record_comes_back_bit_for_bit(same_tree, record):
  assert same_tree(codec.decode(codec.encode(record)), record)


def test_smallest_record(make_tree, same_tree):
  record = dataclasses.replace(
    make_tree(0, num_nodes=1, num_candidates=1),
    prompt="",
    problem_key="3 ∧ 数",
    committed_node=np.zeros(0, np.int32),
    committed_candidate=np.zeros(0, np.int32),
  )
  assert same_tree(codec.decode(codec.encode(record)), record)


def test_every_field_of_the_record_is_stored():
  fields = {field.name for field in dataclasses.fields(TreeRecord)}
  assert set(codec.features()) == fields | {codec.ROW_WIDTH}


def test_schema():
  """A change here makes stored trees unreadable: raise SCHEMA_VERSION."""
  stored = {
    name: (info.shape, np.dtype(info.np_dtype).name)
    for name, info in codec.features().get_tensor_info().items()
  }
  vector, scalar = (None,), ()
  assert codec.SCHEMA_VERSION == 1
  assert stored == {
    "domain": (scalar, "object"),
    "domain_version": (scalar, "int64"),
    "problem_key": (scalar, "object"),
    "prompt": (scalar, "object"),
    "actor_id": (scalar, "int64"),
    "sequence": (scalar, "int64"),
    "params_version": (scalar, "int64"),
    "terminal_value": (scalar, "object"),
    "temperature": (scalar, "float64"),
    "prompt_tokens": (vector, "int32"),
    "node_parent": (vector, "int32"),
    "node_candidate": (vector, "int32"),
    "node_value": (vector, "float32"),
    "tokens": (vector, "int32"),
    "length": (vector, "int32"),
    "count": (vector, "int32"),
    "log_prob": (vector, "float32"),
    "proposal_log_prob": (vector, "float32"),
    "value": (vector, "float32"),
    "prm": (vector, "float32"),
    "ended": (vector, "bool"),
    "visits": (vector, "int32"),
    "q": (vector, "float32"),
    "legal": (vector, "int8"),
    "outcome": (vector, "int8"),
    "score": (vector, "float32"),
    "committed_node": (vector, "int32"),
    "committed_candidate": (vector, "int32"),
    "final_outcome": (scalar, "int64"),
    "final_score": (scalar, "float64"),
    "num_candidates": (scalar, "int64"),
  }


@pytest.mark.parametrize(
  ("name", "array"),
  [
    ("q", np.zeros((3, 4), np.float64)),
    ("q", np.zeros((4, 3), np.float32)),
    ("q", np.zeros(12, np.float32)),
    ("tokens", np.zeros((2, 2), np.int32)),
    ("legal", np.zeros((3, 4), np.int32)),
  ],
)
def test_other_dtypes_and_shapes_are_refused(make_tree, name, array):
  record = dataclasses.replace(make_tree(0), **{name: array})
  with pytest.raises(ValueError, match=rf"TreeRecord\.{name} is .* must be"):
    codec.encode(record)


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("prompt", b"1 2 -> 3\n"),
    ("actor_id", np.int64(0)),
    ("sequence", 0.0),
    ("final_score", 1),
    ("temperature", np.float32(1)),
  ],
)
def test_other_types_are_refused(make_tree, name, value):
  record = dataclasses.replace(make_tree(0), **{name: value})
  with pytest.raises(ValueError, match=rf"TreeRecord\.{name} is .* must be"):
    codec.encode(record)
