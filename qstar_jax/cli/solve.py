"""`qstar solve`: one problem, its steps and its answer."""

import argparse
from collections.abc import Sequence

from qstar_jax import configuration
from qstar_jax.cli import runtime
from qstar_jax.errors import UserError
from qstar_jax.records import Outcome
from qstar_jax.store import files


def _parser() -> argparse.ArgumentParser:
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
  parser.add_argument(
    "--tree", metavar="FILE.html", help="write the tree as a page to browse"
  )
  parser.add_argument(
    "--save-tree", metavar="FILE.json", help="write the tree as JSON"
  )
  return parser


def main(argv: Sequence[str]) -> int:
  """Runs the command; 0 if the problem is solved, 1 if not."""
  args, overrides = _parser().parse_known_args(argv)
  config = configuration.load_run(args.run, overrides, prog="qstar solve RUN")
  runtime.start_runtime(config)

  # These load JAX, which has to be set up first.
  from rich.console import Console

  from qstar_jax.evaluation import tree_export
  from qstar_jax.evaluation.opened import open_checkpoint
  from qstar_jax.evaluation.terminal_tree import print_tree, solution_text

  page, data = (
    path and tree_export.destination(path)
    for path in (args.tree, args.save_tree)
  )
  if page and page == data:
    raise UserError(f"--tree and --save-tree are both {args.tree}: name two")
  opened = open_checkpoint(args.run, config, domain=args.domain)
  try:
    problem = opened.domain.parse(args.problem)
  except ValueError as error:  # What a domain of the user's own may raise.
    raise UserError(str(error)) from error
  searcher = args.searcher or opened.config.search.searcher
  (solved,) = opened.solve([problem], searcher, args.seed)
  result, record, priority = solved
  if args.show_tree:
    print_tree(record, opened.loaded.vocabulary, console=Console())
  print(solution_text(opened.domain, problem, result.steps, result.verdict))
  if page or data:
    exported = tree_export.export(
      *(opened.domain, problem, result, record, opened.loaded.vocabulary),
      searcher=searcher,
      seed=args.seed,
      priority=priority,
    )
  if page:
    files.publish_text(page, tree_export.to_page(exported))
  if data:
    files.publish_text(data, tree_export.to_json(exported))
  return 0 if result.verdict.outcome == Outcome.CORRECT else 1
