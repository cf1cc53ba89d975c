"""`qstar evaluate`: how often a checkpoint solves problems, at what cost."""

import argparse
import json
import sys
from collections.abc import Sequence

from etils import epath

from qstar_jax import configuration
from qstar_jax.cli import runtime, stopping
from qstar_jax.errors import UserError
from qstar_jax.store import files
from qstar_jax.training.preemption import PreemptionFlag
from qstar_jax.training.waiting import Waiter

# Arguments that results depend on.
_WHAT = {"domain", "problems", "rows", "searcher", "budget", "num_seeds"}
_WHAT |= {"terminal_value", "seed"}


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="qstar evaluate",
    description="Evaluates a checkpoint on a file of problems, or on those its "
    "run held out.",
    epilog="Fields of the run's config can be set: --search.num-simulations 8. "
    + stopping.EXIT_CODES,
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
  parser.add_argument(
    "--follow",
    action="store_true",
    help="evaluate every checkpoint of a run once, as they come, until the run "
    "is done; --out is RUN/evaluation then",
  )
  parser.add_argument("--json", action="store_true", help="one JSON object")
  return parser


def main(argv: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  args, overrides = _parser().parse_known_args(argv)
  kept = f"what is in {args.out} is whole" if args.out else "nothing is kept"
  if args.follow:
    args.out = args.out or f"{args.run}/evaluation"
    kept = f"what is in {args.out} is whole. The same command goes on from it."
  return stopping.until_stopped(lambda flag: _run(args, overrides, flag), kept)


def _run(
  args: argparse.Namespace, overrides: list[str], flag: PreemptionFlag
) -> None:
  """Evaluates one checkpoint, or follows a run."""
  # The runtime is told of the config, and a run that is waited for has none.
  if args.follow:
    _wait_for_config(args.run, flag)
  config = configuration.load_run(
    args.run, overrides, prog="qstar evaluate RUN"
  )
  runtime.start_runtime(config)

  # These load JAX, which has to be set up first.
  from qstar_jax.evaluation import job
  from qstar_jax.evaluation.opened import open_checkpoint

  def open_step(path):
    return open_checkpoint(path, config, domain=args.domain)

  def evaluate(opened, out):
    return job.run(
      opened,
      problems=job.select_problems(opened, args.problems, args.rows),
      searchers=args.searcher or opened.config.search.searcher,
      budgets=args.budget,
      terminal_value=args.terminal_value,
      seed=args.seed,
      num_seeds=args.num_seeds,
      out=out,
      check_stop=flag.check,
    )

  if not args.follow:
    _show(evaluate(open_step(args.run), args.out), args.json)
    return

  from qstar_jax.training import follow

  told = {name: value for name, value in vars(args).items() if name in _WHAT}
  follow.follow(
    epath.Path(args.run),
    epath.Path(args.out),
    flag,
    options={**told, "overrides": overrides},
    open_step=open_step,
    evaluate=evaluate,
    show=lambda step, rows: _show(rows, args.json, step),
  )


def _wait_for_config(run: str, flag: PreemptionFlag) -> None:
  """Until a run is there to be followed."""
  path = epath.Path(run)
  if path.parent.name == "checkpoints":
    raise UserError(
      f"--follow {run}: follows a run, and this is one checkpoint; give the "
      "run's directory"
    )
  path /= configuration.CONFIG_FILE
  Waiter(run, flag).until(lambda: files.exists(path) or None, f"a run in {run}")


def _show(rows: list, is_json: bool, step: int | None = None) -> None:
  """Prints what came of one checkpoint; `step` if it is one of many."""
  from qstar_jax.evaluation import job

  if is_json:
    found = rows[0] if len(rows) == 1 else {"results": rows}
    print(json.dumps(found if step is None else {"step": step, **found}))
  else:
    if step is not None:
      print(f"step {step}")
    job.show(rows)
  sys.stdout.flush()
