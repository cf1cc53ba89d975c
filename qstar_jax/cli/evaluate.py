"""`qstar evaluate`: how often a checkpoint solves problems, at what cost."""

import argparse
import json
from collections.abc import Sequence

from qstar_jax import configuration
from qstar_jax.cli import runtime


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="qstar evaluate",
    description="Evaluates a checkpoint on a file of problems, or on those its "
    "run held out.",
    epilog="Fields of the run's config can be set: --search.num-simulations 8.",
    allow_abbrev=False,
  )
  parser.add_argument("run", help="run directory, or RUN/checkpoints/STEP")
  parser.add_argument("--domain", help="default: the run's own")
  parser.add_argument(
    "--problems",
    help="csv, jsonl or text file of problems, here or in QSTAR_DATA_DIR",
  )
  parser.add_argument("--rows", help="of the file, 0-based, e.g. 900:1000")
  parser.add_argument(
    "--searcher",
    help="one or several: gumbel,beam, each with search options of its own if "
    "need be: best_of_n[choose_by=majority]; default: the run's own",
  )
  parser.add_argument(
    "--budget", help="tokens per problem, one or several: 128,512,2048"
  )
  parser.add_argument(
    "--num-seeds", type=int, default=1, help="plays of each problem"
  )
  parser.add_argument(
    "--out", help="directory for results, plays and a picture"
  )
  parser.add_argument(
    "--terminal-value",
    choices=["value", "outcome"],
    default="value",
    help="outcome: the search may ask the verifier",
  )
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--json", action="store_true", help="one JSON object")
  return parser


def main(argv: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  args, overrides = _parser().parse_known_args(argv)
  config = configuration.load_run(
    args.run, overrides, prog="qstar evaluate RUN"
  )
  runtime.start_runtime(config)

  # These load JAX, which has to be set up first.
  from qstar_jax.evaluation import job
  from qstar_jax.evaluation.opened import open_checkpoint

  opened = open_checkpoint(args.run, config, domain=args.domain)
  rows = job.run(
    opened,
    problems=job.select_problems(opened, args.problems, args.rows),
    searchers=args.searcher or opened.config.search.searcher,
    budgets=args.budget,
    terminal_value=args.terminal_value,
    seed=args.seed,
    num_seeds=args.num_seeds,
    out=args.out,
  )
  if args.json:
    print(json.dumps(rows[0] if len(rows) == 1 else {"results": rows}))
  else:
    job.show(rows)
  return 0
