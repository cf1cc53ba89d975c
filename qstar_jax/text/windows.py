"""Stretches of a line that is too long to be read at once."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
  """The prompt and the steps [first, end) of a line.

  Attributes:
    first: index of the first step that is shown.
    begin: of the first step that is the window's own; what comes before it is
      context.
    end: of the step after the last.
  """

  first: int
  begin: int
  end: int


def windows(
  prompt_length: int, step_lengths: Sequence[int], max_tokens: int
) -> Iterator[Window]:
  """Windows of which every step is the own of one, as far as steps fit.

  A line that fits is one window. In the others the prompt is followed by steps
  from the middle: up to half of the room that it leaves shows what came before.

  Args:
    prompt_length: in tokens.
    step_lengths: in tokens, each >= 1.
    max_tokens: of the prompt and the steps of a window.

  Yields:
    Windows in order. A step that does not fit beside the prompt is in none.
  """
  room = max_tokens - prompt_length
  start = np.concatenate([[0], np.cumsum(step_lengths, dtype=int)])
  begin = 0
  while begin < len(step_lengths):
    if step_lengths[begin] > room:
      begin += 1
      continue
    context = min(room // 2, room - step_lengths[begin]) if begin else 0
    first = int(np.searchsorted(start, start[begin] - context))
    last = np.searchsorted(start, start[first] + room, side="right") - 1
    yield Window(first, begin, int(last))
    begin = int(last)
