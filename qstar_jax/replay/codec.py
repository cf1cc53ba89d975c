"""TreeRecord to tf.Example bytes and back, and what TFDS must know to read it.

TensorFlow Datasets serialises flat features without TensorFlow, ragged ones
not. So every array is stored as a 1-D sequence, [n, A] arrays row by row, and
`num_candidates` (A) gives their row width. Doubles, which tf.Example lacks, are
stored as their 8 bytes.
"""

import functools
import json

import numpy as np
import tensorflow_datasets as tfds

from qstar_jax.records import TreeRecord

# Changes whenever the fields below or their meaning do.
SCHEMA_VERSION = 1
DATASET = "qstar_trees"
SPLIT = "train"
SHARD_PREFIX = f"{DATASET}-{SPLIT}.array_record-"

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
  example = {}
  for names, kind in ((TEXTS, str), (INTEGERS, int), (DOUBLES, float)):
    for name in names:
      example[name] = getattr(record, name)
      if not isinstance(example[name], kind):
        raise ValueError(
          f"TreeRecord.{name} is {example[name]!r}; it must be {kind.__name__}."
        )
  for name, dtype in VECTORS.items():
    example[name] = _checked(record, name, dtype, (None,))
  for name, dtype in MATRICES.items():
    example[name] = _checked(record, name, dtype, matrix_shape).reshape(-1)
  example[ROW_WIDTH] = record.length.shape[-1]
  return features().serialize_example(example)


def decode(example: bytes) -> TreeRecord:
  """The record whose `encode` gave `example`, equal bit for bit."""
  fields = features().deserialize_example_np(example)
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


def shard_file(index: int) -> str:
  """Name of the shard `index`, as the TFDS file template below spells it."""
  return f"{SHARD_PREFIX}{index:05d}"


def tfds_files(shard_lengths: list[int], num_bytes: int) -> dict[str, str]:
  """The JSON files that make a folder of shards a TFDS dataset, by name.

  Args:
    shard_lengths: trees in each shard, in order.
    num_bytes: size of all shards together.
  """
  identity = tfds.core.DatasetIdentity(
    name=DATASET,
    version=tfds.core.Version(f"{SCHEMA_VERSION}.0.0"),
    data_dir="",
    module_name="",
  )
  info = tfds.core.DatasetInfo(
    builder=identity,
    description=_DESCRIPTION,
    features=features(),
    disable_shuffling=True,
  )
  info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
  split = tfds.core.SplitInfo(
    name=SPLIT,
    shard_lengths=shard_lengths,
    num_bytes=num_bytes,
    # Shards keep coming, so their names cannot hold the number of shards.
    filename_template=tfds.core.ShardedFileTemplate(
      data_dir="",
      template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
      dataset_name=DATASET,
    ),
  )
  info.set_splits(tfds.core.SplitDict([split]))
  return {
    "features.json": json.dumps(features().to_json(), indent=1, sort_keys=True),
    "dataset_info.json": info.as_json,
  }
