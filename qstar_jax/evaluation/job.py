"""A checkpoint-evaluation job: choose problems, play them, sum up."""

import dataclasses
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from qstar_jax import configuration
from qstar_jax.config import ExperimentConfig, SearchConfig
from qstar_jax.domains.readers import find_file, read_problems
from qstar_jax.domains.splits import held_out_by
from qstar_jax.errors import UserError
from qstar_jax.evaluation import results, sweep
from qstar_jax.evaluation.opened import Opened
from qstar_jax.records import Problem
from qstar_jax.search import searchers as searchers_lib
from qstar_jax.search.tree import UNLIMITED


def select_problems(
  opened: Opened, path: str | None, rows: str | None
) -> list[Problem]:
  """Problems of a file, or those that the run held out.

  Args:
    opened: the checkpoint.
    path: of the file, if any; see `readers.find_file`.
    rows: of the file, see `readers.read_problems`.

  Returns:
    At least one problem.

  Raises:
    UserError: the file cannot be read, or no file is named where one must be.
  """
  if path is not None:
    return read_problems(opened.domain, find_file(path), rows)
  if rows is not None:
    raise UserError(f"--rows {rows}: rows of what? name a file with --problems")
  config = opened.config
  if opened.domain.name != config.domain.name:
    raise UserError(
      f"--domain {opened.domain.name}: the run held out problems of "
      f"{config.domain.name} only; name a file with --problems"
    )
  problems = held_out_by(config, opened.domain).evaluation
  if not problems or not config.evaluation.num_problems:
    raise UserError(
      "the run held out no problems to evaluate on; name a file with --problems"
    )
  return problems[: config.evaluation.num_problems]


def read_searchers(
  text: str, config: ExperimentConfig
) -> dict[str, SearchConfig]:
  """What `gumbel,best_of_n[choose_by=majority,utility=prm]` asks for.

  Args:
    text: names of searchers, each with fields of the search config that are its
      own, if any.
    config: the other fields.

  Returns:
    A search for each entry, by the entry.

  Raises:
    UserError: unknown searcher or field, or a value that it cannot have.
  """
  found = {}
  for entry in re.split(r",(?![^\[]*\])", text):
    entry = entry.strip()
    name, bracket, rest = entry.partition("[")
    searchers_lib.check_name(name)
    if bracket and not rest.endswith("]"):
      raise UserError(f"--searcher {entry}: the bracket is not closed; add ]")
    overrides = []
    for option in filter(None, rest.removesuffix("]").split(",")):
      field, equals, value = option.partition("=")
      if not equals:
        raise UserError(f"--searcher {entry}: write {option}=VALUE")
      flag = field.strip().replace("_", "-")
      # Booleans are flags without a value.
      overrides += {
        "true": [f"--search.{flag}"],
        "false": [f"--search.no-{flag}"],
      }.get(value, [f"--search.{flag}", value])
    search = configuration.override(
      config, overrides, source=f"--searcher {entry}"
    ).search
    found[entry] = dataclasses.replace(search, searcher=name)
  return found


def read_budgets(text: str | None) -> list[int]:
  """The numbers of `128,512`, smallest first; none of None."""
  if text is None:
    return []
  words = [word.strip() for word in text.split(",")]
  for word in words:
    if not (word.isascii() and word.isdecimal() and 0 < int(word) <= UNLIMITED):
      raise UserError(
        f"--budget {text}: {word!r} is no number of tokens from 1 to "
        f"{UNLIMITED}; write e.g. 128,512,2048"
      )
  return sorted({int(word) for word in words})


def run(
  opened: Opened,
  *,
  problems: Sequence[Problem],
  searchers: str,
  budgets: str | None,
  terminal_value: str,
  seed: int,
  num_seeds: int,
  out: epath.PathLike | None,
  check_stop: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
  """Plays the problems; progress goes to stderr, results to `out` if given.

  With several searchers or budgets the policy alone is there to compare with,
  asked for or not. What is in `out` is whole after every searcher and budget.

  Args:
    opened: the checkpoint.
    problems: to play.
    searchers: see `read_searchers`.
    budgets: tokens per problem, separated by commas, if limited.
    terminal_value: `value`, or `outcome` to let the searches ask the verifier.
    seed: of the play.
    num_seeds: plays of each problem.
    out: directory, if any.
    check_stop: called after every play; may raise to stop.

  Returns:
    A JSON-able summary for each searcher and budget, see `sweep`.

  Raises:
    UserError: unknown searcher, malformed or impossible budget.
  """
  searches = read_searchers(searchers, opened.config)
  limits = read_budgets(budgets)
  if num_seeds < 1:
    raise UserError(f"--num-seeds {num_seeds}: must be 1 or more")
  if len(searches) * max(len(limits), 1) > 1 and sweep.BASELINE not in searches:
    searches = read_searchers(sweep.BASELINE, opened.config) | searches
  rows: list[dict[str, Any]] = []
  records: list[dict[str, Any]] = []
  console = Console(file=sys.stderr)
  with Progress(
    console=console, disable=not console.is_terminal, transient=True
  ) as progress:
    bar = progress.add_task("searching")

    def on_progress(name, done, total):
      check_stop()
      progress.update(bar, description=name, completed=done, total=total)

    def on_row(row, plays):
      rows.append(row)
      records.extend(plays)
      if out is not None:
        results.write(epath.Path(out), rows, records)

    sweep.run(
      opened,
      problems=problems,
      searches=searches,
      budgets=limits,
      terminal_value=terminal_value,
      seed=seed,
      num_seeds=num_seeds,
      on_row=on_row,
      on_progress=on_progress,
    )
  return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
  """Prints one summary as a list, several as a table, on stdout."""
  if len(rows) > 1:
    Console().print(results.table(rows))
    return
  table = Table("", "", show_header=False)
  for name, value in rows[0].items():
    if isinstance(value, float):
      value = f"{value:.4g}"
    table.add_row(name, str(value))
  Console().print(table)
