"""`qstar train`: play, learn, evaluate, save, until the config's end."""

from collections.abc import Sequence

from qstar_jax.cli import run_job
from qstar_jax.errors import UserError


def main(argv: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  parser = run_job.make_parser(
    "train", "Trains a network by self-play. Run again, it goes on."
  )
  args, config = run_job.parse(parser, argv)
  if config.run_mode == "files":
    raise UserError(
      "run_mode is 'files': its jobs are started one by one, with qstar actor "
      "and qstar learner; use those, or another run_mode"
    )
  return run_job.run_loop(args, config)
