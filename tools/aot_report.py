"""The report of `compile_for_tpu`: as an object for JSON, and as text."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from qstar_jax.config import ExperimentConfig
from qstar_jax.distributed import roofline
from qstar_jax.distributed.chips import GIB, Topology
from qstar_jax.search import searchers
from qstar_jax.selfplay.player import group_size
from tools import aot_memory
from tools.aot_programs import Compiled, Run


def make_report(
  run: Run, compiled: Sequence[Compiled], topology: Topology
) -> dict[str, Any]:
  """All figures, as JSON has them; those of memory and programs per device."""
  memory = aot_memory.memory_of(run, compiled, topology)
  places = [tuple(device.coords) for device in run.mesh.devices.flat]
  estimates = {
    x.name: roofline.estimate(x.program, run.mesh.shape, places, topology)
    for x in compiled
    if x.text
  }
  return {
    "config": run.config.name,
    "topology": topology.name,
    "chips": topology.num_chips,
    "mesh": dict(run.mesh.shape),
    "parameters": run.num_parameters,
    "memory": {
      "gib": {name: size / GIB for name, size in memory.parts.items()},
      "total_gib": memory.total / GIB,
      "limit_gib": memory.limit / GIB,
      "shortfall_gib": memory.shortfall / GIB,
      "advice": aot_memory.advice(memory, run) if memory.shortfall else [],
    },
    "programs": {
      name: _program(estimate) for name, estimate in estimates.items()
    },
    "too_large": [x.name for x in compiled if not x.text],
    "publication": _publication(run, estimates.get("publish")),
    "run": (
      _run(run.config, run.num_shards, estimates, topology)
      if len(estimates) == len(compiled)
      else None
    ),
  }


def _program(estimate: roofline.Estimate) -> dict[str, Any]:
  fields = estimate._asdict()
  return fields | {
    "seconds": estimate.seconds,
    "binding": estimate.binding,
    "collective_share": estimate.collective_share,
    "traffic": [x._asdict() for x in estimate.traffic],
  }


def _publication(
  run: Run, estimate: roofline.Estimate | None
) -> dict[str, float] | None:
  """Bytes of parameters that devices lack, and those that they receive."""
  if estimate is None:
    return None
  made = aot_memory.shard_bytes(run.played)
  own = aot_memory.shard_bytes(run.learner_state.params)
  return {
    "missing_bytes": made - own,
    "received_bytes": sum(x.wire_bytes for x in estimate.traffic),
  }


def rounds_per_play(config: ExperimentConfig) -> int:
  """Rounds of search in a play of the longest line."""
  whole = dataclasses.replace(config.search, compact=False)
  text = searchers.limits(config.search, config.text)
  num_nodes = searchers.load(whole).num_nodes(whole, text.max_steps)
  return num_nodes // config.search.leaves_per_round


def _run(
  config: ExperimentConfig,
  num_shards: int,
  estimates: Mapping[str, roofline.Estimate],
  topology: Topology,
) -> dict[str, float]:
  """The whole run, of plays and steps that are all as long as they may be."""
  seconds = {name: x.seconds for name, x in estimates.items()}
  search, learner = config.search, config.learner
  num_trees = config.self_play.batch_size
  plays = config.self_play.problems_per_iteration
  rounds = math.ceil(plays / num_trees) * rounds_per_play(config)
  a_round = sum(seconds.get(x, 0.0) for x in ("expand", "insert", "play"))
  seats = math.ceil(plays / (num_shards * group_size(num_trees // num_shards)))
  play_seconds = rounds * a_round + seats * seconds["seat"]
  step_seconds = seconds["learn"] / learner.steps_per_call
  learn_seconds = learner.steps_per_iteration * step_seconds
  iteration = play_seconds + learn_seconds + seconds["publish"]
  total = config.num_iterations * iteration
  total += config.warm_start.steps * step_seconds
  slots = num_trees * search.leaves_per_round * search.num_candidates
  text = searchers.limits(search, config.text)
  row_tokens = learner.batch_size * config.row_tokens
  return {
    "rounds_per_iteration": rounds,
    "round_seconds": a_round,
    "play_tokens_per_second": slots * text.max_step_tokens / a_round,
    "learn_tokens_per_second": row_tokens / step_seconds,
    "play_seconds": play_seconds,
    "learn_seconds": learn_seconds,
    "publish_seconds": seconds["publish"],
    "iteration_seconds": iteration,
    "chip_hours": total * topology.num_chips / 3600,
  }


def render(report: Mapping[str, Any]) -> str:
  """The report as markdown."""
  mesh = ", ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
  parts = [
    f"# {report['config']} on {report['topology']}: {report['chips']} chips, "
    f"mesh {mesh}, {report['parameters'] / 1e9:.2f}B parameters",
    _render_memory(report["memory"]),
  ]
  if report["too_large"]:
    names = ", ".join(report["too_large"])
    parts.append(
      f"Too large for the compiler, and not in what follows: {names}"
    )
  parts += [
    _render_programs(report["programs"]),
    _render_traffic(report["programs"]),
  ]
  if publication := report["publication"]:
    parts.append(
      "A publication brings each device "
      f"{publication['received_bytes'] / GIB:.3f} GiB; it lacks "
      f"{publication['missing_bytes'] / GIB:.3f} GiB."
    )
  if report["run"]:
    parts.append(_render_run(report["run"]))
  return "\n\n".join(parts)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _render_memory(memory: Mapping[str, Any]) -> str:
  rows = [(name, f"{size:.2f}") for name, size in memory["gib"].items()]
  rows.append(("in all", f"{memory['total_gib']:.2f}"))
  rows.append(("of the chip", f"{memory['limit_gib']:.2f}"))
  table = _table(("memory of a device", "GiB"), rows)
  if not memory["shortfall_gib"]:
    return f"{table}\n\nIt fits."
  lines = "\n".join(f"- {line}" for line in memory["advice"])
  shortfall = f"It does not fit: {memory['shortfall_gib']:.2f} GiB are missing."
  return f"{table}\n\n{shortfall} To change:\n{lines}"


def _render_programs(programs: Mapping[str, Any]) -> str:
  rows = [
    (
      name,
      f"{x['flops'] / 1e12:.3f}",
      f"{x['hbm_bytes'] / 1e9:.2f}",
      *(
        f"{1e3 * x[part]:.2f}"
        for part in (
          "compute_seconds",
          "memory_seconds",
          "collective_seconds",
          "seconds",
        )
      ),
      f"{100 * x['collective_share']:.1f}",
      x["binding"],
    )
    for name, x in programs.items()
  ]
  header = "program", "TFLOP", "GB", "compute, ms", "memory, ms"
  header += "collectives, ms", "in all, ms", "collectives, %", "bound by"
  lines = [_table(header, rows)]
  for name, x in programs.items():
    for loop in x["unbounded_loops"]:
      lines.append(f"- {name}: counted once, of no known length: {loop}")
  return "\n".join(lines)


def _render_traffic(programs: Mapping[str, Any]) -> str:
  rows = [
    (
      name,
      x["kind"],
      x["axes"] or "none",
      str(x["times"]),
      f"{x['num_bytes'] / 1e6:.2f}",
      f"{x['wire_bytes'] / 1e6:.2f}",
      f"{1e3 * x['seconds']:.3f}",
    )
    for name, program in programs.items()
    for x in program["traffic"]
    if x["wire_bytes"]
  ]
  header = "program", "collective", "over", "times", "MB made", "MB sent", "ms"
  return _table(header, rows)


def _render_run(run: Mapping[str, float]) -> str:
  rows = [
    ("a round of search, ms", f"{1e3 * run['round_seconds']:.1f}"),
    ("rounds in an iteration", str(run["rounds_per_iteration"])),
    ("token slots of play a second", f"{run['play_tokens_per_second']:,.0f}"),
    ("tokens learned a second", f"{run['learn_tokens_per_second']:,.0f}"),
    ("play in an iteration, s", f"{run['play_seconds']:.1f}"),
    ("learning in an iteration, s", f"{run['learn_seconds']:.1f}"),
    ("publication in an iteration, s", f"{run['publish_seconds']:.3f}"),
    ("chip-hours of the run", f"{run['chip_hours']:,.1f}"),
  ]
  return _table(("at best, every line as long as it may be", ""), rows)
