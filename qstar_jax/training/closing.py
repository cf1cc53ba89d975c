"""The end of a run as its user sees it: what was learned, and one example."""

from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qstar_jax.config import ExperimentConfig
from qstar_jax.domains import splits
from qstar_jax.evaluation.opened import Opened, open_checkpoint
from qstar_jax.evaluation.terminal_tree import print_tree, solution_text
from qstar_jax.records import Outcome
from qstar_jax.training.learning_curve import ladder, learning_curve
from qstar_jax.training.metrics_log import read_metrics

_PHASES = {
  "random": "random weights",
  "warm_start": "after the warm start",
  "self_play": "after self-play",
  "offline": "after learning from data",
}


def show(
  config: ExperimentConfig,
  run_dir: epath.PathLike,
  console: Console,
  *,
  has_example: bool = True,
) -> None:
  """Prints held-out figures by phase, and a solved problem as a tree.

  Args:
    config: of the run.
    run_dir: of the run.
    console: to print on.
    has_example: solves a problem, for which the network is loaded.
  """
  records = read_metrics(run_dir)
  if any(record["kind"] == "step_evaluation" for record in records):
    console.print(_step_figures(records))
  plays = config.evaluation.num_problems > 0
  if plays:
    console.print(_solve_rates(records))
  if plays and has_example:
    _show_example(open_checkpoint(run_dir, config), console)
  console.print(f"learning curve: {learning_curve(run_dir)}", soft_wrap=True)
  if picture := ladder(run_dir):
    console.print(f"accuracy by budget: {picture}", soft_wrap=True)
  if plays:
    console.print(
      f'ask it yourself: qstar solve {run_dir} "PROBLEM"', soft_wrap=True
    )


def _solve_rates(records: Iterable[dict[str, Any]]) -> Table:
  """The last evaluation of every phase and searcher."""
  last = {}
  for record in records:
    if record["kind"] == "evaluation":
      last[record["phase"], record["searcher"]] = record
  searchers = list(dict.fromkeys(searcher for _, searcher in last))
  table = Table(
    title="held-out problems solved [95 % interval], tokens per problem\n"
    "(top-1, no verifier in the search)"
  )
  table.add_column("")
  for searcher in searchers:
    table.add_column(searcher, justify="right", no_wrap=True)
    table.add_column("tokens", justify="right", no_wrap=True)
  phases = {phase for phase, _ in last}
  for phase, title in _PHASES.items():
    if phase not in phases:
      continue
    cells = []
    for searcher in searchers:
      record = last.get((phase, searcher))
      if record is None:
        cells += ["", ""]
        continue
      cells.append(_interval(record["top1"], record["ci95"]))
      cells.append(f"{record['tokens_per_problem']:.0f}")
    table.add_row(title, *map(Text, cells))
  return table


def _step_figures(records: Iterable[dict[str, Any]]) -> Table:
  """The PRM on held-out labels, at the last evaluation of every phase."""
  last = {
    record["phase"]: record
    for record in records
    if record["kind"] == "step_evaluation"
  }
  table = Table(title="PRM on held-out labelled steps [95 % interval]")
  for title in ("", "steps", "AUROC", "Brier", "ECE"):
    table.add_column(title, justify="right" if title else "left")
  for phase, title in _PHASES.items():
    if record := last.get(phase):
      figures = (
        _interval(record[name], record[f"{name}_ci95"])
        for name in ("auroc", "brier", "ece")
      )
      table.add_row(title, str(record["steps"]), *map(Text, figures))
  return table


def _interval(value: float | None, ci95: Sequence[float | None]) -> str:
  """`91.2% [89, 93]`, or a dash where nothing could be said."""
  if value is None or None in ci95:
    return "-"
  low, high = ci95
  return f"{value:.1%} [{100 * low:.0f}, {100 * high:.0f}]"


def _show_example(opened: Opened, console: Console) -> None:
  """Plays a batch of held-out problems; shows the tree of the first solved."""
  held_out = splits.held_out_by(opened.config, opened.domain)
  # As many as the run's own evaluations: that program is compiled already.
  problems = held_out.evaluation[: opened.config.evaluation.batch_size]
  plays = opened.solve(problems, opened.config.search.searcher, seed=0)
  for problem, play in zip(problems, plays, strict=True):
    result = play.result
    if result.verdict.outcome == Outcome.CORRECT:
      print_tree(play.record, opened.loaded.vocabulary, console=console)
      console.print(
        solution_text(opened.domain, problem, result.steps, result.verdict),
        markup=False,
        highlight=False,
      )
      return
  console.print(f"none of {len(problems)} held-out problems was solved")
