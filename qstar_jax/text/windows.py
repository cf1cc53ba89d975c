"""Stretches of a line that is too long to be read at once."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from qstar_jax.text.steps import encode_line
from qstar_jax.text.vocabulary import Vocabulary

# Stands for the steps that a window leaves out: how far a line has come says
# much about its next step.
_NOTE = "({} steps before)"


class Window(NamedTuple):
  """The prompt and the steps [first, end) of a line.

  Attributes:
    first: index of the first step that is shown.
    begin: of the first step that is the window's own; what comes before it is
      context.
    end: of the step after the last.
    has_room: for a note of what is left out; not beside a very long step.
  """

  first: int
  begin: int
  end: int
  has_room: bool = True


class Excerpt(NamedTuple):
  """A window of a line as tokens.

  Attributes:
    window: which steps.
    prompt: of the line; of a long one its end, half of the window.
    note: of how many steps are left out before the first; empty if none is, or
      there is no room.
    steps: that are shown.
  """

  window: Window
  prompt: list[int]
  note: list[int]
  steps: list[list[int]]


def excerpts(
  vocabulary: Vocabulary,
  prompt: str,
  steps: Sequence[str],
  max_tokens: int,
  *,
  is_finished: bool,
) -> Iterator[Excerpt]:
  """The windows of a line; see `windows`.

  Args:
    vocabulary: to encode with.
    prompt: of the line.
    steps: of the line.
    max_tokens: of a window.
    is_finished: see `encode_line`.

  Raises:
    UserError: see `encode_line`.
  """
  prompt_tokens, of_steps = encode_line(
    vocabulary, prompt, steps, is_finished=is_finished
  )
  lengths = [*map(len, of_steps)]
  notes: list[list[int]] = []
  if len(prompt_tokens) + sum(lengths) > max_tokens:
    # What is asked for mostly stands at the end.
    prompt_tokens = prompt_tokens[-max(max_tokens // 2, 1) :]
    texts = (_NOTE.format(n) for n in range(len(steps)))
    notes = [vocabulary.encode_step(text, is_last=False) for text in texts]
  note_length = max(map(len, notes), default=0)
  for window in windows(len(prompt_tokens), lengths, max_tokens, note_length):
    note = notes[window.first] if window.first and window.has_room else []
    shown = of_steps[window.first : window.end]
    yield Excerpt(window, prompt_tokens, note, shown)


def windows(
  prompt_length: int,
  step_lengths: Sequence[int],
  max_tokens: int,
  note_length: int = 0,
) -> Iterator[Window]:
  """Windows of which every step is the own of one, as far as steps fit.

  A line that fits is one window. In the others the prompt is followed by steps
  from the middle: up to half of the room that it leaves shows what came before.

  Args:
    prompt_length: in tokens.
    step_lengths: in tokens, each >= 1.
    max_tokens: of the prompt and the steps of a window.
    note_length: in tokens, of what stands behind the prompt where steps are
      left out.

  Yields:
    Windows in order. A step that does not fit beside the prompt is in none.
  """
  start = np.concatenate([[0], np.cumsum(step_lengths, dtype=int)])
  begin = 0
  while begin < len(step_lengths):
    room = max_tokens - prompt_length
    has_room = step_lengths[begin] + note_length <= room
    if begin and has_room:
      room -= note_length
    if step_lengths[begin] > room:
      begin += 1
      continue
    context = min(room // 2, room - step_lengths[begin]) if begin else 0
    first = int(np.searchsorted(start, start[begin] - context))
    last = np.searchsorted(start, start[first] + room, side="right") - 1
    yield Window(first, begin, int(last), has_room)
    begin = int(last)
