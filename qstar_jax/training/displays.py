"""How a run looks to a person: a live view, or lines of text."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from qstar_jax.config import ExperimentConfig
from qstar_jax.training.metrics_log import Record, number

_REFRESH_PER_SECOND = 4
# Between two lines of a long phase.
_LINE_EVERY_SECONDS = 30.0

_LOSSES = ("loss", "policy", "value", "prm")
# The width a column of the evaluations needs the terminal to have.
_EVALUATION_COLUMNS = {
  "phase": 0,
  "searcher": 0,
  "top-1 %": 0,
  "95 % interval": 50,
  "any %": 60,
  "tokens/problem": 76,
  "terminal": 88,
}


class RunStatus:
  """What is known of a run from its records, for the displays to show.

  Attributes:
    config: of the run.
    iteration: iterations finished.
    latest: the newest record of every kind.
    losses: the newest record that has losses; empty if there is none.
    evaluations: the newest evaluation by (phase, searcher), as they first came.
  """

  def __init__(self, config: ExperimentConfig, minutes: Callable[[], float]):
    """Knows nothing yet; `minutes` tells how long the run has taken."""
    self.config = config
    self._minutes = minutes
    self.reset([])

  def reset(self, records: Sequence[Record]) -> None:
    """Knows these records and no others."""
    self.latest: dict[str, Record] = {}
    self.losses: Record = {}
    self.evaluations: dict[tuple[str, str], Record] = {}
    self._iteration_seconds: list[float] = []
    for record in records:
      self.add(record)

  def add(self, record: Record) -> None:
    """Takes in a newer record."""
    self.latest[record["kind"]] = record
    if "loss" in record:
      self.losses = record
    if record["kind"] == "evaluation":
      self.evaluations[record["phase"], record["searcher"]] = record
    if record["kind"] == "iteration":
      parts = [name for name in record if name.startswith("seconds_")]
      self._iteration_seconds.append(
        sum(number(record, name) or 0.0 for name in parts)
      )

  @property
  def iteration(self) -> int:
    return self.latest.get("iteration", {}).get("iteration", 0)

  def elapsed_seconds(self) -> float:
    """Time the run has taken, before a resume too."""
    return 60 * self._minutes()

  def seconds_left(self) -> float | None:
    """Time until the end, by the mean iteration; None before the first.

    How soon a bound on tokens ends the run is not foreseen.
    """
    # Taken at once: the main thread may reset them while a display draws.
    newest, seconds = self.latest.get("iteration"), self._iteration_seconds
    if newest is None or not seconds:
      return None
    to_do = self.config.num_iterations - newest["iteration"]
    to_do *= sum(seconds) / len(seconds)
    elapsed = self.elapsed_seconds()
    left = to_do - (elapsed - 60 * newest["minutes"])
    if self.config.max_minutes > 0:
      left = min(left, 60 * self.config.max_minutes - elapsed)
    return max(0.0, left)


class Display(Protocol):
  """Shows a run on a stream, within a `with` statement."""

  def __enter__(self) -> Any: ...

  def __exit__(self, *error) -> None: ...

  def record(self, record: Record) -> None:
    """Shows a record that the status has taken in."""

  def progress(
    self, phase: str, done: int, total: int, fields: Mapping[str, Any]
  ) -> None:
    """Shows how far a phase is."""


class JsonDisplay:
  """The lines of metrics.jsonl, for programs."""

  def __init__(self, stream: TextIO):
    self._stream = stream

  def __enter__(self) -> None:
    pass

  def __exit__(self, *error) -> None:
    pass

  def record(self, record: Record) -> None:
    print(json.dumps(record), file=self._stream, flush=True)

  def progress(self, *_) -> None:
    pass


class LineDisplay:
  """One line of `name=value` per record, and now and then one of progress."""

  def __init__(self, stream: TextIO, status: RunStatus):
    self._stream = stream
    self._status = status
    self._last_line_at = time.monotonic()

  def __enter__(self) -> None:
    pass

  def __exit__(self, *error) -> None:
    pass

  def record(self, record: Record) -> None:
    status = self._status
    head = record["kind"]
    hidden = {"kind", "time", "minutes", "non_finite"}
    if head == "iteration":
      head += f" {status.iteration}/{status.config.num_iterations}"
      hidden.add("iteration")
    fields = {k: v for k, v in record.items() if k not in hidden}
    fields["elapsed"] = format_duration(status.elapsed_seconds())
    left = status.seconds_left()
    if left is not None:
      fields["eta"] = format_duration(left)
    self._print(head, fields)

  def progress(
    self, phase: str, done: int, total: int, fields: Mapping[str, Any]
  ) -> None:
    if time.monotonic() - self._last_line_at < _LINE_EVERY_SECONDS:
      return
    elapsed = format_duration(self._status.elapsed_seconds())
    head = f"progress {phase} {done}/{total}"
    self._print(head, {**fields, "elapsed": elapsed})

  def _print(self, head: str, fields: Mapping[str, Any]) -> None:
    print(head, *format_fields(fields), file=self._stream, flush=True)
    self._last_line_at = time.monotonic()


class LiveDisplay:
  """A view that is drawn over itself a few times a second."""

  def __init__(self, stream: TextIO, status: RunStatus):
    self._status = status
    self._phase: tuple[str, int, int, Mapping[str, Any]] | None = None
    self._live = Live(
      self,
      console=Console(file=stream, force_terminal=True),
      refresh_per_second=_REFRESH_PER_SECOND,
    )

  def __enter__(self) -> None:
    self._live.start(refresh=True)

  def __exit__(self, *error) -> None:
    self._phase = None  # Over, or cut short: the view that stays has no bar.
    self._live.stop()

  def record(self, record: Record) -> None:
    pass  # The next refresh shows the status.

  def progress(
    self, phase: str, done: int, total: int, fields: Mapping[str, Any]
  ) -> None:
    self._phase = (phase, done, total, fields)

  def __rich_console__(
    self, console: Console, options: ConsoleOptions
  ) -> Iterator[RenderableType]:
    """The view as it is now; called from the refreshing thread."""
    yield Text(self._status.config.name, style="bold", overflow="ellipsis")
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for name, content in self._rows(options.max_width):
      grid.add_row(name, content)
    yield grid
    # Copied: the main thread may add one meanwhile.
    if evaluations := list(self._status.evaluations.values()):
      yield _evaluations_table(evaluations, options.max_width)

  def _rows(self, width: int) -> Iterator[tuple[str, RenderableType]]:
    status = self._status
    total = status.config.num_iterations
    yield "iteration", _bar(status.iteration, total, width)
    if self._phase is not None:
      phase, done, phase_total, fields = self._phase
      yield phase.replace("_", "-"), _bar(done, phase_total, width)
      if fields:
        yield "", Text(" ".join(format_fields(fields)))
    elapsed = format_duration(status.elapsed_seconds())
    left = status.seconds_left()
    remaining = "" if left is None else f", {format_duration(left)} left"
    yield "time", Text(f"{elapsed}{remaining}")
    if losses := status.losses:
      shown = {name: losses[name] for name in _LOSSES if name in losses}
      yield "losses", Text(" ".join(format_fields(shown)))
    newest = status.latest.get("iteration", {})
    if "solve_rate" in newest:
      solved = _percent(number(newest, "solve_rate"))
      speed = format_value(newest.get("tokens_per_second"))
      yield "in play", Text(f"{solved} % solved, {speed} tokens/s")
    if newest := status.latest.get("step_evaluation"):
      auroc = _percent(number(newest, "auroc"))
      yield "PRM", Text(f"AUROC {auroc} % on {newest['steps']} held-out steps")
    if trial := status.latest.get("trial"):
      score = " ".join(
        f"{trial[name]} {name}" for name in ("wins", "losses", "ties")
      )
      rating = f"rating {trial['rating']:+.0f}"
      yield "gate", Text(f"{trial['decision']}, {score}, {rating}")
    if warning := status.latest.get("warning"):
      text = f"step {warning['step']}: {warning['message']}"
      yield "warning", Text(text, style="yellow")


def _bar(done: int, total: int, width: int) -> RenderableType:
  """`done/total` and a bar, which a narrow terminal shortens or drops."""
  label = Text(f"{done}/{total}", no_wrap=True)
  bar_width = min(40, width - 36)
  if bar_width < 5:
    return label
  grid = Table.grid(padding=(0, 1))
  grid.add_column(width=11)
  grid.add_row(label, ProgressBar(total, done, width=bar_width))
  return grid


def _evaluations_table(evaluations: list[Record], width: int) -> Table:
  """The newest evaluations, with as many columns as fit."""
  table = Table(
    title="held-out problems", title_justify="left", box=None, pad_edge=False
  )
  columns = [
    name for name, need in _EVALUATION_COLUMNS.items() if width >= need
  ]
  for name in columns:
    is_text = name in ("phase", "searcher", "terminal")
    table.add_column(name, justify="left" if is_text else "right", no_wrap=True)
  for record in evaluations:
    low, high = record["ci95"]
    cells = {
      "phase": record["phase"].replace("_", "-"),
      "searcher": record["searcher"],
      "top-1 %": _percent(record["top1"]),
      "95 % interval": f"{_percent(low)} to {_percent(high)}",
      "any %": _percent(number(record, "any")),
      "tokens/problem": format_value(record.get("tokens_per_problem")),
      "terminal": format_value(record.get("terminal_value")),
    }
    table.add_row(*(Text(cells[name]) for name in columns))
  return table


def _percent(share: float | None) -> str:
  return "-" if share is None else f"{100 * share:.1f}"


def format_duration(seconds: float) -> str:
  """E.g. `45s`, `2m10s`, `3h05m`."""
  seconds = round(seconds)
  if seconds < 60:
    return f"{seconds}s"
  if seconds < 3600:
    return f"{seconds // 60}m{seconds % 60:02}s"
  return f"{seconds // 3600}h{seconds % 3600 // 60:02}m"


def format_value(value: Any) -> str:
  """A number in four digits or, if it is large, as a whole one."""
  if value is None:
    return "-"
  if isinstance(value, list):
    return f"[{','.join(map(format_value, value))}]"
  if isinstance(value, float):
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
  return str(value)


def format_fields(fields: Mapping[str, Any]) -> list[str]:
  """`name=value` for each, e.g. `tokens/s=8123`."""
  return [
    f"{name.replace('_per_second', '/s')}={format_value(value)}"
    for name, value in fields.items()
  ]
