"""`qstar train`: play, learn, evaluate, save, until the config's end."""

import argparse
import os
import sys
from collections.abc import Sequence

from etils import epath
from rich.console import Console

from qstar_jax import configuration, validation
from qstar_jax.cli import runtime


def main(argv: Sequence[str]) -> int:
  """Runs the command; returns its exit code."""
  parser = argparse.ArgumentParser(
    prog="qstar train",
    description="Trains a network by self-play. Run again, it goes on.",
    epilog="Any field of the config can be set: --learner.learning-rate 1e-3.",
    add_help=False,
    allow_abbrev=False,
  )
  parser.add_argument("config", help="a name from configs/, or a YAML file")
  parser.add_argument("--run-dir", help="default: runs/<name>; gs:// works")
  parser.add_argument(
    "--json", action="store_true", help="metrics as JSON lines on stdout"
  )
  if not argv or argv[0] in ("-h", "--help"):
    parser.print_help()
    return 0 if argv else 2
  args, overrides = parser.parse_known_args(argv)
  config = configuration.load(args.config, overrides)
  runtime.start_runtime(config)

  # These load JAX, which has to be set up first.
  import jax

  from qstar_jax.store import files
  from qstar_jax.training import closing, loop, preemption
  from qstar_jax.training.reporting import Reporter

  validation.validate_for_devices(config, jax.device_count())
  run_dir = epath.Path(args.run_dir or f"runs/{config.name}")
  configuration.claim_run_dir(run_dir, config)
  with files.lock(run_dir), preemption.catch_signals() as flag:
    try:
      if loop.is_done(config, run_dir):
        print(
          f"{run_dir}: this run is done; for another one use another run "
          "directory",
          file=sys.stderr,
        )
      else:
        with Reporter(run_dir, config=config, json_only=args.json) as reporter:
          loop.train(config, run_dir, reporter, flag)
      if not args.json:
        closing.show(config, run_dir, Console())
    except preemption.Preempted as signal:
      print(
        f"{signal}: stopped; what is saved in {run_dir} is whole. The same "
        "command goes on from there.",
        file=sys.stderr,
      )
      return os.EX_TEMPFAIL  # 75: preempted and saved
  return 0
