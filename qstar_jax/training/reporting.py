"""What a training run tells: files for machines, a view for people."""

import sys
from collections.abc import Mapping
from typing import Any, TextIO

from etils import epath
from rich.console import Console

from qstar_jax.config import ExperimentConfig
from qstar_jax.distributed import hosts
from qstar_jax.store import files
from qstar_jax.training.displays import (
  Display,
  JsonDisplay,
  LineDisplay,
  LiveDisplay,
  RunStatus,
)
from qstar_jax.training.metrics_log import MetricsLog, Record
from qstar_jax.training.tensorboard_log import TensorBoardLog


class Reporter:
  """Reports on a run; a context manager, which holds the terminal.

  Every record goes to RUN/metrics.jsonl and RUN/tensorboard at once, and then
  to the display: a live view on a terminal, otherwise one greppable line each.

  A record has `kind` and `step`, the gradient step it speaks of. To be resumed
  without gap or duplicate, a run logs what belongs to a step before it saves
  that step's checkpoint, and calls `truncate` with the step it restored.
  """

  def __init__(
    self,
    run_dir: epath.PathLike,
    *,
    config: ExperimentConfig,
    stream: TextIO | None = None,
    is_terminal: bool | None = None,
    json_only: bool = False,
  ):
    """Opens the run's files; what they hold already is kept and shown.

    Args:
      run_dir: made if missing.
      config: of the run.
      stream: to display on; standard output by default.
      is_terminal: show a live view; by default, if the stream is a terminal
        that can move its cursor.
      json_only: display the lines of metrics.jsonl and nothing else.

    Raises:
      UserError: metrics.jsonl holds garbage, or a file cannot be written.
    """
    run_dir = epath.Path(run_dir)
    files.make_folder(run_dir)
    self._log = MetricsLog(run_dir)
    self._tensorboard = TensorBoardLog(run_dir / "tensorboard")
    self._status = RunStatus(config, self._log.minutes)
    self._status.reset(self._log.records)
    stream = sys.stdout if stream is None else stream
    if is_terminal is None:
      is_terminal = (
        stream.isatty() and not Console(file=stream).is_dumb_terminal
      )
    self._display: Display
    if json_only:
      self._display = JsonDisplay(stream)
    elif is_terminal:
      self._display = LiveDisplay(stream, self._status)
    else:
      self._display = LineDisplay(stream, self._status)

  def __enter__(self) -> "Reporter":
    self._display.__enter__()
    return self

  def __exit__(self, *error) -> None:
    self._display.__exit__(*error)

  @property
  def minutes(self) -> float:
    """That the run has taken, interruptions left out."""
    return self._log.minutes()

  def log(self, record: Mapping[str, Any]) -> None:
    """Reports a record.

    Args:
      record: numbers, texts, and lists of numbers by name. By `kind` it needs,
        besides `step` >= 0:
        `warm_start`: nothing more.
        `iteration`: `iteration`, counted from 1 and just finished. The time
          left is estimated from its fields `seconds_*`, which add up to the
          iteration's duration.
        `self_play`: nothing more; a shard of an actor in `run_mode` files.
        `evaluation`: `phase` (random, warm_start, self_play or offline),
          `searcher`, `top1` in [0, 1] and `ci95`, its interval [low, high].
        `step_evaluation`: `phase`, and what `step_evaluation.prm_figures` has.
        `ladder`: `budget` in tokens, `top1` and `ci95`.
        `trial`: `decision`, `wins`, `losses`, `ties` and `rating` of the gate.
        `data`: nothing more; what there is to learn from besides self-play.
        `warning`: `message`, what is wrong and what to do about it.

    Raises:
      UserError: a file cannot be written.
      ValueError: the record lacks something.
    """
    written = self._log.append(record)
    self._tensorboard.add(written["step"], written["time"], _scalars(written))
    self._status.add(written)
    self._display.record(written)

  def progress(
    self, phase: str, done: int, total: int, **fields: float | str
  ) -> None:
    """Says how far a phase is: `done` of `total`. Cheap; call it often.

    Args:
      phase: e.g. `warm_start`, `self_play`, `learn`, `evaluate`.
      done: 0 to total.
      total: > 0.
      **fields: shown beside it.
    """
    self._display.progress(phase, done, total, fields)

  def truncate(self, step: int) -> None:
    """Forgets what was reported of later steps, which will be run again.

    Args:
      step: of the checkpoint the run goes on from; -1 forgets everything.
    """
    self._log.truncate(step)
    self._tensorboard.restart(step + 1)
    self._status.reset(self._log.records)


def open_reporter(run_dir: epath.PathLike, **options) -> "Reporter | Silence":
  """A `Reporter`, or silence where another host speaks for all.

  Args:
    run_dir: see `Reporter`.
    **options: likewise.

  Raises:
    UserError: its files cannot be used, on all hosts.
  """
  opened: list[Reporter] = []
  hosts.on_first(lambda: opened.append(Reporter(run_dir, **options)))
  return opened[0] if opened else Silence()


class Silence:
  """In the place of a `Reporter` where another process speaks."""

  minutes = 0.0

  def __enter__(self) -> "Silence":
    return self

  def __exit__(self, *error) -> None:
    pass

  def log(self, record: Mapping[str, Any]) -> None:
    """Says nothing."""

  def progress(self, phase: str, done: int, total: int, **fields) -> None:
    """Says nothing."""

  def truncate(self, step: int) -> None:
    """Forgets nothing."""


def _scalars(record: Record) -> dict[str, float]:
  """The numbers of a record by TensorBoard tag, e.g. `iteration/loss`."""
  group = record["kind"]
  if group == "evaluation":
    # One curve for every searcher or budget: the phases follow one another.
    group = f"{group}_{record['searcher']}"
  elif group == "ladder":
    group = f"{group}_{record['budget']}"
  return {
    f"{group}/{name}": value
    for name, value in record.items()
    if isinstance(value, int | float) and name not in ("step", "time")
  }
