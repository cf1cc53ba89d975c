"""`qstar solve`: one problem, its steps and its answer."""

import argparse
from collections.abc import Sequence

from qstar_jax import configuration
from qstar_jax.cli import runtime
from qstar_jax.errors import UserError
from qstar_jax.records import Outcome


def main(argv: Sequence[str]) -> int:
  """Runs the command; 0 if the problem is solved, 1 if not."""
  parser = argparse.ArgumentParser(
    prog="qstar solve",
    description="Solves one problem with a trained network and a search.",
    epilog="Fields of the run's config can be set: --search.num-simulations 8.",
    allow_abbrev=False,
  )
  parser.add_argument("run", help="run directory, or RUN/checkpoints/STEP")
  parser.add_argument("problem", help='e.g. "4 9 10 13" or "3 5 9 -> 42"')
  parser.add_argument("--domain", help="default: the run's own")
  parser.add_argument("--searcher", help="default: the run's own")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument(
    "--show-tree", action="store_true", help="draw the search tree"
  )
  args, overrides = parser.parse_known_args(argv)
  config = configuration.load_run(args.run, overrides, prog="qstar solve RUN")
  runtime.start_runtime(config)

  # These load JAX, which has to be set up first.
  from rich.console import Console

  from qstar_jax.evaluation.opened import open_checkpoint
  from qstar_jax.evaluation.terminal_tree import print_tree, solution_text

  opened = open_checkpoint(args.run, config, domain=args.domain)
  try:
    problem = opened.domain.parse(args.problem)
  except ValueError as error:  # What a domain of the user's own may raise.
    raise UserError(str(error)) from error
  searcher = args.searcher or opened.config.search.searcher
  ((result, record),) = opened.solve([problem], searcher, args.seed)
  if args.show_tree:
    print_tree(record, opened.loaded.vocabulary, console=Console())
  print(solution_text(opened.domain, problem, result.steps, result.verdict))
  return 0 if result.verdict.outcome == Outcome.CORRECT else 1
