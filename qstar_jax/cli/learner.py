"""`qstar learner`: learns from the trees of actors that share its directory."""

from collections.abc import Sequence

from qstar_jax.cli import run_job


def main(argv: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  parser = run_job.make_parser(
    "learner",
    "Trains a network on what `qstar actor` jobs play with the same RUN_DIR. "
    "Run again, it goes on.",
  )
  args, config = run_job.parse(
    parser, argv, "--run-mode", "files", job="learner"
  )
  return run_job.run_loop(args, config)
