"""Labels that two sources agree on."""

import dataclasses

import numpy as np

from qstar_jax.records import LabelledLine


def consensus(
  line: LabelledLine, other: LabelledLine, tolerance: float
) -> LabelledLine:
  """What two sources say of one line together.

  A step keeps a label where both have one and they lie within the tolerance;
  it is their mean. Elsewhere it has none, and the line may be left with none.

  Args:
    line: labelled by one source.
    other: the same text, labelled by the other.
    tolerance: largest difference, in [0, 1]. Hard labels differ by 0 or 1: let
      it be less than 1 for them.

  Returns:
    The line with the labels of both: hard if both are, as new as the newer
    network, and as dear as both together.

  Raises:
    ValueError: the texts differ.
  """
  for name in ("domain", "problem_key", "prompt", "steps", "is_finished"):
    if getattr(line, name) != getattr(other, name):
      raise ValueError(
        f"{name} is {getattr(line, name)!r} in one line and "
        f"{getattr(other, name)!r} in the other: a consensus is of one text"
      )
  labels = np.stack([line.label, other.label])
  agree = (labels >= 0).all(axis=0) & (np.ptp(labels, axis=0) <= tolerance)
  is_hard = line.kind == other.kind == "hard"
  return dataclasses.replace(
    line,
    label=np.where(agree, labels.mean(axis=0), np.float32(-1)),
    kind="hard" if is_hard else "soft",
    source="consensus",
    params_version=max(line.params_version, other.params_version),
    tokens=line.tokens + other.tokens,
  )
