"""`qstar doctor`: checks the machine and the installation, says what to fix."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import rich.console
import rich.markup
import rich.table
import tyro

from qstar_jax.cli import runtime
from qstar_jax.cli.health import Check, run_checks

_COLORS = {"ok": "green", "warn": "yellow", "fail": "red"}


@dataclasses.dataclass(frozen=True)
class Options:
  """Checks the machine and the installation, and says what to fix.

  Attributes:
    run_dir: where runs are to be written.
    json: print one JSON object instead of a table.
  """

  run_dir: pathlib.Path = pathlib.Path("runs")
  json: bool = False


def main(argv: Sequence[str]) -> int:
  """Runs all checks; exit code 1 if one fails, else 0."""
  options = tyro.cli(Options, args=list(argv), prog="qstar doctor")
  runtime.start_runtime()
  checks = list(run_checks(options.run_dir))
  is_healthy = all(check.status != "fail" for check in checks)
  if options.json:
    found = [dataclasses.asdict(check) for check in checks]
    print(json.dumps({"ok": is_healthy, "checks": found}, indent=2))
  else:
    _print_table(checks)
  return 0 if is_healthy else 1


def _print_table(checks: Sequence[Check]) -> None:
  table = rich.table.Table("check", "", "found", "fix")
  for check in checks:
    status = f"[{_COLORS[check.status]}]{check.status}[/]"
    table.add_row(
      check.name,
      status,
      rich.markup.escape(check.detail),
      rich.markup.escape(check.fix),
    )
  rich.console.Console().print(table)
