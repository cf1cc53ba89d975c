"""LabelledLine to tf.Example bytes and back, as a store needs it. No JAX."""

import functools
import operator

import numpy as np
import tensorflow_datasets as tfds

from qstar_jax.records import LabelledLine
from qstar_jax.store.codec import (
  Codec,
  check_types,
  read_example,
  write_example,
)
from qstar_jax.text.vocabulary import DELIMITER

# Changes whenever the fields below or their meaning do.
SCHEMA_VERSION = 1

TEXTS = ("domain", "problem_key", "prompt", "kind", "source", "origin")
INTEGERS = ("params_version", "tokens")

_SCALARS = (
  dict.fromkeys(TEXTS, str)
  | dict.fromkeys(INTEGERS, int)
  | {"is_finished": bool}
)

_DESCRIPTION = f"""
Lines of reasoning with labelled steps, made by qstar_jax, schema
{SCHEMA_VERSION}. label[i] speaks of steps[i] after the steps before it: the
probability that it is right, 1 or 0 where kind is hard; -1 is no label.
"""


@functools.cache
def features() -> tfds.features.FeaturesDict:
  """The stored fields, as TFDS features."""
  return tfds.features.FeaturesDict(
    dict.fromkeys(TEXTS, tfds.features.Text())
    | dict.fromkeys(INTEGERS, tfds.features.Scalar(np.int64))
    | {
      "is_finished": tfds.features.Scalar(np.bool_),
      "steps": tfds.features.Tensor(shape=(None,), dtype=np.str_),
      "label": tfds.features.Tensor(shape=(None,), dtype=np.float32),
    }
  )


def encode(line: LabelledLine) -> bytes:
  """The line as a serialised tf.Example.

  Raises:
    ValueError: a field is not as `LabelledLine` states.
  """
  example = check_types(line, _SCALARS)
  if line.label.dtype != np.float32 or line.label.ndim != 1:
    raise ValueError(
      f"label is {line.label.dtype} {line.label.shape}; it must be float32 of "
      "one dimension"
    )
  check(line)
  example |= {"steps": list(line.steps), "label": line.label}
  return write_example(features(), example)


def decode(example: bytes) -> LabelledLine:
  """The line whose `encode` gave `example`, equal bit for bit.

  Raises:
    ValueError: the bytes are no such line.
  """
  fields = read_example(features(), example)
  for name in TEXTS:
    fields[name] = fields[name].decode()
  fields["steps"] = tuple(step.decode() for step in fields["steps"])
  line = LabelledLine(**fields)
  check(line)
  return line


def check(line: LabelledLine) -> None:
  """ValueError unless the line's values are as `LabelledLine` states."""
  if line.prompt.find(DELIMITER) != len(line.prompt) - 1 or not line.prompt:
    raise ValueError(f"prompt {line.prompt!r} does not end in its one newline")
  if not line.steps:
    raise ValueError("it has no steps")
  for step in line.steps:
    if DELIMITER in step:
      raise ValueError(f"step {step!r} has a newline")
  if len(line.label) != len(line.steps):
    raise ValueError(f"{len(line.label)} labels for {len(line.steps)} steps")
  if line.kind not in ("hard", "soft"):
    raise ValueError(f"kind is {line.kind!r}, neither hard nor soft")
  for value in line.label.tolist():
    is_hard = value in (-1, 0, 1)
    if not (is_hard or (line.kind == "soft" and 0 <= value <= 1)):
      raise ValueError(f"{value!r} is no {line.kind} label")
  if line.tokens < 0 or line.params_version < -1:
    raise ValueError(
      f"tokens is {line.tokens} and params_version {line.params_version}; the "
      "smallest are 0 and -1"
    )


LINES: Codec[LabelledLine] = Codec(
  dataset="qstar_labels",
  schema_version=SCHEMA_VERSION,
  description=_DESCRIPTION,
  records="labelled lines",
  stream="process",
  features=features,
  encode=encode,
  decode=decode,
  params_version=operator.attrgetter("params_version"),
)
