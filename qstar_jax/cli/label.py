"""`qstar label`: writes a dataset of lines with labelled steps."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence

from etils import epath
from rich.console import Console
from rich.progress import Progress

from qstar_jax import configuration
from qstar_jax.cli import runtime
from qstar_jax.config import ExperimentConfig
from qstar_jax.domains import make_domain
from qstar_jax.errors import UserError
from qstar_jax.records import LabelledLine
from qstar_jax.replay import ReplayReader

# What makes two jobs different ones.
_JOB = ("source", "num_processes", "limit", "shard_lines")


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="qstar label",
    description="Labels the steps of the search trees that a run has stored. "
    "Run again, it goes on.",
    allow_abbrev=False,
  )
  parser.add_argument("run", help="run directory, or its RUN/replay")
  parser.add_argument("--source", required=True, help="checked or tree_q")
  parser.add_argument("--out", required=True, help="directory of the dataset")
  parser.add_argument(
    "--num-processes", type=int, default=1, help="that share the work"
  )
  parser.add_argument(
    "--process", type=int, default=0, help="which of them this is, from 0"
  )
  parser.add_argument("--limit", type=int, help="trees, the oldest first")
  parser.add_argument(
    "--shard-lines", type=int, default=1024, help="lines in a file"
  )
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


def _open(
  args: argparse.Namespace, config: ExperimentConfig, run_dir: epath.Path
) -> tuple[Callable[[int], Iterable[LabelledLine]], int]:
  """The source and the number of its items; claims the output directory."""
  from qstar_jax import checkpoint
  from qstar_jax.labels import job
  from qstar_jax.labels.tree_sources import tree_source

  meta = checkpoint.latest_meta(run_dir)
  trees = ReplayReader(run_dir / "replay")
  if meta is None or not len(trees):
    raise UserError(f"{run_dir} has no trees yet: go on with `qstar train`")
  label = tree_source(
    args.source,
    checkpoint.vocabulary_from_json(meta["vocabulary"]),
    make_domain(config.domain.name, config.domain.options),
    config.search,
  )
  told = {name: getattr(args, name) for name in _JOB}
  found = job.claim(epath.Path(args.out), told, {"trees": trees.cursors})
  trees = ReplayReader(run_dir / "replay", cursors=found["trees"])
  num_items = min(len(trees), args.limit or len(trees))
  return lambda item: label(trees[item]), num_items


def main(argv: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  args = _parser().parse_args(argv)
  _check(args)
  run_dir, out = epath.Path(args.run), epath.Path(args.out)
  if run_dir.name == "replay":
    run_dir = run_dir.parent
  config = configuration.load_run(run_dir, prog="qstar label RUN")
  runtime.start_runtime(config)

  # These load JAX, which has to be set up first.
  from qstar_jax.labels import job
  from qstar_jax.training import preemption

  source, num_items = _open(args, config, run_dir)
  console = Console(file=sys.stderr)
  with (
    preemption.catch_signals() as flag,
    Progress(
      console=console, disable=not console.is_terminal, transient=True
    ) as progress,
  ):
    bar = progress.add_task(f"labelling: {args.source}")

    def on_progress(done, total):
      progress.update(bar, completed=done, total=total)
      flag.check()

    try:
      was_left = job.run(
        source,
        out,
        num_items=num_items,
        process=args.process,
        num_processes=args.num_processes,
        shard_lines=args.shard_lines,
        on_progress=on_progress,
      )
    except preemption.Preempted as signal:
      print(
        f"{signal}: stopped; what is stored in {out} is whole. The same "
        "command goes on from there.",
        file=sys.stderr,
      )
      return os.EX_TEMPFAIL  # 75: preempted and saved
  if not was_left:
    print(f"{out}: process {args.process} had nothing left to do")
  counts = job.read_counts(out)
  print(
    f"{out}: {counts['lines']} lines with {counts['labelled_steps']} labelled "
    f"steps, of {counts['items']} of {num_items} trees"
  )
  return 0
