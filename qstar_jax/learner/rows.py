"""Rows of training batches: trees of text, with the targets of each piece.

A row holds whole trees, or branches of them with the text above. What lines
have in common stands in it once: a token sees the tokens above it and none
beside it, and counts its position along its line. So the network says of every
line what it would say of it alone, for the tokens of the tree and not of all
its lines.
"""

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np

from qstar_jax.errors import UserError
from qstar_jax.records import TrainBatch


@dataclasses.dataclass(frozen=True)
class Lesson:
  """P pieces of text, prompts and steps, with what there is to learn from each.

  In preorder: a piece is followed by all that is below it, and then by what
  stands beside it.

  Attributes:
    above: int [P], the piece that this one goes on from; -1 for a prompt.
    offset: int [P], position of the first token in the flat tokens.
    length: int [P], tokens, >= 1.
    policy_weight: float [P], weight of each of the tokens; 0 for a prompt.
    value_target: float [P] in [0, 1], P(solved) after the last token.
    value_weight: float [P] >= 0, 0 where there is no target.
    prm_target: float [P] in [0, 1], label of the step.
    prm_weight: float [P] >= 0, 0 where there is no label.
    reward: float [P], of the step; None if no loss reads it.
    discount: float [P] in [0, 1], of what comes after the step; or None.
    action_weight: float [P], weight of each of the tokens; or None.
    rival: int [P], a better step beside this one, or -1; or None. It stands in
      the same row, as context if need be, unless there is no room for both.
    rival_weight: float [P] >= 0, of the pair; or None.
  """

  above: np.ndarray
  offset: np.ndarray
  length: np.ndarray
  policy_weight: np.ndarray
  value_target: np.ndarray
  value_weight: np.ndarray
  prm_target: np.ndarray
  prm_weight: np.ndarray
  reward: np.ndarray | None = None
  discount: np.ndarray | None = None
  action_weight: np.ndarray | None = None
  rival: np.ndarray | None = None
  rival_weight: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class _Copies:
  """C places where pieces stand, chunk by chunk, each chunk in preorder.

  Attributes:
    piece: int [C].
    above: int [C], the copy that this one goes on from; -1 for a prompt.
    chunk: int [C].
    start: int [C], place of the first token in the chunk.
    is_own: bool [C], the piece's targets stand here; elsewhere it is context.
  """

  piece: np.ndarray
  above: np.ndarray
  chunk: np.ndarray
  start: np.ndarray
  is_own: np.ndarray


def _cut(lesson: Lesson, row_tokens: int) -> _Copies:
  """Trees cut into chunks of `row_tokens` at most; each begins with a prompt.

  Raises:
    UserError: a line is longer than that.
  """
  above, length = lesson.above.tolist(), lesson.length.tolist()
  rival = [-1] * len(above) if lesson.rival is None else lesson.rival.tolist()
  columns: list[tuple[int, int, int, int, bool]] = []
  copy_of: dict[int, int] = {}  # Those of this chunk.
  chunk, end = -1, 0

  def write(piece: int, *, is_own: bool) -> None:
    nonlocal end
    copy = copy_of.get(above[piece], -1)
    copy_of[piece] = len(columns)
    columns.append((piece, copy, chunk, end, is_own))
    end += length[piece]

  def wanted(piece: int) -> list[int]:
    other = rival[piece]
    return [piece] if other < 0 or other in copy_of else [other, piece]

  def fits(pieces: list[int]) -> bool:
    return end + sum(length[piece] for piece in pieces) <= row_tokens

  for piece, piece_above in enumerate(above):
    pieces = wanted(piece)
    if piece_above < 0 or not fits(pieces):
      chunk, end = chunk + 1, 0
      copy_of.clear()
      path = []
      while piece_above >= 0:
        path.append(piece_above)
        piece_above = above[piece_above]
      for context in reversed(path):
        write(context, is_own=False)
      if not fits([piece]):
        raise UserError(
          f"A line of {end + length[piece]} tokens does not fit the learner's"
          f" {row_tokens}; raise text.max_prompt_tokens,"
          " text.max_step_tokens or text.max_steps."
        )
      pieces = wanted(piece) if fits(wanted(piece)) else [piece]
    for written in pieces:
      write(written, is_own=written == piece)
  table = np.array(columns, np.int64).reshape(-1, 5)
  return _Copies(*table.T[:4], is_own=table[:, 4].astype(bool))


def _fill(length: np.ndarray, row_tokens: int) -> tuple[np.ndarray, np.ndarray]:
  """Rows of chunks, filled one by one with the longest that there is room for.

  Args:
    length: int [N], of chunks, `row_tokens` at most.
    row_tokens: of a row.

  Returns:
    (row [N], place of the first token in it [N]), int.
  """
  row, start = np.zeros_like(length), np.zeros_like(length)
  waiting = np.argsort(length, kind="stable").tolist()
  lengths = length[waiting].tolist()
  num_rows = 0
  while waiting:
    end = 0
    while fits := bisect.bisect_right(lengths, row_tokens - end):
      chunk = waiting.pop(fits - 1)
      row[chunk], start[chunk] = num_rows, end
      end += lengths.pop(fits - 1)
    num_rows += 1
  return row, start


def assemble(tokens: np.ndarray, lesson: Lesson, row_tokens: int) -> TrainBatch:
  """Writes trees into as few rows as they find room in.

  Args:
    tokens: int [X], flat; what `lesson.offset` points into.
    lesson: of whole trees; one that is too large for a row is cut.
    row_tokens: T.

  Raises:
    UserError: a line is longer than T.
  """
  copies = _cut(lesson, row_tokens)
  length = _chunk_length(copies, lesson)
  return _write(tokens, lesson, copies, *_fill(length, row_tokens), row_tokens)


def assemble_lines(
  tokens: np.ndarray, lesson: Lesson, max_line_tokens: int, lines_per_row: int
) -> TrainBatch:
  """Writes lines into rows in order, so many in each.

  Args:
    tokens: int [X], flat; what `lesson.offset` points into.
    lesson: of lines, trees that do not branch.
    max_line_tokens: that a line has at most.
    lines_per_row: T is so many times `max_line_tokens`.

  Raises:
    UserError: a line is longer than `max_line_tokens`.
  """
  copies = _cut(lesson, max_line_tokens)
  line = np.arange(int(copies.chunk.max(initial=-1)) + 1)
  row, start = line // lines_per_row, line % lines_per_row * max_line_tokens
  row_tokens = lines_per_row * max_line_tokens
  return _write(tokens, lesson, copies, row, start, row_tokens)


def _chunk_length(copies: _Copies, lesson: Lesson) -> np.ndarray:
  """Tokens of each chunk, int [N]."""
  length = lesson.length[copies.piece]
  num_chunks = int(copies.chunk.max(initial=-1)) + 1
  total = np.bincount(copies.chunk, weights=length, minlength=num_chunks)
  return total.astype(np.int64)


def _write(
  tokens: np.ndarray,
  lesson: Lesson,
  copies: _Copies,
  row: np.ndarray,
  start: np.ndarray,
  row_tokens: int,
) -> TrainBatch:
  """The batch with chunk i in row[i], from place start[i] on.

  Raises:
    ValueError: a prompt has weight for policy or actions; nothing predicts it.
  """
  is_prompt = lesson.above < 0
  for weight in (lesson.policy_weight, lesson.action_weight):
    if weight is not None and weight[is_prompt].any():
      raise ValueError("A prompt has weight for policy or actions.")
  page = _Page(
    copies,
    lesson.length[copies.piece],
    row[copies.chunk],
    start[copies.chunk] + copies.start,
    row_tokens,
  )
  optional = {}
  if lesson.reward is not None:
    within_step = page.everywhere(np.ones(len(copies.piece)))
    optional = {
      "reward": page.at_end(lesson.reward),
      "discount": within_step + page.at_end(lesson.discount - 1),
      "action_weight": page.everywhere(page.own(lesson.action_weight)),
    }
  if lesson.rival is not None:
    optional |= page.rivals(lesson.rival, lesson.rival_weight)
  return TrainBatch(
    **page.layout(tokens, lesson.offset),
    policy_weight=page.everywhere(page.own(lesson.policy_weight)),
    value_target=page.at_end(lesson.value_target),
    value_weight=page.at_end(lesson.value_weight),
    prm_target=page.at_end(lesson.prm_target),
    prm_weight=page.at_end(lesson.prm_weight),
    **optional,
  )


class _Page:
  """B rows of T places, into which copies of pieces are written."""

  def __init__(
    self,
    copies: _Copies,
    length: np.ndarray,
    row: np.ndarray,
    start: np.ndarray,
    row_tokens: int,
  ):
    self._copies = copies
    self._length = length
    self._end = start + length
    self._last = (row, self._end - 1)
    # 0, 1, 2, .. within each copy.
    first = np.cumsum(length) - length
    self._within = np.arange(length.sum()) - np.repeat(first, length)
    self._place = (np.repeat(row, length), self._spread(start) + self._within)
    self._shape = (int(row.max(initial=-1)) + 1, row_tokens)

  def _spread(self, values: np.ndarray) -> np.ndarray:
    """Of copies [C] to their tokens."""
    return np.repeat(values, self._length)

  def _write(self, values: np.ndarray, dtype: type) -> np.ndarray:
    """Values of all tokens, in their places: [B, T]."""
    out = np.zeros(self._shape, dtype)
    out[self._place] = values
    return out

  def layout(
    self, tokens: np.ndarray, offset: np.ndarray
  ) -> dict[str, np.ndarray]:
    """The fields that say what stands where, and what goes on from what."""
    above = self._copies.above
    depth, last = _depth_and_last(above, self._length, self._end)
    column = self._place[1]
    # A step's first token comes after the last one of what it goes on from.
    end_above = np.where(above >= 0, self._end[above] - 1, 0)
    before = np.where(self._within == 0, self._spread(end_above), column - 1)
    source = self._spread(offset[self._copies.piece]) + self._within
    return {
      "tokens": self._write(tokens[source], np.int32),
      "position": self._write(self._spread(depth) + self._within, np.int32),
      "previous": self._write(before, np.int32),
      "last": self._write(self._spread(last), np.int32),
    }

  def own(self, values: np.ndarray) -> np.ndarray:
    """Of pieces [P] to copies [C]: 0 where a copy is context."""
    return values[self._copies.piece] * self._copies.is_own

  def everywhere(self, values: np.ndarray) -> np.ndarray:
    """A number for each copy, at all of its tokens: float32 [B, T]."""
    return self._write(self._spread(values), np.float32)

  def at_end(self, values: np.ndarray) -> np.ndarray:
    """A number for each piece, at its own last token: float32 [B, T]."""
    out = np.zeros(self._shape, np.float32)
    out[self._last] = self.own(values)
    return out

  def rivals(
    self, rival: np.ndarray, weight: np.ndarray
  ) -> dict[str, np.ndarray]:
    """Where the rivals of pieces end, of those that stand in one chunk."""
    copies = self._copies
    copy_of = {
      key: i
      for i, key in enumerate(
        zip(copies.chunk.tolist(), copies.piece.tolist(), strict=True)
      )
    }
    place = np.zeros(self._shape, np.int32)
    weights = np.zeros(self._shape, np.float32)
    for i in np.flatnonzero(copies.is_own & (rival[copies.piece] >= 0)):
      piece = copies.piece[i]
      other = copy_of.get((copies.chunk[i], rival[piece]))
      if other is not None:
        where = self._last[0][i], self._last[1][i]
        place[where], weights[where] = self._end[other] - 1, weight[piece]
    return {"rival": place, "rival_weight": weights}


def _depth_and_last(
  above: np.ndarray, length: np.ndarray, end: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Of copies [C], tokens above them, and the last place below them."""
  aboves, lengths = above.tolist(), length.tolist()
  depth, last = [0] * len(aboves), (end - 1).tolist()
  for i, j in enumerate(aboves):
    if j >= 0:
      depth[i] = depth[j] + lengths[j]
  for i in reversed(range(len(aboves))):
    if aboves[i] >= 0:
      last[aboves[i]] = max(last[aboves[i]], last[i])
  return np.array(depth, np.int64), np.array(last, np.int64)


def in_lines(
  lines: Sequence[Sequence[Sequence[int]]],
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """The pieces of lines, each of which is a tree that does not branch.

  Args:
    lines: of each the tokens of its pieces, prompt and steps.

  Returns:
    The flat tokens, int32 [X], and the fields above, offset and length of
    `Lesson`.
  """
  pieces = [piece for line in lines for piece in line]
  length = np.array([len(piece) for piece in pieces], np.int64)
  above = np.arange(len(pieces)) - 1
  num_pieces = np.array([len(line) for line in lines], np.int64)
  above[np.cumsum(num_pieces) - num_pieces] = -1
  tokens = np.concatenate([np.zeros(0, np.int32), *pieces], dtype=np.int32)
  return tokens, {
    "above": above,
    "offset": np.cumsum(length) - length,
    "length": length,
  }


def take(rows: TrainBatch, index: np.ndarray, batch_size: int) -> TrainBatch:
  """A batch of some of the rows, filled up with empty ones.

  Empty rows hold padding with no weight: the losses do not see them.

  Args:
    rows: any number.
    index: int [b], which to take, b <= batch_size.
    batch_size: B.

  Raises:
    ValueError: more rows than the batch has.
  """
  if len(index) > batch_size:
    raise ValueError(f"{len(index)} rows do not fit a batch of {batch_size}.")

  def take_field(field):
    out = np.zeros((batch_size, *field.shape[1:]), field.dtype)
    out[: len(index)] = field[index]
    return out

  return TrainBatch(
    **{
      name: None if field is None else take_field(field)
      for name, field in vars(rows).items()
    }
  )


def join(parts: Sequence[TrainBatch]) -> TrainBatch:
  """The rows of several batches, one after the other.

  Where some of them know nothing of a field, it is 0 in their rows: there is no
  weight on it. A field that none has stays None.

  Raises:
    ValueError: some are rows of trees, and some of lines.
  """

  def concatenate(name):
    fields = [getattr(part, name) for part in parts]
    known = next((field for field in fields if field is not None), None)
    if known is None:
      return None
    if name == "last" and any(field is None for field in fields):
      raise ValueError("Rows of trees cannot be joined to rows of lines.")
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
