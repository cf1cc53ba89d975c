"""Lines of one problem put together, where one goes on from the other."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from qstar_jax.records import LabelledLine

# What lines that share a text must have in common to become one.
_COMMON = (
  "domain",
  "problem_key",
  "prompt",
  "kind",
  "source",
  "params_version",
)


def merge(lines: Iterable[LabelledLine]) -> Iterator[LabelledLine]:
  """The same labels in fewer lines.

  Datasets of rated completions have a line for each, so its steps stand in
  every line that goes on from it. A line is put into a longer one whose first
  steps are its own, unless a step would have two labels: people who rate a step
  twice, differently or not, are to count twice. Every label stands in exactly
  one line before and after.

  Args:
    lines: those of one problem one after another; others apart are not seen
      together. Memory is that of a problem's lines.

  Yields:
    Lines, where the longest of each stood; `origin` is the longest's, `tokens`
    are the sum.
  """
  for _, group in itertools.groupby(
    lines, lambda line: tuple(getattr(line, name) for name in _COMMON)
  ):
    yield from _merge_problem(list(group))


def _merge_problem(lines: list[LabelledLine]) -> Iterator[LabelledLine]:
  label = [line.label.copy() for line in lines]
  tokens = [line.tokens for line in lines]
  # Lines that stay, by every text that they begin with.
  begins: dict[tuple[str, ...], list[int]] = {}
  longest_first = sorted(range(len(lines)), key=lambda i: -len(lines[i].steps))
  stays = []
  for i in longest_first:
    line = lines[i]
    size = len(line.steps)
    into = next(
      (
        host
        for host in begins.get(line.steps, ())
        if _is_part(line, lines[host])
        and not ((line.label >= 0) & (label[host][:size] >= 0)).any()
      ),
      None,
    )
    if into is None:
      stays.append(i)
      for end in range(1, size + 1):
        begins.setdefault(line.steps[:end], []).append(i)
    else:
      label[into][:size] = np.maximum(label[into][:size], line.label)
      tokens[into] += tokens[i]
  for i in sorted(stays):
    yield dataclasses.replace(lines[i], label=label[i], tokens=tokens[i])


def _is_part(line: LabelledLine, longer: LabelledLine) -> bool:
  """Whether the last step, with what ends it, is the same in both."""
  ends = len(line.steps) == len(longer.steps) and longer.is_finished
  return line.is_finished == ends
