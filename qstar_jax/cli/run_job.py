"""What the commands share that take a config and work on its run."""

import argparse
import contextlib
import sys
from collections.abc import Sequence

from etils import epath
from rich.console import Console

from qstar_jax import configuration, validation
from qstar_jax.cli import runtime, stopping
from qstar_jax.config import ExperimentConfig


def make_parser(command: str, description: str) -> argparse.ArgumentParser:
  """A parser of CONFIG, `--run-dir` and `--json`, for more to be added."""
  parser = argparse.ArgumentParser(
    prog=f"qstar {command}",
    description=description,
    epilog="Any field of the config can be set: --learner.learning-rate 1e-3. "
    + stopping.EXIT_CODES,
    add_help=False,
    allow_abbrev=False,
  )
  parser.add_argument("config", help="a name from configs/, or a YAML file")
  parser.add_argument("--run-dir", help="default: runs/<name>; gs:// works")
  parser.add_argument(
    "--json", action="store_true", help="metrics as JSON lines on stdout"
  )
  return parser


def parse(
  parser: argparse.ArgumentParser,
  argv: Sequence[str],
  *fixed: str,
  job: str = "train",
) -> tuple[argparse.Namespace, ExperimentConfig]:
  """What a command is asked for, with the runtime started.

  Args:
    parser: of the command, `make_parser` made it.
    argv: of the command.
    *fixed: overrides that the command itself makes.
    job: see `validation.validate_for_devices`.

  Returns:
    The arguments, of which `run_dir` is a path, and the config, validated also
    for the devices.

  Raises:
    SystemExit: help was asked for, or nothing.
    UserError: the config is at fault.
  """
  if not argv or argv[0] in ("-h", "--help"):
    parser.print_help()
    raise SystemExit(0 if argv else 2)
  args, overrides = parser.parse_known_args(argv)
  config = configuration.load(
    args.config, [*overrides, *fixed], prog=f"{parser.prog} CONFIG"
  )
  runtime.start_runtime(config)
  args.run_dir = epath.Path(args.run_dir or f"runs/{config.name}")
  runtime.meet_other_hosts(
    config, {"command": parser.prog, "run_dir": str(args.run_dir)}
  )
  import jax  # Not above: it has to be set up first.

  validation.validate_for_devices(config, jax.device_count(), job)
  return args, config


def run_loop(args: argparse.Namespace, config: ExperimentConfig) -> int:
  """Runs the loop from where the run directory stands; the exit code."""
  # These load JAX, which has been set up by now.
  from qstar_jax.distributed import hosts
  from qstar_jax.store import files
  from qstar_jax.training import closing, loop
  from qstar_jax.training.reporting import open_reporter

  run_dir = args.run_dir

  def work(flag):
    if not loop.is_done(config, run_dir):
      with open_reporter(
        run_dir, config=config, json_only=args.json
      ) as reporter:
        loop.train(config, run_dir, reporter, flag)
    elif hosts.is_first():
      print(
        f"{run_dir}: this run is done; for another one use another run "
        "directory",
        file=sys.stderr,
      )
    if hosts.is_first() and not args.json:
      has_example = hosts.count() == 1
      closing.show(config, run_dir, Console(), has_example=has_example)

  with contextlib.ExitStack() as stack:

    def claim():
      # Before anything is written to the directory of another run.
      configuration.check_run_dir(run_dir, config)
      files.make_folder(run_dir)
      stack.enter_context(files.lock(run_dir))
      configuration.claim_run_dir(run_dir, config)

    hosts.on_first(claim)
    return stopping.until_stopped(
      work,
      f"what is saved in {run_dir} is whole. The same command goes on from "
      "there.",
    )
