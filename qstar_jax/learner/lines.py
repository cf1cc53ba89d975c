"""Rows of training batches: pieces of text put in place with their targets."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from qstar_jax.errors import UserError
from qstar_jax.records import NO_LABEL, TrainBatch


@dataclasses.dataclass(frozen=True)
class Segments:
  """S stretches of text, each a whole prompt or step somewhere in some row.

  Attributes:
    row: int [S], row of the batch.
    start: int [S], position of the first token in the row.
    offset: int [S], position of the first token in the flat tokens.
    length: int [S], tokens, >= 1.
  """

  row: np.ndarray
  start: np.ndarray
  offset: np.ndarray
  length: np.ndarray


@dataclasses.dataclass(frozen=True)
class Lesson(Segments):
  """Segments with what there is to learn from each; see `TrainBatch`.

  Attributes:
    policy_weight: float [S], weight of each of the tokens.
    value_target: float [S] in [0, 1], P(solved) after the last token.
    value_weight: float [S] >= 0, 0 where there is no target.
    prm_target: float [S] in [0, 1], label of the step.
    prm_weight: float [S] >= 0, 0 where there is no label.
    reward: float [S], of the step; None if no loss reads it.
    discount: float [S] in [0, 1], of what comes after the step; or None.
    action_weight: float [S], weight of each of the tokens; or None.
  """

  policy_weight: np.ndarray
  value_target: np.ndarray
  value_weight: np.ndarray
  prm_target: np.ndarray
  prm_weight: np.ndarray
  reward: np.ndarray | None = None
  discount: np.ndarray | None = None
  action_weight: np.ndarray | None = None


class _Page:
  """B rows of T places, into which segments are written.

  Raises:
    UserError: a line is longer than T.
  """

  def __init__(self, segments: Segments, num_rows: int, max_line_tokens: int):
    end = segments.start + segments.length
    longest = int(end.max(initial=0))
    if longest > max_line_tokens:
      raise UserError(
        f"A line of {longest} tokens does not fit the learner's rows of"
        f" {max_line_tokens}; raise text.max_prompt_tokens,"
        " text.max_step_tokens or text.max_steps."
      )
    self._shape = (num_rows, max_line_tokens)
    self._segments = segments
    self._row = np.repeat(segments.row, segments.length)
    # 0, 1, 2, .. within each segment.
    first = np.cumsum(segments.length) - segments.length
    self._within = np.arange(len(self._row)) - np.repeat(first, segments.length)
    self._column = np.repeat(segments.start, segments.length) + self._within
    self._last = (segments.row, end - 1)
    self.length = np.zeros(num_rows, np.int32)
    np.maximum.at(self.length, segments.row, end)

  def tokens(self, tokens: np.ndarray) -> np.ndarray:
    """The segments' tokens, of the flat ones: int32 [B, T]."""
    source = np.repeat(self._segments.offset, self._segments.length)
    out = np.zeros(self._shape, np.int32)
    out[self._row, self._column] = tokens[source + self._within]
    return out

  def everywhere(self, values: np.ndarray) -> np.ndarray:
    """A number for each segment, at all of its tokens: float32 [B, T]."""
    out = np.zeros(self._shape, np.float32)
    out[self._row, self._column] = np.repeat(values, self._segments.length)
    return out

  def at_end(self, values: np.ndarray) -> np.ndarray:
    """A number for each segment, at its last token: float32 [B, T]."""
    out = np.zeros(self._shape, np.float32)
    out[self._last] = values
    return out


def write_tokens(
  tokens: np.ndarray, segments: Segments, num_rows: int, max_line_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
  """Text alone: tokens [B, T] and lengths [B]. Arguments as of `assemble`."""
  page = _Page(segments, num_rows, max_line_tokens)
  return page.tokens(tokens), page.length


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
  tokens: np.ndarray, lesson: Lesson, num_rows: int, max_line_tokens: int
) -> TrainBatch:
  """Writes segments into the rows of a batch.

  Args:
    tokens: int [X], flat; what `lesson.offset` points into.
    lesson: no two segments overlap.
    num_rows: B.
    max_line_tokens: T.

  Raises:
    UserError: a line is longer than T.
  """
  page = _Page(lesson, num_rows, max_line_tokens)
  actions = {}
  if lesson.reward is not None:
    within_step = page.everywhere(np.ones(len(lesson.row)))
    actions = {
      "reward": page.at_end(lesson.reward),
      "discount": within_step + page.at_end(lesson.discount - 1),
      "action_weight": page.everywhere(lesson.action_weight),
    }
  return TrainBatch(
    tokens=page.tokens(tokens),
    length=page.length,
    policy_weight=page.everywhere(lesson.policy_weight),
    value_target=page.at_end(lesson.value_target),
    value_weight=page.at_end(lesson.value_weight),
    prm_target=page.at_end(lesson.prm_target),
    prm_weight=page.at_end(lesson.prm_weight),
    **actions,
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

  def take(_, field):
    out = np.zeros((batch_size, *field.shape[1:]), field.dtype)
    out[: len(rows)] = field[rows]
    return out

  return _of_fields(take, lines)


def join(parts: Sequence[TrainBatch]) -> TrainBatch:
  """The rows of several batches, one after the other.

  Where some of them know nothing of a field, it is 0 in their rows: there is no
  weight on it. A field that none has stays None.
  """

  def concatenate(name):
    fields = [getattr(part, name) for part in parts]
    known = next((field for field in fields if field is not None), None)
    if known is None:
      return None
    return np.concatenate(
      [
        np.zeros((len(part.tokens), *known.shape[1:]), known.dtype)
        if field is None
        else field
        for part, field in zip(parts, fields, strict=True)
      ]
    )

  names = [field.name for field in dataclasses.fields(TrainBatch)]
  return TrainBatch(**{name: concatenate(name) for name in names})


def _of_fields(
  fn: Callable[[str, np.ndarray], np.ndarray], lines: TrainBatch
) -> TrainBatch:
  """The batch of fn(name, field); what is None stays None."""
  return TrainBatch(
    **{
      name: None if field is None else fn(name, field)
      for name, field in vars(lines).items()
    }
  )


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
  scale = np.where(is_light, 1 / share, 1.0)[stays].astype(np.float32)

  def keep(name, field):
    kept = field[stays]
    return (kept.T * scale).T if name.endswith("_weight") else kept

  return _of_fields(keep, lines)


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


def plays_to_lines(
  plays: Sequence[Play], max_line_tokens: int, *, has_player: bool = False
) -> TrainBatch:
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
    has_player: V is that of a player who learns from trees. In mid-line it may
      not see the solution that is there, so a value target is only at the last
      step of a row: a fact for everybody.

  Raises:
    UserError: a line is longer than T.
  """
  rows, label, is_last = [], [], []
  for play in plays:
    bad_step = len(play.step_tokens) if play.bad_step is None else play.bad_step
    steps = play.step_tokens[: bad_step + 1]
    rows.append([play.prompt_tokens, *steps])
    before = NO_LABEL if play.is_aimless else 1
    label += [NO_LABEL, *[before] * bad_step, 0][: len(rows[-1])]
    is_last += [False] * len(steps) + [True]
  label = np.array(label)
  is_labelled = (label != NO_LABEL).astype(np.float32)
  is_right = (label == 1).astype(np.float32)
  value_weight = is_labelled * np.array(is_last) if has_player else is_labelled
  tokens, places = lay_out(rows)
  lesson = Lesson(
    **places,
    policy_weight=is_right,
    value_target=is_right,
    value_weight=value_weight,
    prm_target=is_right,
    prm_weight=is_labelled,
  )
  return assemble(tokens, lesson, len(plays), max_line_tokens)
