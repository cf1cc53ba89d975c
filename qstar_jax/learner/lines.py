"""Rows of training batches: pieces of text put in place with their targets."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from qstar_jax.errors import UserError
from qstar_jax.records import TrainBatch

# Label of a prompt, and of a step that nobody has judged.
_NO_LABEL = -1


@dataclasses.dataclass(frozen=True)
class Segments:
  """S stretches of text, each a whole prompt or step somewhere in some row.

  Attributes:
    row: int [S], row of the batch.
    start: int [S], position of the first token in the row.
    offset: int [S], position of the first token in the flat tokens.
    length: int [S], tokens, >= 1.
    policy_weight: float [S], weight of each of the tokens.
    value_target: float [S] in [0, 1], P(solved) after the last token.
    value_weight: float [S] >= 0, 0 where there is no target.
    prm_target: float [S] in [0, 1], label of the step.
    prm_weight: float [S] >= 0, 0 where there is no label.
  """

  row: np.ndarray
  start: np.ndarray
  offset: np.ndarray
  length: np.ndarray
  policy_weight: np.ndarray
  value_target: np.ndarray
  value_weight: np.ndarray
  prm_target: np.ndarray
  prm_weight: np.ndarray


def lay_out(
  rows: Sequence[Sequence[Sequence[int]]],
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Places for the parts of rows, each after the one before it.

  Args:
    rows: of each row the tokens of its parts, prompt and steps.

  Returns:
    The flat tokens, int32 [X], and the fields row, start, offset and length of
    `Segments`.
  """
  num_parts = np.array([len(parts) for parts in rows], np.int64)
  parts = list(itertools.chain.from_iterable(rows))
  length = np.array([len(part) for part in parts], np.int64)
  offset = np.cumsum(length) - length
  row_offset = np.repeat(offset[np.cumsum(num_parts) - num_parts], num_parts)
  tokens = np.concatenate([np.zeros(0, np.int32), *parts], dtype=np.int32)
  return tokens, {
    "row": np.repeat(np.arange(len(rows)), num_parts),
    "start": offset - row_offset,
    "offset": offset,
    "length": length,
  }


def assemble(
  tokens: np.ndarray, segments: Segments, num_rows: int, max_line_tokens: int
) -> TrainBatch:
  """Writes segments into the rows of a batch.

  Args:
    tokens: int [X], flat; what `segments.offset` points into.
    segments: no two of them overlap.
    num_rows: B.
    max_line_tokens: T.

  Raises:
    UserError: a line is longer than T.
  """
  end = segments.start + segments.length
  longest = int(end.max(initial=0))
  if longest > max_line_tokens:
    raise UserError(
      f"A line of {longest} tokens does not fit the learner's rows of"
      f" {max_line_tokens}; raise text.max_prompt_tokens, text.max_step_tokens"
      " or text.max_steps."
    )
  shape = (num_rows, max_line_tokens)
  row = np.repeat(segments.row, segments.length)
  # 0, 1, 2, .. within each segment.
  within = np.arange(len(row)) - np.repeat(
    np.cumsum(segments.length) - segments.length, segments.length
  )
  column = np.repeat(segments.start, segments.length) + within
  source = np.repeat(segments.offset, segments.length) + within
  every_token, last_token = (row, column), (segments.row, end - 1)

  def written(dtype, place, values):
    out = np.zeros(shape, dtype)
    out[place] = values
    return out

  length = np.zeros(num_rows, np.int32)
  np.maximum.at(length, segments.row, end)
  return TrainBatch(
    tokens=written(np.int32, every_token, tokens[source]),
    length=length,
    policy_weight=written(
      np.float32,
      every_token,
      np.repeat(segments.policy_weight, segments.length),
    ),
    value_target=written(np.float32, last_token, segments.value_target),
    value_weight=written(np.float32, last_token, segments.value_weight),
    prm_target=written(np.float32, last_token, segments.prm_target),
    prm_weight=written(np.float32, last_token, segments.prm_weight),
  )


def batch_lines(
  lines: TrainBatch, rows: np.ndarray, batch_size: int
) -> TrainBatch:
  """A batch of some rows of `lines`, filled up with empty rows.

  Empty rows hold padding with no weight: the losses do not see them.

  Args:
    lines: any number of rows.
    rows: int [b], which to take, b <= batch_size.
    batch_size: B.

  Raises:
    ValueError: more rows than the batch has.
  """
  if len(rows) > batch_size:
    raise ValueError(f"{len(rows)} rows do not fit a batch of {batch_size}.")

  def take(field):
    out = np.zeros((batch_size, *field.shape[1:]), field.dtype)
    out[: len(rows)] = field[rows]
    return out

  fields = dataclasses.fields(TrainBatch)
  return TrainBatch(**{f.name: take(getattr(lines, f.name)) for f in fields})


# Policy weight of its best token below which a line counts as light.
_LIGHT = 0.1


def thin_light_lines(
  lines: TrainBatch, share: float, rng: np.random.Generator
) -> TrainBatch:
  """Leaves out most lines that hardly teach the policy, without bias.

  Most lines of a tree end in a candidate that the improved policy dropped: they
  show value and PRM one more mistake. Those that stay weigh 1 / share, so every
  loss keeps its expectation and gradient steps go to the lines that matter.

  Args:
    lines: any number of rows.
    share: of the light lines that stay, in (0, 1].
    rng: consumed.

  Returns:
    The rows that stay, in order.
  """
  is_light = lines.policy_weight.max(axis=1, initial=0.0) < _LIGHT
  stays = ~is_light | (rng.random(len(is_light)) < share)
  scale = np.where(is_light, 1 / share, 1.0)[stays, None].astype(np.float32)
  weights = {
    name: getattr(lines, name)[stays] * scale
    for name in ("policy_weight", "value_weight", "prm_weight")
  }
  fields = dataclasses.fields(TrainBatch)
  kept = {f.name: getattr(lines, f.name)[stays] for f in fields}
  return TrainBatch(**kept | weights)


@dataclasses.dataclass(frozen=True)
class Play:
  """A line that solves its problem, or goes wrong at a known step.

  Attributes:
    prompt_tokens: of the prompt.
    step_tokens: of each step, its last token (delimiter or end) included.
    bad_step: index of the step that is wrong beyond doubt: it is illegal, or
      finishes the line with a wrong answer. None if the line solves its
      problem.
    is_aimless: nobody knows whether the steps before the bad one lead to a
      solution. Otherwise they do: the bad one stands in a right one's place.
  """

  prompt_tokens: Sequence[int]
  step_tokens: Sequence[Sequence[int]]
  bad_step: int | None = None
  is_aimless: bool = False


def plays_to_lines(plays: Sequence[Play], max_line_tokens: int) -> TrainBatch:
  """Rows of the warm start: line i of the batch is plays[i].

  A right step has policy weight 1 on all its tokens and is labelled 1; the bad
  step has no policy weight and is labelled 0, and nothing after it is in the
  row. Steps before it are right as long as the line solves its problem when
  played on from there: a mistake put into it says nothing about them. In an
  aimless line they have no targets. Value and PRM share the labels; the 1s
  stand where the 0s do, so neither score can be told from the depth alone.

  The prompt has no value target: relabelled in hindsight, every problem is
  solved, so its outcome says nothing about the player.

  Args:
    plays: lines of the domain's random play, some with a mistake.
    max_line_tokens: T.

  Raises:
    UserError: a line is longer than T.
  """
  rows, label = [], []
  for play in plays:
    bad_step = len(play.step_tokens) if play.bad_step is None else play.bad_step
    steps = play.step_tokens[: bad_step + 1]
    rows.append([play.prompt_tokens, *steps])
    before = _NO_LABEL if play.is_aimless else 1
    label += [_NO_LABEL, *[before] * bad_step, 0][: len(rows[-1])]
  label = np.array(label, np.int64)
  is_labelled = (label != _NO_LABEL).astype(np.float32)
  is_right = (label == 1).astype(np.float32)
  tokens, places = lay_out(rows)
  segments = Segments(
    **places,
    policy_weight=is_right,
    value_target=is_right,
    value_weight=is_labelled,
    prm_target=is_right,
    prm_weight=is_labelled,
  )
  return assemble(tokens, segments, len(plays), max_line_tokens)
