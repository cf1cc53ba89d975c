"""Rows of lines whose steps somebody has labelled."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from qstar_jax.learner import rows
from qstar_jax.records import NO_LABEL, TrainBatch


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


def labelled_to_rows(
  labelled: Sequence[LabelledTokens],
  max_line_tokens: int,
  *,
  lines_per_row: int = 1,
) -> TrainBatch:
  """Rows of labelled lines: lines in order, so many in each row.

  A label is the PRM's target, and the weight of its step for the policy: steps
  are imitated as far as they are right. There are no value targets: nobody has
  said who goes on from there, or how.

  Args:
    labelled: lines.
    max_line_tokens: of a line.
    lines_per_row: T is so many times `max_line_tokens`.

  Raises:
    UserError: a line is longer than `max_line_tokens`.
  """
  label = np.array(
    [x for line in labelled for x in (NO_LABEL, *line.label)], np.float32
  )
  is_labelled = label != NO_LABEL
  target = np.where(is_labelled, label, 0)
  tokens, pieces = rows.in_lines(
    [[line.prompt, *line.steps] for line in labelled]
  )
  lesson = rows.Lesson(
    **pieces,
    policy_weight=target,
    value_target=np.zeros_like(target),
    value_weight=np.zeros_like(target),
    prm_target=target,
    prm_weight=is_labelled,
  )
  return rows.assemble_lines(tokens, lesson, max_line_tokens, lines_per_row)
