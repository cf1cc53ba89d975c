"""Labelled lines to learn from, and some kept back to judge the PRM by."""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from qstar_jax import checkpoint
from qstar_jax.config import DataConfig, ExperimentConfig, TextConfig
from qstar_jax.data import labelled
from qstar_jax.data.reading import Report
from qstar_jax.distributed import hosts
from qstar_jax.domains import make_domain
from qstar_jax.domains.splits import TrainingProblems, held_out_by
from qstar_jax.errors import UserError
from qstar_jax.labels.codec import LINES
from qstar_jax.labels.merge import merge
from qstar_jax.learner.labelled import LabelledTokens
from qstar_jax.records import NO_LABEL, LabelledLine
from qstar_jax.replay import EMPTY_CURSOR
from qstar_jax.store import files
from qstar_jax.store.reader import StoreReader
from qstar_jax.store.writer import StoreWriter
from qstar_jax.text.vocabulary import Vocabulary
from qstar_jax.text.windows import excerpts

# Stream of random numbers; see `trainer` for the others.
_ORDER = 6
_SHARD_LINES = 1024
_REFUSED = "refused_records.txt"
# Shards' worth of lines that are shuffled together; fewer than stay open.
_BLOCKS = 48
# Lines read at once, in the order that they are stored in.
_LINES_PER_READ = 1024


def import_outside(
  data: DataConfig, out: epath.Path, check_stop: Callable[[], None]
) -> dict[str, Any]:
  """Writes an outside file as a dataset of merged lines, once.

  Beside it, refused_records.txt names the first hundred records that cannot be
  used, if there are any.

  Killed at any instant and called again, it begins anew or finds all done.

  Args:
    data: names the file and says what happens to bad records.
    out: directory of the dataset, for one process.
    check_stop: called for every line; may raise.

  Returns:
    records: read, refused: those that could not be used, message: on those;
    empty if there are none.

  Raises:
    UserError: no such file, a bad record, or `out` cannot be written.
  """
  with StoreWriter(out, LINES, shard_records=_SHARD_LINES) as writer:
    if not writer.progress:
      writer.truncate(EMPTY_CURSOR)
      report = Report(data.on_error)
      for line in merge(labelled.read_outside(data.labels, report)):
        check_stop()
        if (line.label != NO_LABEL).any():
          writer.extend([line])
      found = {
        "records": report.num_records,
        "refused": report.refused.total(),
        "message": f"{report}; {_REFUSED} names them"
        if report.messages
        else "",
      }
      if report.messages:
        text = "".join(f"{message}\n" for message in report.messages)
        files.publish_text(out.parent / _REFUSED, text)
      writer.extend([], progress=found)
    return writer.progress


def open_labels(
  config: ExperimentConfig,
  run_dir: epath.Path,
  problems: TrainingProblems,
  check_stop: Callable[[], None],
) -> "LabelledData":
  """The dataset that a run learns from: of `data.labels`, or its import.

  Args:
    config: of the run.
    run_dir: an outside file is imported into RUN/labels.
    problems: of the run's domain.
    check_stop: see `import_outside`.

  Raises:
    UserError: as `import_outside` and `LabelledData`.
  """
  directory, imported = config.data.labels, {}
  if labelled.is_outside(directory):
    directory = run_dir / "labels"
    imported = hosts.on_first(
      lambda: import_outside(config.data, directory, check_stop)
    )
  # A dataset may have grown since the run began.
  meta = checkpoint.latest_meta(run_dir) or {}
  lines = LabelledData(
    directory,
    config.data,
    problems,
    seed=config.seed,
    cursors=meta.get("labels"),
  )
  lines.counts |= imported
  return lines


class Drawn(NamedTuple):
  """Rows for the learner.

  Attributes:
    rows: each a line, or a window of one.
    num_lines: that they were drawn from, those that gave none included.
    num_too_long: labels left out, since their steps do not fit a row.
  """

  rows: list[LabelledTokens]
  num_lines: int
  num_too_long: int


def is_held_out(problem_key: str, share: float) -> bool:
  """Whether a problem is among those that are kept back.

  Args:
    problem_key: as in `LabelledLine`; all its lines go the same way.
    share: of all problems, in [0, 1]; a larger one keeps these back too.
  """
  digest = hashlib.sha256(problem_key.encode()).digest()
  return int.from_bytes(digest[:8]) < share * 2**64


def _is_kept_back(
  line: LabelledLine, share: float, problems: TrainingProblems
) -> bool:
  """Whether a line is never learned from; see `DataConfig.held_out_share`.

  Raises:
    UserError: it is of the run's domain, but has a problem that is none.
  """
  if is_held_out(line.problem_key, share):
    return True
  domain = problems.domain
  return line.domain == domain.name and problems.is_held_out(
    domain.parse(line.prompt)
  )


def learned_keys(
  config: ExperimentConfig, run_dir: epath.Path
) -> frozenset[str]:
  """Keys of the problems whose labelled lines a run learns from.

  What judges the run is to have others: PRMBench is made of the problems that
  PRM800K trains on.

  Args:
    config: of the run; without `data.labels` there are none.
    run_dir: holds what the run has imported.

  Raises:
    UserError: the dataset is gone or damaged.
  """
  if not config.data.labels:
    return frozenset()
  domain = make_domain(config.domain.name, config.domain.options)
  problems = TrainingProblems.without(
    domain, itertools.chain(*held_out_by(config, domain))
  )
  imported = run_dir / "labels"
  source = str(imported) if imported.exists() else config.data.labels
  return frozenset(
    line.problem_key
    for line in labelled.read(source, Report("skip"))
    if not _is_kept_back(line, config.data.held_out_share, problems)
  )


def shuffled(num_lines: int, rng: np.random.Generator) -> np.ndarray:
  """The numbers below `num_lines` in an order that few shards need be open for.

  All orders are equally likely up to some 50,000. Of more, blocks of lines that
  are stored together are shuffled, and then the lines of so many blocks.

  Args:
    num_lines: >= 0.
    rng: consumed.
  """
  size = _SHARD_LINES * _BLOCKS
  if num_lines <= size:
    return rng.permutation(num_lines)
  blocks = rng.permutation(math.ceil(num_lines / _SHARD_LINES))
  order = (blocks[:, None] * _SHARD_LINES + np.arange(_SHARD_LINES)).ravel()
  order = order[order < num_lines]
  for begin in range(0, num_lines, size):
    rng.shuffle(order[begin : begin + size])
  return order


class LabelledData:
  """A dataset of labelled lines, read as they are needed.

  Attributes:
    cursors: how far it is listed; see `StoreReader`.
    held_out: lines of problems that are never drawn.
    counts: what to tell of it.
  """

  def __init__(
    self,
    directory: epath.PathLike,
    data: DataConfig,
    problems: TrainingProblems,
    *,
    seed: int,
    cursors: Mapping[str, Any] | None = None,
  ):
    """Lists the dataset and reads what is held out.

    Args:
      directory: of the dataset.
      data: says how much is held out.
      problems: of the domain; what it holds out is not drawn either.
      seed: of the order of the lines.
      cursors: list the dataset as it was then.

    Raises:
      UserError: there is no such dataset, or it is empty or damaged.
    """
    self._reader = StoreReader(directory, LINES, cursors=cursors)
    self._directory = directory
    self._share = data.held_out_share
    self._problems = problems
    self._seed = seed
    self.cursors = self._reader.cursors
    if not len(self):
      raise UserError(f"{directory} has no labelled lines: name another")
    found = filter(self._is_held_out, self._shuffled() if self._share else ())
    self.held_out = list(itertools.islice(found, data.held_out_lines))
    self.counts: dict[str, Any] = {
      "labelled_lines": len(self),
      "held_out_lines": len(self.held_out),
    }

  def __len__(self) -> int:
    return len(self._reader)

  def corpus(self, num_lines: int) -> list[str]:
    """Prompts and steps of some lines that may be trained on."""
    lines = itertools.filterfalse(self._is_held_out, self._shuffled())
    return [
      text
      for line in itertools.islice(lines, num_lines)
      for text in (line.prompt, *line.steps)
    ]

  def draw(
    self,
    position: int,
    num_rows: int,
    vocabulary: Vocabulary,
    text: TextConfig,
  ) -> Drawn:
    """The rows of the lines from a position on, in an order that is shuffled
    anew each time that all have been drawn.

    Args:
      position: lines drawn before.
      num_rows: wanted, >= 1. Of the last line some windows may be left out.
      vocabulary: to encode with.
      text: bounds the windows.

    Raises:
      UserError: no line has a label that fits.
    """
    rows: list[LabelledTokens] = []
    num_lines = num_too_long = 0
    for line in self._endless(position):
      num_lines += 1
      if not self._is_held_out(line):
        found, too_long = tokenise(line, vocabulary, text)
        rows += found
        num_too_long += too_long
      if len(rows) >= num_rows:
        break
      if num_lines >= len(self) and not rows:
        raise UserError(
          f"{self._directory}: none of its {len(self)} lines has a labelled "
          f"step that fits rows of {text.max_line_tokens} tokens and is not "
          "held out; raise text.max_step_tokens, or lower data.held_out_share"
        )
    return Drawn(rows[:num_rows], num_lines, num_too_long)

  def _is_held_out(self, line: LabelledLine) -> bool:
    return _is_kept_back(line, self._share, self._problems)

  def _order(self, index: int) -> np.ndarray:
    """One of many orders of the lines; see `shuffled`."""
    rng = np.random.default_rng([self._seed, _ORDER, index])
    return shuffled(len(self), rng)

  def _shuffled(self) -> Iterator[LabelledLine]:
    order = self._order(0)
    for start in range(0, len(self), _LINES_PER_READ):
      yield from self._read(order[start : start + _LINES_PER_READ])

  def _endless(self, position: int) -> Iterator[LabelledLine]:
    while True:
      epoch, first = divmod(position, len(self))
      order = self._order(1 + epoch)
      order = order[first : first + _LINES_PER_READ]
      yield from self._read(order)
      position += len(order)

  def _read(self, indices: Sequence[int]) -> list[LabelledLine]:
    """The lines at the indices; every shard is opened once."""
    stored = sorted(map(int, indices))
    lines = dict(zip(stored, self._reader.read(stored), strict=True))
    return [lines[index] for index in indices]


def tokenise(
  line: LabelledLine, vocabulary: Vocabulary, text: TextConfig
) -> tuple[list[LabelledTokens], int]:
  """The rows of a labelled line, and the number of labels in none.

  There is a row for each window of the line with labels, up to its last one.

  Args:
    line: labelled.
    vocabulary: to encode with.
    text: bounds the windows.
  """
  left = line.label.copy()
  rows = []
  for window, prompt, note, steps in excerpts(
    vocabulary,
    line.prompt,
    line.steps,
    text,
    is_finished=line.is_finished,
  ):
    own = np.full_like(line.label, NO_LABEL)
    own[window.begin : window.end] = left[window.begin : window.end]
    left[window.begin : window.end] = NO_LABEL
    labelled_steps = np.flatnonzero(own != NO_LABEL)
    if labelled_steps.size:
      end = labelled_steps[-1] + 1
      label = own[window.first : end].tolist()
      rows.append(LabelledTokens(prompt + note, steps[: len(label)], label))
  return rows, int((left != NO_LABEL).sum())
