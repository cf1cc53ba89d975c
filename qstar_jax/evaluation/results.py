"""What a comparison of searchers leaves: files, and a picture."""

import csv
import io
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib
from etils import epath
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from rich.text import Text

from qstar_jax.store import files

# More than a picture takes; only named where the disk is full.
_MAX_BYTES = 1_000_000
# Tell lines apart where colours do not.
_MARKERS = "osD^vPX<>*h"

Row = dict[str, Any]

# Of the table: title, and how a row's value is shown.
_COLUMNS = {
  "searcher": lambda row: (
    row["searcher"] + ("*" if row["terminal_value"] == "outcome" else "")
  ),
  "budget": lambda row: "-" if row["budget"] is None else str(row["budget"]),
  "top-1, %": lambda row: (
    f"{100 * row['top1']:.0f} "
    f"[{100 * row['ci95'][0]:.0f}, {100 * row['ci95'][1]:.0f}]"
  ),
  "any": lambda row: f"{100 * row['any']:.0f}",
  "mean": lambda row: f"{100 * row['mean']:.0f}",
  "tokens": lambda row: f"{row['tokens_per_problem']:.0f}",
  "tok/s": lambda row: f"{row['tokens_per_second']:.0f}",
  "lanes": lambda row: f"{100 * row['lane_utilisation']:.0f}",
  "slots": lambda row: f"{100 * row['decode_utilisation']:.0f}",
  "KV": lambda row: f"{row['kv_sharing']:.1f}",
}
_CAPTION = (
  "* asked the verifier. lanes: % of trees at work; slots: % of decoded tokens "
  "of use; KV: tokens in context / tokens stored"
)


def write(
  directory: epath.Path, rows: Sequence[Row], records: Sequence[Row]
) -> None:
  """Writes results.json, results.csv, problems.jsonl and accuracy.png.

  Each appears whole or not at all.

  Args:
    directory: made if missing.
    rows: a summary for each searcher and budget.
    records: one for each play.
  """
  directory.mkdir(parents=True, exist_ok=True)
  table = io.StringIO()
  writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
  writer.writeheader()
  for row in rows:
    writer.writerow(
      {
        name: json.dumps(value) if isinstance(value, list | dict) else value
        for name, value in row.items()
      }
    )
  texts = {
    "results.json": json.dumps({"results": list(rows)}, indent=1) + "\n",
    "results.csv": table.getvalue(),
    "problems.jsonl": "".join(json.dumps(r) + "\n" for r in records),
  }
  for name, text in texts.items():
    files.publish_text(directory / name, text)
  figure = draw(rows)
  files.publish(
    directory / "accuracy.png",
    _MAX_BYTES,
    lambda aside: figure.savefig(pathlib.Path(aside), format="png", dpi=150),
  )


# Names may hold dollars, which would be read as formulas.
@matplotlib.rc_context({"text.parse_math": False})
def draw(rows: Sequence[Row]) -> Figure:
  """Top-1 against tokens, a line for each searcher, 95 % intervals shaded."""
  figure = Figure(figsize=(10, 6), layout="constrained")
  axes = figure.add_subplot()
  # The legend then stands in the order in which the lines end.
  most = {
    row["searcher"]: (row["top1"], row["tokens_per_problem"])
    for row in sorted(rows, key=lambda row: row["tokens_per_problem"])
  }
  names = sorted(most, key=most.__getitem__, reverse=True)
  colours = matplotlib.colormaps["tab20"]
  for i, name in enumerate(names):
    points = sorted(
      (row["tokens_per_problem"], 100 * row["top1"], *row["ci95"])
      for row in rows
      if row["searcher"] == name
    )
    tokens, top1, low, high = (list(x) for x in zip(*points, strict=True))
    low, high = [100 * x for x in low], [100 * x for x in high]
    uses_verifier = any(
      row["terminal_value"] == "outcome"
      for row in rows
      if row["searcher"] == name
    )
    label = f"{name} (verifier)" if uses_verifier else name
    style = "--" if uses_verifier else "-"
    # Dark and light tones come in pairs: neighbours get different pairs.
    colour = colours((2 * i + i // 10) % 20)
    marker = _MARKERS[i % len(_MARKERS)]
    axes.plot(
      tokens, top1, style, marker=marker, ms=7, color=colour, label=label
    )
    if len(points) > 1:
      axes.fill_between(tokens, low, high, color=colour, alpha=0.1, lw=0)
    else:
      spread = [[top1[0] - low[0]], [high[0] - top1[0]]]
      axes.errorbar(tokens, top1, yerr=spread, color=colour, capsize=3)
  axes.set_xscale("log")
  axes.set_xlabel("tokens per problem, generated and prefilled")
  axes.set_ylabel("solved (top-1), %")
  axes.grid(alpha=0.3, which="both")
  figure.legend(loc="outside right upper", fontsize="small")
  return figure


def table(rows: Sequence[Row]) -> Table:
  """The rows as a person reads them."""
  view = Table(caption=_CAPTION, box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
  for title in _COLUMNS:
    is_name = title == "searcher"
    view.add_column(
      title,
      justify="left" if is_name else "right",
      # A name may be long: it has its options with it.
      no_wrap=not is_name,
      overflow="fold",
    )
  for row in rows:
    # Text: a searcher may have options in brackets, which rich would obey.
    view.add_row(*(Text(show(row)) for show in _COLUMNS.values()))
  return view
