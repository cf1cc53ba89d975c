"""Launches a run on TPUs: renders commands and manifests, and runs them.

usage: python tools/launch_tpu.py CONFIG --target TARGET \\
         --topology v5e:4x4 --run-dir gs://BUCKET/RUN --image IMAGE [--dry-run]

TARGET is queued-resources, gke, xpk or skypilot. The config's mesh is held to
the chips of the topology before anything is launched. `--dry-run` prints what
would be written and run. Fields of the config can be set, as with `qstar
train`. docs/launch.md tells the rest. Exit codes: 0 done, 2 bad input or a
command that failed.
"""

import argparse
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

from qstar_jax import configuration
from qstar_jax.errors import UserError
from tools.launch import gke, plan, queued_resources, skypilot, xpk
from tools.launch.plan import Layout, Plan, Rendering
from tools.launch.slices import parse_slice

TARGETS: dict[str, Callable[[Plan, pathlib.Path], Rendering]] = {
  "queued-resources": queued_resources.render,
  "gke": gke.render,
  "xpk": xpk.render,
  "skypilot": skypilot.render,
}

# Flags that not every target has a use for, and those that do.
_TAKEN_BY = {
  "--project": ("queued-resources", "xpk"),
  "--zone": ("queued-resources", "xpk", "skypilot"),
  "--cluster": ("xpk",),
  "--service-account": ("queued-resources", "gke"),
  "--max-restarts": ("queued-resources", "gke", "xpk"),
}
_MAX_RESTARTS = 20


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="launch_tpu.py",
    description="Launches a run on TPUs. See docs/launch.md.",
    epilog="Any field of the config can be set: --learner.learning-rate 1e-3.",
    allow_abbrev=False,
  )
  add = parser.add_argument
  add("config", help="a name from configs/, or a YAML file, which is uploaded")
  add("--target", required=True, choices=TARGETS)
  add("--topology", required=True, help="of the slice, e.g. v5e:4x4")
  add("--run-dir", required=True, help="of the run, in a bucket: gs://...")
  add("--image", required=True, help="container image with qstar_jax")
  add("--mode", choices=plan.MODES, help="default: the config's run_mode")
  add("--actors", type=int, help="jobs that play, in mode files; default: 1")
  add("--actor-topology", help="of each, likewise; default: --topology")
  add("--evaluator-topology", help="likewise; default: --topology")
  add("--name", help="of the jobs; default: the config's")
  add("--env", action="append", default=[], metavar="NAME=VALUE")
  add(
    "--max-restarts",
    type=int,
    help=f"of a job, after crashes; default: {_MAX_RESTARTS}",
  )
  add("--spot", action="store_true", help="on capacity that may be taken away")
  add("--project", default="", help="of Google Cloud")
  add("--zone", default="", help="e.g. us-west4-a")
  add("--cluster", default="", help="of xpk")
  add("--service-account", default="", help="that may use the bucket")
  add("--dry-run", action="store_true", help="print, and do nothing")
  return parser


def make_plan(argv: Sequence[str]) -> tuple[argparse.Namespace, Plan]:
  """Flags, and what they ask for.

  Raises:
    UserError: a flag, the config, or what they are to each other is wrong.
  """
  args, overrides = _parser().parse_known_args(argv)
  if args.mode is not None:
    overrides += ["--run-mode", args.mode]
  config = configuration.load(
    args.config, overrides, prog="launch_tpu.py CONFIG"
  )
  run_dir = args.run_dir.rstrip("/")
  if not run_dir.startswith("gs://"):
    raise UserError(
      f"--run-dir is {run_dir!r}: must be in a bucket, gs://BUCKET/RUN, since "
      "hosts share no disk"
    )
  _check_taken(args)
  if args.max_restarts is None:
    args.max_restarts = _MAX_RESTARTS
  if args.max_restarts < 0:
    raise UserError(
      f"--max-restarts is {args.max_restarts}: must be 0 or more; 0 never "
      "starts a job again after a crash"
    )
  args.name = plan.check_name(args.name or config.name)
  config_arg, upload = plan.locate_config(args.config, run_dir)
  jobs = plan.make_jobs(
    config_arg,
    config,
    overrides,
    name=args.name,
    run_dir=run_dir,
    layout=_layout(args, config.run_mode),
  )
  return args, Plan(
    jobs=jobs,
    image=args.image,
    environment=plan.make_environment(run_dir, args.env),
    max_restarts=args.max_restarts,
    spot=args.spot,
    upload=upload,
    project=args.project,
    zone=args.zone,
    cluster=args.cluster,
    service_account=args.service_account,
  )


def _check_taken(args: argparse.Namespace) -> None:
  """Refuses what the target would ignore."""
  for flag, targets in _TAKEN_BY.items():
    given = getattr(args, flag.removeprefix("--").replace("-", "_"))
    if given not in ("", None) and args.target not in targets:
      raise UserError(
        f"{flag} is {given!r}, which the target {args.target} has no use for: "
        f"it is for {', '.join(targets)}; leave it out"
      )


def _layout(args: argparse.Namespace, mode: str) -> Layout:
  of_files = {
    "--actors": args.actors,
    "--actor-topology": args.actor_topology,
    "--evaluator-topology": args.evaluator_topology,
  }
  given = [flag for flag, value in of_files.items() if value is not None]
  if given and mode != "files":
    raise UserError(
      f"{given[0]} is given and the mode is {mode}: it is for mode files "
      "alone, which has jobs that play; leave it out or set --mode files"
    )
  num_actors = 1 if args.actors is None else args.actors
  if num_actors < 1:
    raise UserError(
      f"--actors is {num_actors}: must be 1 or more, or nobody plays; use 1"
    )
  return Layout(
    slice=parse_slice(args.topology),
    actor_slice=parse_slice(args.actor_topology or args.topology),
    evaluator_slice=parse_slice(args.evaluator_topology or args.topology),
    num_actors=num_actors,
  )


def _commands(launched: Plan, rendering: Rendering) -> Iterator[Sequence[str]]:
  if launched.upload:
    yield ("gcloud", "storage", "cp", *launched.upload)
  yield from rendering.commands


def describe(launched: Plan, rendering: Rendering) -> str:
  """What would be done: jobs and their chips, files, commands."""
  lines = [
    f"# {job.name}: {job.slice}, {job.slice.size}" for job in launched.jobs
  ]
  num_chips = sum(job.slice.num_chips for job in launched.jobs)
  lines.append(f"# Together {num_chips} chip-hours an hour.")
  for path, text in rendering.files.items():
    lines += ["", f"# {path}", text.rstrip("\n")]
  lines += ["", *map(_one_flag_a_line, _commands(launched, rendering))]
  return "\n".join(lines) + "\n"


def _one_flag_a_line(command: Sequence[str]) -> str:
  return " ".join(
    ("\\\n  " if word.startswith("--") else "") + shlex.quote(word)
    for word in command
  )


def launch(
  args: argparse.Namespace,
  launched: Plan,
  rendering: Rendering,
  execute: queued_resources.Execute,
) -> None:
  """Writes the files and runs the commands, each listed before it runs.

  Raises:
    UserError: a job is on more hosts than its program can use; or a command
      failed, and those before it have done their work.
  """
  for job in launched.jobs:
    if job.is_on_one_host and job.slice.num_hosts > 1:
      raise UserError(
        f"{job.name} is on {job.slice}, {job.slice.size}: evaluators and the "
        "mode split run on one host; give them a slice of one, such as v5e:2x4,"
        " or look at what it would do with --dry-run"
      )
  for path, text in rendering.files.items():
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"wrote {path}", file=sys.stderr)
  dead = ()
  if args.target == "queued-resources":
    dead = queued_resources.delete_dead(launched, execute)
  # All states are known before the first deletion.
  for command in [*dead, *_commands(launched, rendering)]:
    print(f"$ {shlex.join(command)}", file=sys.stderr, flush=True)
    if code := execute(command).returncode:
      raise UserError(
        f"`{shlex.join(command)}` ended with exit code {code}; the commands "
        "before it are done"
      )


def _execute(
  command: Sequence[str], *, capture: bool = False
) -> subprocess.CompletedProcess:
  try:
    return subprocess.run(
      command, capture_output=capture, text=True, check=False
    )
  except FileNotFoundError as error:
    raise UserError(
      f"{command[0]}: no such command; install it (docs/launch.md), or look "
      "at what it would do with --dry-run"
    ) from error


def main(
  argv: Sequence[str], execute: queued_resources.Execute = _execute
) -> int:
  """Runs the tool; returns its exit code."""
  try:
    args, launched = make_plan(argv)
    folder = pathlib.Path("build/launch") / args.name
    rendering = TARGETS[args.target](launched, folder)
    if args.dry_run:
      print(describe(launched, rendering), end="")
    else:
      launch(args, launched, rendering, execute)
  except UserError as error:
    print(f"launch_tpu.py: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
