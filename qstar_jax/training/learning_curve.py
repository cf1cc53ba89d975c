"""The picture of a run: accuracy, losses and rating against time and tokens."""

import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qstar_jax.errors import UserError
from qstar_jax.store import files
from qstar_jax.training.displays import format_value
from qstar_jax.training.metrics_log import (
  FILE_NAME,
  Record,
  number,
  read_metrics,
)

_FILE_NAME = "learning_curve.png"
# In colours that no searcher of the panel above is likely to have.
_LOSSES = {"policy": "tab:purple", "value": "tab:brown", "prm": "tab:cyan"}
# More than a picture takes; only named where the disk is full.
_MAX_BYTES = 1_000_000


def learning_curve(run_dir: epath.PathLike) -> epath.Path:
  """Draws RUN/learning_curve.png from RUN/metrics.jsonl.

  Args:
    run_dir: of a run, finished or not.

  Returns:
    Where the picture is.

  Raises:
    UserError: the run has no metrics, or garbage in them, or the picture cannot
      be written.
  """
  run_dir = epath.Path(run_dir).resolve()
  records = read_metrics(run_dir)
  if not records:
    raise UserError(
      f"{run_dir} has no record in {FILE_NAME} to draw: give the directory of "
      "a run that `qstar train` has begun"
    )
  return _publish(draw(records, run_dir.name), run_dir / _FILE_NAME)


def ladder(run_dir: epath.PathLike) -> epath.Path | None:
  """Draws RUN/ladder.png: accuracy against budget, as the run went on.

  Returns:
    Where the picture is; None if the run has played at no budgets.

  Raises:
    UserError: as `learning_curve`.
  """
  run_dir = epath.Path(run_dir).resolve()
  rungs = [r for r in read_metrics(run_dir) if r["kind"] == "ladder"]
  if not rungs:
    return None
  return _publish(draw_ladder(rungs, run_dir.name), run_dir / "ladder.png")


def _publish(figure: Figure, path: epath.Path) -> epath.Path:
  files.publish(
    path,
    _MAX_BYTES,
    lambda aside: figure.savefig(pathlib.Path(aside), format="png", dpi=150),
  )
  return path


# Names may hold dollars, which would be read as formulas.
@matplotlib.rc_context({"text.parse_math": False})
def draw(records: list[Record], name: str) -> Figure:
  """The picture of at least one record, titled with the run's name."""
  # Not through pyplot, which would keep the figure for the program's life.
  has_gate = any(record["kind"] == "trial" for record in records)
  heights = [3, 2, 1.5] if has_gate else [3, 2]
  figure = Figure(figsize=(8, 1.4 * sum(heights)), layout="constrained")
  panels = figure.subplots(len(heights), sharex=True, height_ratios=heights)
  figure.suptitle(name, fontsize=13)
  _draw_accuracy(panels[0], records)
  _draw_losses(panels[1], records)
  if has_gate:
    _draw_rating(panels[2], records)
  _mark_warm_start(panels, records)
  panels[-1].set_xlabel("minutes")
  minutes = max(record["minutes"] for record in records)
  panels[-1].set_xlim(0, 1.03 * minutes or 1)
  _mark_tokens(panels[0], records)
  return figure


@matplotlib.rc_context({"text.parse_math": False})
def draw_ladder(rungs: list[Record], name: str) -> Figure:
  """The picture of at least one rung."""
  figure = Figure(figsize=(7, 4.5), layout="constrained")
  axes = figure.subplots()
  steps = list(dict.fromkeys(rung["step"] for rung in rungs))
  colors = matplotlib.colormaps["viridis"].resampled(len(steps)).colors
  for step, color in zip(steps, colors, strict=True):
    own = [r for r in rungs if r["step"] == step and r["top1"] is not None]
    axes.plot(
      [rung["budget"] for rung in own],
      [100 * rung["top1"] for rung in own],
      marker="o",
      markersize=4,
      color=color,
      label=f"step {step}",
    )
  budgets = sorted({rung["budget"] for rung in rungs})
  axes.set_xscale("log", base=2)
  axes.set_xticks(budgets, map(str, budgets))
  axes.set_ylim(-2, 102)
  axes.set_xlabel("tokens a problem, at most")
  axes.set_ylabel("held-out problems solved, %")
  axes.set_title(name, fontsize=12)
  axes.grid(alpha=0.3)
  axes.legend(fontsize=8, loc="best")
  return figure


def _draw_accuracy(axes: Axes, records: list[Record]) -> None:
  """Held-out accuracy of every searcher, and the solve rate of self-play."""
  evaluations = [
    record
    for record in records
    if record["kind"] == "evaluation" and record["top1"] is not None
  ]
  for searcher in dict.fromkeys(record["searcher"] for record in evaluations):
    of_searcher = [r for r in evaluations if r["searcher"] == searcher]
    minutes = [record["minutes"] for record in of_searcher]
    (line,) = axes.plot(
      minutes,
      [100 * record["top1"] for record in of_searcher],
      marker="o",
      markersize=4,
      label=_label(of_searcher[-1]),
    )
    intervals = [
      (record["minutes"], *(100 * bound for bound in record["ci95"]))
      for record in of_searcher
      if None not in record["ci95"]
    ]
    if intervals:
      axes.vlines(*zip(*intervals, strict=True), color=line.get_color())
      axes.fill_between(
        *zip(*intervals, strict=True), color=line.get_color(), alpha=0.15, lw=0
      )
  minutes, rates = _series(records, "iteration", "solve_rate")
  axes.plot(
    minutes,
    [100 * rate for rate in rates],
    color="gray",
    linewidth=1,
    linestyle=":",
    marker=".",
    markersize=3,
    label="solved in self-play (training problems)",
  )
  minutes, aurocs = _series(records, "step_evaluation", "auroc")
  if minutes:
    axes.plot(
      minutes,
      [100 * auroc for auroc in aurocs],
      color="black",
      marker="s",
      markersize=3,
      label="AUROC of the PRM on held-out labels",
    )
  axes.set_ylim(-2, 102)
  axes.set_ylabel("solved, %")
  axes.set_title("held-out problems: top-1 with 95 % interval", fontsize=10)
  axes.grid(alpha=0.3)
  axes.legend(fontsize=8, loc="best")


def _label(evaluation: Record) -> str:
  """A searcher with its budget and who judged inside the search."""
  tokens = format_value(evaluation.get("tokens_per_problem"))
  terminal = format_value(evaluation.get("terminal_value"))
  budget = f"{tokens} tokens/problem, terminal value: {terminal}"
  return f"{evaluation['searcher']} ({budget})"


def _draw_losses(axes: Axes, records: list[Record]) -> None:
  """Every loss, apart for the warm start and self-play: their data differ."""
  values = []
  for name, color in _LOSSES.items():
    for kind, label in (("warm_start", None), ("iteration", name)):
      minutes, losses = _series(records, kind, name)
      axes.plot(
        minutes,
        losses,
        color=color,
        linewidth=1.2,
        marker=".",
        markersize=3,
        label=label,
      )
      values += losses
  if values and min(values) > 0:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    # Within a decade there may be no major tick.
    is_narrow = max(values) < 10 * min(values)
    axes.yaxis.set_minor_formatter("{x:g}" if is_narrow else "")
  axes.set_ylabel("training losses, nats")
  axes.grid(alpha=0.3, which="both")
  axes.legend(fontsize=8, loc="best")


def _draw_rating(axes: Axes, records: list[Record]) -> None:
  """Elo of the players of a gate, and the candidates that it refused."""
  trials = [record for record in records if record["kind"] == "trial"]
  accepted = [r for r in trials if r["decision"] == "accepted"]
  others = [r for r in trials if r["decision"] != "accepted"]
  axes.step(
    [record["minutes"] for record in trials],
    [record["rating"] for record in trials],
    where="post",
    color="tab:green",
    linewidth=1,
  )
  for some, marker, label in (
    (accepted, "o", "accepted"),
    (others, "x", "refused, or no result"),
  ):
    axes.scatter(
      [record["minutes"] for record in some],
      [record["rating"] for record in some],
      marker=marker,
      s=20,
      color="tab:green" if some is accepted else "gray",
      label=label,
    )
  axes.set_ylabel("Elo of the player")
  axes.grid(alpha=0.3)
  axes.legend(fontsize=8, loc="best")


def _series(
  records: list[Record], kind: str, name: str
) -> tuple[list[float], list[float]]:
  """Minutes and values of a number, where records of a kind have it."""
  points = [
    (record["minutes"], value)
    for record in records
    if record["kind"] == kind and (value := number(record, name)) is not None
  ]
  return [minute for minute, _ in points], [value for _, value in points]


def _mark_tokens(axes: Axes, records: list[Record]) -> None:
  """A scale above the panel: what self-play had generated by then."""
  minutes, tokens = _series(records, "iteration", "tokens")
  if not tokens:
    return
  millions = np.array(tokens) / 1e6
  marks = MaxNLocator(6).tick_values(0, millions[-1])
  marks = marks[(marks >= millions[0]) & (marks <= millions[-1])]
  above = axes.twiny()
  above.set_xlim(axes.get_xlim())
  above.set_xticks(
    np.interp(marks, millions, minutes), [f"{mark:g}" for mark in marks]
  )
  above.tick_params(labelsize=8)
  above.set_xlabel("million tokens of self-play", fontsize=8)


def _mark_warm_start(panels: Sequence[Axes], records: list[Record]) -> None:
  minutes = [r["minutes"] for r in records if r["kind"] == "warm_start"]
  if not minutes:
    return
  for axes in panels:
    axes.axvspan(0, minutes[-1], color="gray", alpha=0.12, lw=0)
    axes.axvline(minutes[-1], color="gray", linewidth=0.8, linestyle="--")
  panels[0].annotate(
    "end of warm start",
    (minutes[-1], 1),
    xycoords=("data", "axes fraction"),
    xytext=(3, -3),
    textcoords="offset points",
    verticalalignment="top",
    fontsize=8,
    color="dimgray",
  )
