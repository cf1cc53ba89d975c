"""Rows of lines whose steps somebody has labelled."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from qstar_jax.learner import lines
from qstar_jax.records import NO_LABEL, LabelledLine, TrainBatch
from qstar_jax.text.steps import encode_line
from qstar_jax.text.vocabulary import Vocabulary
from qstar_jax.text.windows import windows


@dataclasses.dataclass(frozen=True)
class LabelledTokens:
  """A labelled line as tokens.

  Attributes:
    prompt: of the prompt.
    steps: of each step, its last token (delimiter or end) included.
    label: of each step, in [0, 1] or `NO_LABEL`.
  """

  prompt: Sequence[int]
  steps: Sequence[Sequence[int]]
  label: Sequence[float]


def tokenise(
  line: LabelledLine, vocabulary: Vocabulary, max_line_tokens: int
) -> tuple[list[LabelledTokens], int]:
  """The rows of a labelled line, and the number of labels in none.

  There is a row for each window of the line with labels, up to its last one.

  Args:
    line: labelled.
    vocabulary: to encode with.
    max_line_tokens: T.
  """
  prompt, steps = encode_line(
    vocabulary, line.prompt, line.steps, is_finished=line.is_finished
  )
  left = line.label.copy()
  rows = []
  for window in windows(len(prompt), [*map(len, steps)], max_line_tokens):
    own = np.full(len(steps), NO_LABEL, np.float32)
    own[window.begin : window.end] = left[window.begin : window.end]
    left[window.begin : window.end] = NO_LABEL
    labelled_steps = np.flatnonzero(own != NO_LABEL)
    if labelled_steps.size:
      shown = slice(window.first, labelled_steps[-1] + 1)
      rows.append(LabelledTokens(prompt, steps[shown], own[shown].tolist()))
  return rows, int((left != NO_LABEL).sum())


def labelled_to_lines(
  labelled: Sequence[LabelledTokens], max_line_tokens: int
) -> TrainBatch:
  """Rows of labelled lines: row i of the batch is labelled[i].

  A label is the PRM's target, and the weight of its step for the policy: steps
  are imitated as far as they are right. There are no value targets: nobody has
  said who goes on from there, or how.

  Args:
    labelled: lines.
    max_line_tokens: T.

  Raises:
    UserError: a line is longer than T.
  """
  rows = [[line.prompt, *line.steps] for line in labelled]
  label = np.array(
    [x for line in labelled for x in (NO_LABEL, *line.label)], np.float32
  )
  is_labelled = label != NO_LABEL
  target = np.where(is_labelled, label, 0)
  tokens, places = lines.lay_out(rows)
  lesson = lines.Lesson(
    **places,
    policy_weight=target,
    value_target=np.zeros_like(target),
    value_weight=np.zeros_like(target),
    prm_target=target,
    prm_weight=is_labelled,
  )
  return lines.assemble(tokens, lesson, len(rows), max_line_tokens)
