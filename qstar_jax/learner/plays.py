"""Rows of random play: lines that solve their problem, or miss it for sure."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from qstar_jax.learner import rows
from qstar_jax.records import NO_LABEL, TrainBatch


@dataclasses.dataclass(frozen=True)
class Play:
  """A line that solves its problem, or goes wrong at a known step.

  Attributes:
    prompt_tokens: of the prompt.
    step_tokens: of each step, its last token (delimiter or end) included.
    bad_step: index of the step that is wrong beyond doubt: it is illegal, or
      finishes the line with a wrong answer. None if the line solves its
      problem.
    is_aimless: all steps are legal, the bad one too, and nobody knows whether
      those before it lead to a solution. Otherwise they do: the bad one stands
      in a right one's place.
  """

  prompt_tokens: Sequence[int]
  step_tokens: Sequence[Sequence[int]]
  bad_step: int | None = None
  is_aimless: bool = False


def plays_to_rows(
  plays: Sequence[Play],
  max_line_tokens: int,
  *,
  lines_per_row: int = 1,
  has_player: bool = False,
) -> TrainBatch:
  """Rows of the warm start: plays in order, so many in each row.

  Every legal step has policy weight 1 on all its tokens, those of an aimless
  line too. They show how to go on where nothing solves the problem any more: by
  the rules. (A policy that has only seen lines end well bends the last equation
  to the target there, and of many such lines some fool V and the PRM.)

  A right step is labelled 1 and the bad one 0, and nothing after it is in the
  row. Steps before it are right as long as the line solves its problem when
  played on from there: a mistake put into it says nothing about them. In an
  aimless line they have no label. Value and PRM share the labels; the 1s stand
  where the 0s do, so neither score can be told from the depth alone.

  The prompt has no value target: relabelled in hindsight, every problem is
  solved, so its outcome says nothing about the player.

  Args:
    plays: lines of the domain's random play, some with a mistake.
    max_line_tokens: of a play.
    lines_per_row: T is so many times `max_line_tokens`.
    has_player: V is that of a player who learns from trees. In mid-line it may
      not see the solution that is there, so a value target is only at the last
      step of a line: a fact for everybody.

  Raises:
    UserError: a line is longer than `max_line_tokens`.
  """
  lines, label, is_legal, is_last = [], [], [], []
  for play in plays:
    bad_step = len(play.step_tokens) if play.bad_step is None else play.bad_step
    steps = play.step_tokens[: bad_step + 1]
    lines.append([play.prompt_tokens, *steps])
    before = NO_LABEL if play.is_aimless else 1
    label += [NO_LABEL, *[before] * bad_step, 0][: len(lines[-1])]
    is_legal += [False, *[True] * bad_step, play.is_aimless][: len(lines[-1])]
    is_last += [False] * len(steps) + [True]
  label = np.array(label)
  is_labelled = (label != NO_LABEL).astype(np.float32)
  is_right = (label == 1).astype(np.float32)
  value_weight = is_labelled * np.array(is_last) if has_player else is_labelled
  tokens, pieces = rows.in_lines(lines)
  lesson = rows.Lesson(
    **pieces,
    policy_weight=np.array(is_legal, np.float32),
    value_target=is_right,
    value_weight=value_weight,
    prm_target=is_right,
    prm_weight=is_labelled,
  )
  return rows.assemble_lines(tokens, lesson, max_line_tokens, lines_per_row)
