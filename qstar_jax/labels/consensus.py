"""Labels that two sources agree on."""

import dataclasses
import hashlib
from collections.abc import Iterator

import numpy as np

from qstar_jax.records import NO_LABEL, LabelledLine
from qstar_jax.store.reader import StoreReader

_TEXT = ("domain", "problem_key", "prompt", "steps", "is_finished")


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
  for name in _TEXT:
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
    label=np.where(agree, labels.mean(axis=0), np.float32(NO_LABEL)),
    kind="hard" if is_hard else "soft",
    source="consensus",
    params_version=max(line.params_version, other.params_version),
    tokens=line.tokens + other.tokens,
  )


class Agreement:
  """The lines that two datasets share, with the labels of both.

  Datasets of the same lines, as two sources that ask a network make of the same
  trees or samples. Memory is 16 bytes for each of the other's lines.
  """

  def __init__(
    self,
    lines: StoreReader[LabelledLine],
    others: StoreReader[LabelledLine],
    tolerance: float,
  ):
    """Reads the other dataset once.

    Args:
      lines: one dataset.
      others: the other.
      tolerance: see `consensus`.
    """
    self._lines, self._others = lines, others
    self._tolerance = tolerance
    keys = np.fromiter(map(_key, others), np.uint64, len(others))
    self._row = np.argsort(keys, kind="stable")
    self._keys = keys[self._row]

  def __call__(self, index: int) -> Iterator[LabelledLine]:
    """The line at an index, if both have it and agree on one of its steps."""
    line = self._lines[index]
    key = _key(line)
    place = int(np.searchsorted(self._keys, key))
    if place == len(self._keys) or self._keys[place] != key:
      return
    other = self._others[int(self._row[place])]
    both = consensus(line, other, self._tolerance)
    if (both.label != NO_LABEL).any():
      yield both


def _key(line: LabelledLine) -> np.uint64:
  """Of the line's text and where it comes from."""
  told = repr([getattr(line, name) for name in (*_TEXT, "origin")])
  digest = hashlib.sha256(told.encode()).digest()
  return np.frombuffer(digest[:8], np.uint64)[0]
