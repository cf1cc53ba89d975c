"""The end of a run as its user sees it: what was learned, and one example."""

from collections.abc import Iterable
from typing import Any

from etils import epath
from rich.console import Console
from rich.table import Table

from qstar_jax.config import ExperimentConfig
from qstar_jax.evaluation.opened import Opened, open_checkpoint
from qstar_jax.evaluation.terminal_tree import print_tree, solution_text
from qstar_jax.records import Outcome
from qstar_jax.training import alternate
from qstar_jax.training.learning_curve import learning_curve
from qstar_jax.training.metrics_log import read_metrics

_PHASES = {
  "random": "random weights",
  "warm_start": "after the warm start",
  "self_play": "after self-play",
}
# Held-out problems tried until one is solved.
_MAX_EXAMPLES = 32


def show(
  config: ExperimentConfig, run_dir: epath.PathLike, console: Console
) -> None:
  """Prints held-out solve rates by phase and a solved problem as a tree."""
  console.print(_solve_rates(read_metrics(run_dir)))
  opened = open_checkpoint(run_dir, config)
  _show_example(opened, console)
  console.print(f"learning curve: {learning_curve(run_dir)}", soft_wrap=True)
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
  table = Table(title="held-out solve rate (top-1, no verifier in the search)")
  table.add_column("")
  for searcher in searchers:
    table.add_column(f"{searcher} [95% interval]", justify="right")
    table.add_column("tokens/problem", justify="right")
  for phase, title in _PHASES.items():
    cells = []
    for searcher in searchers:
      record = last.get((phase, searcher))
      if record is None:
        cells += ["", ""]
        continue
      low, high = record["ci95"]
      cells.append(f"{record['top1']:.1%} \\[{low:.1%}, {high:.1%}]")
      cells.append(f"{record['tokens_per_problem']:.0f}")
    table.add_row(title, *cells)
  return table


def _show_example(opened: Opened, console: Console) -> None:
  """Solves held-out problems until one works out, and shows its tree."""
  problems = alternate.held_out_problems(opened.config, opened.domain)
  searcher = opened.config.search.searcher
  player = opened.player(
    searcher, "value", opened.config.evaluation.batch_size
  )
  for seed, problem in enumerate(problems[:_MAX_EXAMPLES]):
    result, record = opened.solve(player, problem, seed)
    if result.verdict.outcome == Outcome.CORRECT:
      print_tree(record, opened.loaded.vocabulary, console=console)
      console.print(
        solution_text(opened.domain, problem, result.steps, result.verdict),
        markup=False,
        highlight=False,
      )
      return
  console.print(f"none of {_MAX_EXAMPLES} held-out problems was solved")
