"""`qstar label`: writes a dataset of lines with labelled steps."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from etils import epath
from rich.console import Console
from rich.progress import Progress

from qstar_jax import configuration
from qstar_jax.cli import runtime, stopping
from qstar_jax.errors import UserError

# What makes two jobs different ones.
_JOB = ("source", "num_processes", "limit", "shard_lines")
_JOB += ("lines", "problems", "rows", "seed", "of", "overrides")


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="qstar label",
    description="Labels the steps of the search trees that a run has stored, "
    "or of lines that its policy samples. Run again, it goes on.",
    epilog="Fields of the run's config can be set: --labels.num-rollouts 16.",
    allow_abbrev=False,
  )
  parser.add_argument(
    "run", help="run directory, its RUN/replay, or RUN/checkpoints/STEP"
  )
  parser.add_argument(
    "--source",
    required=True,
    help="checked, tree_q, rollouts_soft, rollouts_hard, binary_search, "
    "judge, consensus",
  )
  parser.add_argument(
    "--of",
    nargs=2,
    metavar="LABELS",
    help="of consensus: two datasets of the same lines; a step whose labels "
    "are no more than labels.tolerance apart has their mean",
  )
  parser.add_argument("--out", required=True, help="directory of the dataset")
  parser.add_argument(
    "--problems",
    help="label samples of these instead of stored trees, search.num-lines of "
    "each: held_out, train, or a csv, jsonl or text file",
  )
  parser.add_argument("--rows", help="of the file, 0-based, e.g. 900:1000")
  parser.add_argument(
    "--lines",
    choices=["committed", "all"],
    help="of each tree; default: committed of stored ones, all of samples; "
    "checked and tree_q look at all steps",
  )
  parser.add_argument(
    "--num-processes", type=int, default=1, help="that share the work"
  )
  parser.add_argument(
    "--process", type=int, default=0, help="which of them this is, from 0"
  )
  parser.add_argument(
    "--limit", type=int, help="trees, the oldest first, or problems"
  )
  parser.add_argument(
    "--shard-lines", type=int, default=1024, help="lines in a file"
  )
  parser.add_argument("--seed", type=int, default=0, help="of the play")
  return parser


def _check(args: argparse.Namespace) -> None:
  for name in ("num_processes", "limit", "shard_lines"):
    value = getattr(args, name)
    if value is not None and value < 1:
      flag = name.replace("_", "-")
      raise UserError(f"--{flag} {value}: must be 1 or more")
  if not 0 <= args.process < args.num_processes:
    raise UserError(
      f"--process {args.process}: must be from 0 to {args.num_processes - 1}, "
      f"since --num-processes is {args.num_processes}"
    )


def _run_and_step(path: epath.Path) -> tuple[epath.Path, int | None]:
  """The run directory, and the step of a checkpoint if one is named."""
  if path.parent.name == "checkpoints" and path.name.isdigit():
    return path.parent.parent, int(path.name)
  return (path.parent if path.name == "replay" else path), None


def main(argv: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  args, args.overrides = _parser().parse_known_args(argv)
  _check(args)
  run_dir, step = _run_and_step(epath.Path(args.run))
  config = configuration.load_run(
    run_dir, args.overrides, prog="qstar label RUN"
  )
  runtime.start_runtime(config)

  # These load JAX, which has to be set up first.
  from qstar_jax.training import labelling

  request = labelling.Request(
    run_dir,
    args.source,
    step=step,
    lines=args.lines,
    problems=args.problems,
    rows=args.rows,
    limit=args.limit,
    seed=args.seed,
    of=args.of,
  )
  out = epath.Path(args.out)

  def run(flag):
    told = {name: getattr(args, name) for name in _JOB}
    work = labelling.prepare(request, config, out, told)
    if not _label(args, work, out, flag):
      print(f"{out}: process {args.process} had nothing left to do")
    print(_summary(out, work))

  return stopping.until_stopped(
    run,
    f"what is stored in {out} is whole. The same command goes on from there.",
  )


def _label(
  args: argparse.Namespace, work: Any, out: epath.Path, flag: Any
) -> bool:
  """Does this process's part, with a bar on a terminal; see `job.run`."""
  from qstar_jax.labels import job

  console = Console(file=sys.stderr)
  with Progress(
    console=console, disable=not console.is_terminal, transient=True
  ) as progress:
    bar = progress.add_task(f"labelling: {args.source}")

    def on_progress(done, total):
      progress.update(bar, completed=done, total=total)
      flag.check()

    return job.run(
      work.source,
      out,
      num_items=work.num_items,
      process=args.process,
      num_processes=args.num_processes,
      shard_lines=args.shard_lines,
      on_progress=on_progress,
    )


def _summary(out: epath.Path, work: Any) -> str:
  """What all processes have stored, and what it has cost."""
  from qstar_jax.labels import job

  counts = job.read_counts(out)
  text = (
    f"{out}: {counts['lines']} lines with {counts['labelled_steps']} labelled "
    f"steps, of {counts['items']} of {work.num_items} {work.unit}"
  )
  if tokens := counts["tokens"]:
    each = tokens / max(counts["labelled_steps"], 1)
    text += f", for {tokens} tokens, {each:.1f} a label"
  return text
