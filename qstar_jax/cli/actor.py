"""`qstar actor`: plays for a learner that shares its directory."""

from collections.abc import Sequence

from qstar_jax.cli import run_job, stopping
from qstar_jax.errors import UserError


def main(argv: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  parser = run_job.make_parser(
    "actor",
    "Plays with what `qstar learner` publishes in RUN_DIR, until its run is "
    "done. Any number may play, and come and go.",
  )
  parser.add_argument(
    "--actor-id", type=int, default=0, help="0 or more, each actor its own"
  )
  args, config = run_job.parse(parser, argv, "--run-mode", "files", job="actor")
  if not 0 <= args.actor_id < 100_000:
    raise UserError(
      f"--actor-id {args.actor_id}: must be from 0 to 99999, each actor its own"
    )
  # Loads JAX, which has been set up by now.
  from qstar_jax.training import actor_job

  return stopping.until_stopped(
    lambda flag: actor_job.run(
      config,
      args.run_dir,
      args.actor_id,
      flag,
      is_terminal=False,
      json_only=args.json,
    ),
    f"what is stored in {args.run_dir} is whole. The same command goes on from "
    "there.",
  )
