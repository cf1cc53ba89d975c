"""TreeRecord to tf.Example bytes and back.

TensorFlow Datasets serialises flat features without TensorFlow, ragged ones
not. So every array is stored as a 1-D sequence, [n, A] arrays row by row, and
`num_candidates` (A) gives their row width. Doubles, which tf.Example lacks, are
stored as their 8 bytes.
"""

import functools
import operator

import numpy as np
import tensorflow_datasets as tfds

from qstar_jax.records import TreeRecord
from qstar_jax.store.codec import (
  Codec,
  check_types,
  read_example,
  write_example,
)

# Changes whenever the fields below or their meaning do.
SCHEMA_VERSION = 1

TEXTS = ("domain", "problem_key", "prompt", "terminal_value")
INTEGERS = (
  "domain_version",
  "actor_id",
  "sequence",
  "params_version",
  "final_outcome",
)
DOUBLES = ("temperature", "final_score")
VECTORS = {
  "prompt_tokens": np.int32,
  "node_parent": np.int32,
  "node_candidate": np.int32,
  "node_value": np.float32,
  "tokens": np.int32,
  "committed_node": np.int32,
  "committed_candidate": np.int32,
}
MATRICES = {
  "length": np.int32,
  "count": np.int32,
  "log_prob": np.float32,
  "proposal_log_prob": np.float32,
  "value": np.float32,
  "prm": np.float32,
  "ended": np.bool_,
  "visits": np.int32,
  "q": np.float32,
  "legal": np.int8,
  "outcome": np.int8,
  "score": np.float32,
}
ROW_WIDTH = "num_candidates"

_SCALARS = (
  dict.fromkeys(TEXTS, str)
  | dict.fromkeys(INTEGERS, int)
  | dict.fromkeys(DOUBLES, float)
)

_DESCRIPTION = f"""
Search trees of qstar_jax self-play, schema {SCHEMA_VERSION}; the fields are
those of its TreeRecord. A matrix has one row a node and is stored row by row:
reshape {", ".join(MATRICES)} to
(-1, {ROW_WIDTH}).
"""


@functools.cache
def features() -> tfds.features.FeaturesDict:
  """The stored fields, as TFDS features."""
  arrays = VECTORS | MATRICES
  return tfds.features.FeaturesDict(
    dict.fromkeys(TEXTS, tfds.features.Text())
    | dict.fromkeys((*INTEGERS, ROW_WIDTH), tfds.features.Scalar(np.int64))
    | dict.fromkeys(
      DOUBLES,
      tfds.features.Tensor(shape=(), dtype=np.float64, encoding="bytes"),
    )
    | {
      name: tfds.features.Tensor(shape=(None,), dtype=dtype)
      for name, dtype in arrays.items()
    }
  )


def encode(record: TreeRecord) -> bytes:
  """The record as a serialised tf.Example.

  Raises:
    ValueError: a field has not the type, dtype or shape that `TreeRecord`
      states.
  """
  matrix_shape = record.node_parent.shape + record.length.shape[-1:]
  example = check_types(record, _SCALARS)
  for name, dtype in VECTORS.items():
    example[name] = _checked(record, name, dtype, (None,))
  for name, dtype in MATRICES.items():
    example[name] = _checked(record, name, dtype, matrix_shape).reshape(-1)
  example[ROW_WIDTH] = record.length.shape[-1]
  return write_example(features(), example)


def decode(example: bytes) -> TreeRecord:
  """The record whose `encode` gave `example`, equal bit for bit.

  Raises:
    ValueError: the bytes are no such record.
  """
  fields = read_example(features(), example)
  row_width = fields.pop(ROW_WIDTH)
  for name in TEXTS:
    fields[name] = fields[name].decode()
  for name in DOUBLES:
    fields[name] = fields[name].item()
  num_nodes = fields["node_parent"].size
  for name in MATRICES:
    fields[name] = fields[name].reshape(num_nodes, row_width)
  return TreeRecord(**fields)


def _checked(record, name, dtype, shape) -> np.ndarray:
  array = getattr(record, name)
  fits = len(array.shape) == len(shape) and all(
    wanted in (None, size)
    for wanted, size in zip(shape, array.shape, strict=True)
  )
  if array.dtype != dtype or not fits:
    raise ValueError(
      f"TreeRecord.{name} is {array.dtype} {array.shape}; it must be "
      f"{np.dtype(dtype)} {shape}."
    )
  return array


TREES: Codec[TreeRecord] = Codec(
  dataset="qstar_trees",
  schema_version=SCHEMA_VERSION,
  description=_DESCRIPTION,
  records="trees",
  stream="actor",
  features=features,
  encode=encode,
  decode=decode,
  params_version=operator.attrgetter("params_version"),
)
