"""Stretches of a line that is too long to be read at once.

A window has at most `text.max_prompt_tokens` of the prompt, `text.max_steps`
steps, and `text.max_line_tokens` in all, as the lines that are played.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from qstar_jax.config import TextConfig
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
    prompt: of the line; of a long one its end.
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
  text: TextConfig,
  *,
  is_finished: bool,
) -> Iterator[Excerpt]:
  """The windows of a line; see `windows`.

  Args:
    vocabulary: to encode with.
    prompt: of the line.
    steps: of the line.
    text: bounds the windows.
    is_finished: see `encode_line`.

  Raises:
    UserError: see `encode_line`.
  """
  prompt_tokens, of_steps = encode_line(
    vocabulary, prompt, steps, is_finished=is_finished
  )
  # What is asked for mostly stands at the end.
  prompt_tokens = prompt_tokens[-text.max_prompt_tokens :]
  lengths = [*map(len, of_steps)]
  room = text.max_line_tokens - len(prompt_tokens)
  notes: list[list[int]] = []
  if len(steps) > text.max_steps or sum(lengths) > room:
    texts = (_NOTE.format(count) for count in range(len(steps)))
    notes = [vocabulary.encode_step(note, is_last=False) for note in texts]
  note_length = max(map(len, notes), default=0)
  for window in windows(lengths, text.max_steps, room, note_length):
    note = notes[window.first] if window.first and window.has_room else []
    shown = of_steps[window.first : window.end]
    yield Excerpt(window, prompt_tokens, note, shown)


def windows(
  step_lengths: Sequence[int],
  max_steps: int,
  max_tokens: int,
  note_length: int = 0,
) -> Iterator[Window]:
  """Windows of which every step is the own of one, as far as steps fit.

  A line that fits is one window. In the others up to half of the steps, and of
  the room, is context: it shows what came before.

  Args:
    step_lengths: in tokens, each >= 1.
    max_steps: of a window.
    max_tokens: of the steps of a window, and its note.
    note_length: in tokens, of what stands before the steps where some are left
      out.

  Yields:
    Windows in order. A step that does not fit is in none.
  """
  start = np.concatenate([[0], np.cumsum(step_lengths, dtype=int)])
  begin = 0
  while begin < len(step_lengths):
    length, room = step_lengths[begin], max_tokens
    has_room = length + note_length <= room
    if begin and has_room:
      room -= note_length
    if length > room:
      begin += 1
      continue
    context = min(room // 2, room - length) if begin else 0
    first = int(np.searchsorted(start, start[begin] - context))
    first = max(first, begin - max_steps // 2)
    end = np.searchsorted(start, start[first] + room, side="right") - 1
    end = min(int(end), first + max_steps)
    yield Window(first, begin, end, has_room)
    begin = end
