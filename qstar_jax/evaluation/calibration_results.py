"""What a calibration leaves: files, a table, and a picture."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from qstar_jax import step_metrics
from qstar_jax.evaluation.calibration_job import Calibration
from qstar_jax.evaluation.scored_lines import ScoredLine
from qstar_jax.store import files

# More than a picture takes; only named where the disk is full.
_MAX_BYTES = 1_000_000

_TITLES = {"prm": "PRM", "value": "V"}


def write(directory: epath.Path, found: Calibration) -> None:
  """Writes calibration.json, steps.jsonl and calibration.png.

  Each appears whole or not at all.

  Args:
    directory: exists.
    found: to write.
  """
  summary = json.dumps(found.summary, indent=1, allow_nan=False) + "\n"
  files.publish_text(directory / "calibration.json", summary)
  records = (
    json.dumps(record) + "\n"
    for name, lines in found.lines.items()
    for record in _step_records(name, lines)
  )
  files.publish_text(directory / "steps.jsonl", "".join(records))
  figure = draw(found)
  files.publish(
    directory / "calibration.png",
    _MAX_BYTES,
    lambda aside: figure.savefig(pathlib.Path(aside), format="png", dpi=150),
  )


def _step_records(name: str, lines: Sequence[ScoredLine]):
  """One JSON-able record for each judged step."""
  for number, line in enumerate(lines):
    for depth, score, label in zip(
      line.depth.tolist(), line.score.tolist(), line.label.tolist(), strict=True
    ):
      if label >= 0:
        yield {
          "of": name,
          "problem": line.problem_key,
          "group": line.group,
          "line": number,
          "depth": depth,
          "score": score,
          "label": label,
        }


def table(found: Calibration) -> Table:
  """The figures as a person reads them, in %."""
  view = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
  view.add_column("of")
  for title in ("depth", "steps", "label", "score", "AUROC", "Brier", "ECE"):
    view.add_column(title, justify="right")
  for name in found.lines:
    part = found.summary[name]
    by_depth = part["by_depth"]
    # Of a single depth all has been said.
    for row in [part, *by_depth] if len(by_depth) > 1 else by_depth:
      view.add_row(
        _TITLES[name],
        str(row.get("depth", "all")),
        str(row["steps"]),
        f"{100 * row['mean_label']:.0f}",
        f"{100 * row['mean_score']:.0f}",
        *(_interval(row[figure]) for figure in ("auroc", "brier", "ece")),
      )
  view.caption = "\n".join(_notes(found.summary))
  return view


def _interval(figure: dict[str, Any]) -> str:
  """`91.2 [89, 93]` in %, or a dash where there is nothing to say."""
  if figure["value"] is None:
    return "-"
  low, high = figure["ci95"]
  return f"{100 * figure['value']:.1f} [{100 * low:.0f}, {100 * high:.0f}]"


def _notes(summary: dict[str, Any]) -> list[str]:
  """What the table's columns have no room for."""
  prm = summary["prm"]
  first = prm["first_error"]
  notes = [
    f"label, score: means; PRM against {prm['against']}: "
    f"{prm['problems']} problems, {prm['lines']} lines",
    f"first error at threshold {first['threshold']:.3f}: F1 "
    f"{_interval(first['f1'])} (wrong lines {_interval(first['wrong'])}, "
    f"right {_interval(first['right'])})",
  ]
  for group, row in prm.get("groups", {}).items():
    notes.append(
      f"PRMScore, {group}: {_interval(row['score'])} (negative F1 "
      f"{_interval(row['negative_f1'])}, F1 {_interval(row['f1'])})"
    )
  if num_too_long := prm.get("too_long_steps"):
    notes.append(f"{num_too_long} steps are too long for the network: left out")
  if "value" in summary:
    notes.append(f"V against {summary['value']['against']}")
  return notes


def draw(found: Calibration) -> Figure:
  """For each score a reliability diagram by depth, over its histogram."""
  figure = Figure(figsize=(5 * len(found.lines), 6), layout="constrained")
  panels = figure.subplots(
    2, len(found.lines), height_ratios=[3, 1], sharex=True, squeeze=False
  )
  for (diagram, histogram), (name, lines) in zip(
    panels.T, found.lines.items(), strict=True
  ):
    part = found.summary[name]
    diagram.set_title(f"{_TITLES[name]} against {part['against']}", fontsize=10)
    _draw_reliability(diagram, part)
    _draw_histogram(histogram, lines)
    histogram.set_xlabel(_TITLES[name])
  panels[0, 0].set_ylabel("mean label")
  panels[1, 0].set_ylabel("steps")
  return figure


def _draw_reliability(axes: Axes, part: dict[str, Any]) -> None:
  """Mean label against mean score of every bin; areas are numbers of steps."""
  axes.plot([0, 1], [0, 1], color="gray", lw=1, ls="--")
  most = max(max(row["bins"]["weight"]) for row in part["by_depth"])
  colours = matplotlib.colormaps["viridis"]
  for i, row in enumerate(part["by_depth"]):
    bins = {name: np.array(x, float) for name, x in row["bins"].items()}
    is_used = bins["weight"] > 0
    weight, score, label = (bins[name][is_used] for name in bins)
    colour = colours(0.8 * i / max(len(part["by_depth"]) - 1, 1))
    name = f"step {row['depth']}" if row["depth"] else "problem"
    axes.plot(score, label, color=colour, lw=1, alpha=0.6)
    axes.scatter(
      score,
      label,
      s=10 + 200 * weight / most,
      color=colour,
      alpha=0.75,
      lw=0,
      label=f"{name}: ECE {row['ece']['value']:.3f}",
    )
  axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
  axes.grid(alpha=0.3)
  legend = axes.legend(fontsize=8)
  for handle in legend.legend_handles:
    handle.set_sizes([30])


def _draw_histogram(axes: Axes, lines: Sequence[ScoredLine]) -> None:
  """How many steps have which score; labels share them out."""
  score, label = (
    np.concatenate([getattr(line, name) for line in lines])
    for name in ("score", "label")
  )
  is_judged = label >= 0
  score, label = score[is_judged], label[is_judged]
  axes.hist(
    [score, score],
    bins=2 * step_metrics.NUM_BINS,
    range=(0, 1),
    weights=[1 - label, label],
    stacked=True,
    color=["tab:orange", "tab:blue"],
    alpha=0.7,
    label=["label 0", "label 1"],
  )
  axes.grid(alpha=0.3)
  axes.legend(fontsize=8, loc="upper center")
