"""`qstar calibrate`: what a checkpoint's V and PRM scores are worth."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from qstar_jax import configuration
from qstar_jax.cli import runtime, stopping
from qstar_jax.training.preemption import PreemptionFlag


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="qstar calibrate",
    description="Judges the PRM by the domain's exact oracle, step by step, on "
    "lines that the policy samples, and V by how often play that goes on from "
    "there solves the problem; or the PRM by stored labels.",
    epilog="Fields of the run's config can be set: --search.num-lines 32.",
    allow_abbrev=False,
  )
  parser.add_argument("run", help="run directory, or RUN/checkpoints/STEP")
  parser.add_argument(
    "--labels",
    help="judge by these instead: a directory of `qstar label`, or FORMAT:FILE "
    "as in data.labels; records that cannot be used are counted",
  )
  parser.add_argument("--domain", help="default: the run's own")
  parser.add_argument("--problems", help="csv, jsonl or text file of problems")
  parser.add_argument("--rows", help="of the file, 0-based, e.g. 900:1000")
  parser.add_argument(
    "--player",
    choices=["self_play", "policy"],
    default="self_play",
    help="whose successes V is to predict: the run's search, or none",
  )
  parser.add_argument(
    "--num-states", type=int, default=4, help="of each problem, to judge V at"
  )
  parser.add_argument(
    "--num-plays", type=int, default=8, help="from each state by that player"
  )
  parser.add_argument(
    "--out", help="directory for figures, steps and a picture"
  )
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--json", action="store_true", help="one JSON object")
  return parser


def _against_labels(opened: Any, args: argparse.Namespace) -> Any:
  """The calibration by stored labels; says what was skipped."""
  from qstar_jax.data import labelled
  from qstar_jax.data.reading import Report
  from qstar_jax.evaluation import calibration_job
  from qstar_jax.labels.merge import merge
  from qstar_jax.training.labelled_data import learned_keys

  report = Report("skip")
  learned = learned_keys(opened.config, configuration.run_directory(args.run))
  lines = merge(labelled.read(args.labels, report))
  found = calibration_job.against_labels(
    opened, lines, seed=args.seed, learned=learned
  )
  for message in report.messages:
    print(message, file=sys.stderr)
  if report.refused:
    print(f"{args.labels}: {report}", file=sys.stderr)
  if left_out := found.summary["prm"]["learned_lines"]:
    print(
      f"{args.labels}: {left_out} lines left out, of problems that the run has "
      "learned the labels of",
      file=sys.stderr,
    )
  return found


def _against_play(
  opened: Any, args: argparse.Namespace, flag: PreemptionFlag
) -> Any:
  """The calibration by play, with a bar on a terminal."""
  from rich.console import Console
  from rich.progress import Progress

  from qstar_jax.evaluation import calibration_job, job

  problems = job.select_problems(opened, args.problems, args.rows)
  console = Console(file=sys.stderr)
  with Progress(
    console=console, disable=not console.is_terminal, transient=True
  ) as progress:
    bar = progress.add_task("playing")

    def on_progress(name, done, total):
      flag.check()
      progress.update(bar, description=name, completed=done, total=total)

    return calibration_job.against_play(
      opened,
      problems,
      player=args.player,
      num_states=args.num_states,
      num_plays=args.num_plays,
      seed=args.seed,
      on_progress=on_progress,
    )


def main(argv: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  args, overrides = _parser().parse_known_args(argv)
  config = configuration.load_run(
    args.run, overrides, prog="qstar calibrate RUN"
  )
  runtime.start_runtime(config)

  # These load JAX, which has to be set up first.
  from etils import epath
  from rich.console import Console

  from qstar_jax.evaluation import calibration_results
  from qstar_jax.evaluation.opened import open_checkpoint
  from qstar_jax.store import files

  out = args.out and epath.Path(args.out)
  if out:
    files.make_folder(out)  # What cannot be written is not worth playing for.

  def work(flag):
    opened = open_checkpoint(args.run, config, domain=args.domain)
    if args.labels:
      found = _against_labels(opened, args)
    else:
      found = _against_play(opened, args, flag)
    if out:
      calibration_results.write(out, found)
    if args.json:
      print(json.dumps(found.summary))
    else:
      Console().print(calibration_results.table(found))

  return stopping.until_stopped(work, "nothing is kept.")
