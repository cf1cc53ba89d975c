"""A checkpoint-evaluation job: choose problems, play them, sum up."""

import collections
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from qstar_jax.domains.readers import read_problems
from qstar_jax.domains.splits import held_out
from qstar_jax.errors import UserError
from qstar_jax.evaluation.evaluate import evaluate
from qstar_jax.evaluation.opened import Opened
from qstar_jax.records import Outcome, Problem


def select_problems(
  opened: Opened, path: str | None, rows: str | None
) -> list[Problem]:
  """Problems of a file, or those that the run held out.

  Args:
    opened: the checkpoint.
    path: of the file, if any.
    rows: of the file, see `readers.read_problems`.

  Returns:
    At least one problem.

  Raises:
    UserError: the file cannot be read, or no file is named where one must be.
  """
  if path is not None:
    return read_problems(opened.domain, path, rows)
  if rows is not None:
    raise UserError(f"--rows {rows}: rows of what? name a file with --problems")
  config = opened.config
  if opened.domain.name != config.domain.name:
    raise UserError(
      f"--domain {opened.domain.name}: the run held out problems of "
      f"{config.domain.name} only; name a file with --problems"
    )
  problems = held_out(
    opened.domain,
    min_difficulty=config.domain.min_difficulty,
    max_difficulty=config.domain.max_difficulty,
    num_problems=config.domain.held_out_problems,
    seed=config.seed,
  )
  return problems[: config.evaluation.num_problems]


def run(
  opened: Opened,
  *,
  problems: Sequence[Problem],
  searcher: str,
  terminal_value: str,
  seed: int,
) -> dict[str, Any]:
  """Plays the problems; progress goes to stderr.

  Args:
    opened: the checkpoint.
    problems: to play.
    searcher: name of a searcher.
    terminal_value: `value`, or `outcome` to let the search ask the verifier.
    seed: of the play.

  Returns:
    The summary, JSON-able. `failures` counts the committed lines that are not
    correct by outcome.
  """
  batch_size = min(opened.config.evaluation.batch_size, len(problems))
  player = opened.player(searcher, terminal_value, batch_size)
  console = Console(file=sys.stderr)
  with Progress(
    console=console, disable=not console.is_terminal, transient=True
  ) as progress:
    bar = progress.add_task(f"{searcher}", total=len(problems))
    result = evaluate(
      player,
      opened.loaded.params,
      opened.domain,
      problems,
      batch_size=batch_size,
      seed=seed,
      on_progress=lambda done: progress.update(bar, completed=done),
    )
  outcomes = collections.Counter(
    play.verdict.outcome.name.lower() for play in result.results
  )
  return {
    "searcher": searcher,
    "problems": result.problems,
    "top1": result.top1,
    "any": result.any,
    "mean": result.mean,
    "ci95": list(result.ci95),
    "tokens_per_problem": result.tokens_per_problem,
    "terminal_value": terminal_value,
    "seed": seed,
    "checkpoint_step": opened.loaded.step,
    "failures": {
      outcome.name.lower(): outcomes[outcome.name.lower()]
      for outcome in Outcome
      if outcome != Outcome.CORRECT
    },
  }


def show(summary: dict[str, Any]) -> None:
  """Prints a summary as a table on stdout."""
  table = Table("", "", show_header=False)
  for name, value in summary.items():
    if isinstance(value, float):
      value = f"{value:.4g}"
    table.add_row(name, str(value))
  Console().print(table)
