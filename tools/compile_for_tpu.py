"""Does a run fit a TPU slice, and how fast can it be? Needs no TPU.

usage: python tools/compile_for_tpu.py CONFIG --topology v5e:4x4 [--json]
         [--hlo-dir DIR] [config overrides]

Compiles the programs of self-play, the learner's step and the publication of
parameters for the topology with the TPU's own compiler, from shapes alone, and
reports for one device: memory against the chip's, operations and bytes with
loops multiplied out, collectives with the mesh axes that they cross, and how
long each program takes at least, with what binds it. See
docs/design/ahead_of_time.md for what the figures mean.

Exits with 0 if the run fits, with 1 if it does not, and says what to change;
with 2 if the config or the topology is wrong, or the compiler is not installed.
Progress goes to stderr, the report to stdout.
"""

import argparse
import json
import sys

from etils import epath

from qstar_jax import configuration
from qstar_jax.distributed import chips
from qstar_jax.errors import UserError

_DOES_NOT_FIT = 1
_BAD_INPUT = 2


def main(argv: list[str] | None = None) -> int:
  """Runs the tool; returns its exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("config", help="a name from configs/, or a YAML file")
  parser.add_argument("--topology", required=True, help="e.g. v5e:4x4")
  parser.add_argument("--json", action="store_true")
  parser.add_argument("--hlo-dir", help="where to keep the compiled programs")
  args, overrides = parser.parse_known_args(argv)
  try:
    report = _report(args, overrides)
  except UserError as error:
    print(f"compile_for_tpu.py: {error}", file=sys.stderr)
    return _BAD_INPUT
  from tools import aot_report

  print(json.dumps(report) if args.json else aot_report.render(report))
  return _DOES_NOT_FIT if report["memory"]["shortfall_gib"] else 0


def _report(args: argparse.Namespace, overrides: list[str]) -> dict:
  topology = chips.parse_topology(args.topology)
  config = configuration.load(args.config, overrides)
  # They load JAX.
  from tools import aot_programs, aot_report

  devices = aot_programs.topology_devices(topology)
  run = aot_programs.Run(config, devices)
  compiled = []
  for name in run.programs():
    print(f"compiling: {name}", file=sys.stderr, flush=True)
    compiled.append(run.compile(name))
    if args.hlo_dir:
      folder = epath.Path(args.hlo_dir)
      folder.mkdir(parents=True, exist_ok=True)
      (folder / f"{name}.hlo").write_text(compiled[-1].text)
  return aot_report.make_report(run, compiled, topology)


if __name__ == "__main__":
  sys.exit(main())
