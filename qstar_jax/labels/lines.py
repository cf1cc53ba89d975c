"""What is to be labelled, and the record that comes of it."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from qstar_jax.records import NO_LABEL, LabelledLine, Problem

# Keeps the seeds of labels apart from those of self-play.
_STREAM = int.from_bytes(b"labels", "big")


class Line(NamedTuple):
  """A line whose steps are to be labelled.

  Attributes:
    index: its number among all that are to be labelled, >= 0. With a seed it
      determines every random number, whatever the lines beside it are.
    problem: the problem.
    steps: texts without delimiter.
    is_finished: the last step finishes the line.
    origin: see `LabelledLine`.
    begin: index of the first step that is to have a label; those before it have
      theirs in another line. Binary search heeds no such thing.
  """

  index: int
  problem: Problem
  steps: tuple[str, ...]
  is_finished: bool
  origin: str = ""
  begin: int = 0


# The problem, the steps up to one, and whether that ends the line.
StepName = tuple[str, tuple[str, ...], bool]


def step_names(line: Line | LabelledLine) -> list[StepName]:
  """Names of a line's steps: equal where lines share them."""
  key = line.problem.key if isinstance(line, Line) else line.problem_key
  last = len(line.steps)
  return [
    (key, line.steps[:end], line.is_finished and end == last)
    for end in range(1, last + 1)
  ]


def labels_on(
  lines: Iterable[Line], labels: Iterable[LabelledLine]
) -> Iterator[LabelledLine]:
  """Labelled lines with the labels of steps of `lines` alone, if any."""
  names = {name for line in lines for name in step_names(line)}
  for line in labels:
    is_on = [name in names for name in step_names(line)]
    label = np.where(is_on, line.label, np.float32(NO_LABEL))
    if (label != NO_LABEL).any():
      yield dataclasses.replace(line, label=label)


def play_seed(seed: int, line: Line, number: int) -> int:
  """Seed of the play of this number, >= 0, among those that label a line."""
  entropy = np.random.SeedSequence([seed, _STREAM, line.index, number])
  return int(entropy.generate_state(1)[0])


def labelled(
  line: Line,
  label: Sequence[float],
  *,
  kind: str,
  source: str,
  params_version: int,
  tokens: int,
) -> LabelledLine:
  """The record of a line and its labels; see `LabelledLine`."""
  return LabelledLine(
    domain=line.problem.domain,
    problem_key=line.problem.key,
    prompt=line.problem.prompt,
    steps=line.steps,
    is_finished=line.is_finished,
    label=np.array(label, np.float32),
    kind=kind,
    source=source,
    params_version=params_version,
    tokens=tokens,
    origin=line.origin,
  )
