"""Rows of lines whose steps somebody has labelled."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from qstar_jax.learner import lines
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
