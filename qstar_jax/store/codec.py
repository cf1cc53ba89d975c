"""What a store must know of its records, and what TFDS must know of a store."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

Record = TypeVar("Record")

SPLIT = "train"


@dataclasses.dataclass(frozen=True)
class Codec(Generic[Record]):
  """One kind of record, to tf.Example bytes and back.

  Attributes:
    dataset: name of the TFDS dataset that a folder of them is.
    schema_version: changes whenever the stored fields or their meaning do.
    description: what TFDS says of the dataset.
    records: what they are called, in the plural.
    stream: what has a folder of its own, e.g. `actor`.
    features: the stored fields, as TFDS features.
    encode: a record's bytes; ValueError if a field is not as it must be.
    decode: the record whose `encode` gave these bytes, equal bit for bit;
      ValueError, which says what is wrong, if there is none.
    params_version: learner step that a record comes from.
  """

  dataset: str
  schema_version: int
  description: str
  records: str
  stream: str
  features: Callable[[], tfds.features.FeaturesDict]
  encode: Callable[[Record], bytes]
  decode: Callable[[bytes], Record]
  params_version: Callable[[Record], int]

  @property
  def shard_prefix(self) -> str:
    """How the names of shards begin."""
    return f"{self.dataset}-{SPLIT}.array_record-"

  def shard_file(self, index: int) -> str:
    """Name of the shard `index`, as the TFDS file template below spells it."""
    return f"{self.shard_prefix}{index:05d}"

  def tfds_files(
    self, shard_lengths: list[int], num_bytes: int
  ) -> dict[str, str]:
    """The JSON files that make a folder of shards a TFDS dataset, by name.

    Args:
      shard_lengths: records in each shard, in order.
      num_bytes: size of all shards together.
    """
    features = self.features()
    identity = tfds.core.DatasetIdentity(
      name=self.dataset,
      version=tfds.core.Version(f"{self.schema_version}.0.0"),
      data_dir="",
      module_name="",
    )
    info = tfds.core.DatasetInfo(
      builder=identity,
      description=self.description,
      features=features,
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
        dataset_name=self.dataset,
      ),
    )
    info.set_splits(tfds.core.SplitDict([split]))
    return {
      "features.json": json.dumps(features.to_json(), indent=1, sort_keys=True),
      "dataset_info.json": info.as_json,
    }


def check_types(record: Any, types: Mapping[str, type]) -> dict[str, Any]:
  """The named fields of a record.

  Raises:
    ValueError: one is not of its type.
  """
  values = {}
  for name, kind in types.items():
    values[name] = getattr(record, name)
    if not isinstance(values[name], kind):
      raise ValueError(
        f"{type(record).__name__}.{name} is {values[name]!r}; it must be "
        f"{kind.__name__}."
      )
  return values


def write_example(
  features: tfds.features.FeaturesDict, fields: Mapping[str, Any]
) -> bytes:
  """The fields as a serialised tf.Example, the same bytes in every process."""
  example = tf_example_pb2.Example.FromString(
    features.serialize_example(fields)
  )
  # The fields are a map, whose order otherwise changes with the process.
  return example.SerializeToString(deterministic=True)


def read_example(
  features: tfds.features.FeaturesDict, example: bytes
) -> dict[str, Any]:
  """The fields of a serialised tf.Example.

  Raises:
    ValueError: the bytes are none, or a field is missing or misshapen.
  """
  try:
    fields = features.deserialize_example_np(example)
  except DecodeError as error:
    raise ValueError("it is no tf.Example") from error
  missing = [name for name, value in fields.items() if value is None]
  if missing:
    raise ValueError(f"it has no {', '.join(missing)}")
  return fields
