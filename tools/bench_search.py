"""How fast and how large is the search, beside other ways to write it?

usage: python tools/bench_search.py [--shapes a,b] [--nodes 16,64,256]
         [--trees 32] [--devices 1,2] [--engines ...] [--repeats 3]
         [--profile] [--json]

Engines: `step_tree` is the product; `mctx` is Gumbel MuZero by mctx with keys
and values of the line and of the candidates in its embedding; `mctx_lean`
holds those of the line alone and runs a chosen step again; `reprefill` is our
search without a cache between expansions; `decode` is the sampling of one
expansion's steps, and `products` nothing but the matrix products it needs,
each in a loop of its own.

Engines split their trees over `--devices` devices; on a CPU these are made, and
share its cores.

Every engine runs in a process of its own, in turn with the others, `--repeats`
times; figures are medians, ratios medians of the repeats' ratios. Searches
start with nothing allocated. On a machine that others use as well, seconds of
CPU are steadier than seconds. Progress goes to stderr, the table to stdout.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

SEARCHES = ("step_tree", "mctx", "mctx_lean", "reprefill")
ENGINES = (*SEARCHES, "decode", "products")
# Prompt tokens, step tokens, steps.
SHAPES = {"a": (8, 10, 3), "b": (64, 16, 8)}
NUM_CANDIDATES = 8


def steps_with_room(max_steps: int, num_nodes: int) -> int:
  """The depth, or the next above it at which a tree has room for N nodes."""
  while sum(NUM_CANDIDATES**d for d in range(max_steps)) < num_nodes:
    max_steps += 1
  return max_steps


class Place(NamedTuple):
  """One point of the comparison."""

  shape: str
  trees: int
  nodes: int
  devices: int = 1

  def __str__(self) -> str:
    return (
      f"shape {self.shape}, {self.trees} trees, {self.nodes} nodes, "
      f"{self.devices} devices"
    )

  def case(self):
    from tools.search_engines import Case

    prompt_tokens, step_tokens, max_steps = SHAPES[self.shape]
    return Case(
      prompt_tokens=prompt_tokens,
      step_tokens=step_tokens,
      max_steps=steps_with_room(max_steps, self.nodes),
      num_trees=self.trees,
      num_nodes=self.nodes,
      num_candidates=NUM_CANDIDATES,
      num_devices=self.devices,
    )


def _prepare(at: Place) -> None:
  """As the product's commands do, before anything runs in this process."""
  import jax

  from qstar_jax.cli.runtime import keep_freed_memory

  keep_freed_memory()
  jax.config.update("jax_num_cpu_devices", at.devices)


def _build(name: str, case):
  # JAX is loaded by the process that measures, and by no other.
  from tools import mctx_engines, search_engines

  match name:
    case "step_tree":
      return search_engines.step_tree(case)
    case "reprefill":
      return search_engines.reprefill(case)
    case _:
      keeps_candidates = name == "mctx"
      return mctx_engines.mctx_engine(case, keeps_candidates=keeps_candidates)


def _search_worker(connection: Connection, name: str, at: Place) -> None:
  """Compiles, tells the cost of it, then runs whenever it is asked to.

  It is asked once whether it may run at all, and then before each run.
  """
  from tools.search_parts import seconds

  _prepare(at)
  engine = _build(name, at.case())
  connection.send(
    {
      "compile_s": engine.compile_seconds,
      "program_mb": engine.program_bytes / 1e6,
    }
  )
  if not connection.recv():
    return
  # The first call of a process pays for more than the search.
  seconds(engine.first)
  while connection.recv():
    first_s = seconds(engine.first)
    cpu_start = time.process_time()
    full_s = seconds(engine.full)
    connection.send(
      {
        "first_s": first_s,
        "full_s": full_s,
        "cpu_s": time.process_time() - cpu_start,
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
      }
    )


def _part_worker(connection: Connection, name: str, at: Place) -> None:
  from tools import search_parts

  _prepare(at)
  measure = {"decode": search_parts.decode, "products": search_parts.products}
  run = measure[name](at.case())
  connection.send({"program_mb": 0.0})
  connection.recv()
  while connection.recv():
    connection.send({"full_s": run()})


class Worker:
  """An engine in a process of its own."""

  def __init__(self, name: str, at: Place):
    spawn = multiprocessing.get_context("spawn")
    self._connection, theirs = spawn.Pipe()
    target = _search_worker if name in SEARCHES else _part_worker
    self._process = spawn.Process(target=target, args=(theirs, name, at))
    self._process.start()
    # Ours must be the only end left open here, or a crash would go unnoticed.
    theirs.close()
    self.compiled = self._connection.recv()

  def allow(self) -> None:
    self._connection.send(True)

  def run(self) -> dict[str, float]:
    self._connection.send(True)
    return self._connection.recv()

  def stop(self) -> None:
    self._connection.send(False)
    self._process.join()


def measure(
  at: Place, names: list[str], *, repeats: int, max_gb: float
) -> list[dict[str, Any]]:
  """One row per engine, run in turn.

  An engine that needs more than `max_gb` is compiled and not run: its row has
  no times.
  """
  workers, compiled = {}, {}
  for name in names:
    _say(f"{at}: compiling {name}")
    worker = Worker(name, at)
    compiled[name] = worker.compiled
    if worker.compiled["program_mb"] > 1e3 * max_gb:
      worker.stop()
    else:
      worker.allow()
      workers[name] = worker
  runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
  for repeat in range(repeats):
    for name, worker in workers.items():
      runs[name].append(worker.run())
      took = runs[name][-1]["full_s"]
      _say(f"{at}: {name} {repeat + 1}/{repeats}: {took:.3f} s")
  for worker in workers.values():
    worker.stop()
  return [_row(at, name, compiled[name], runs) for name in names]


def _row(at, name, compiled, runs) -> dict[str, Any]:
  row = {**at._asdict(), "engine": name, **compiled}
  if not runs[name]:
    return row
  for key in runs[name][0]:
    row[key] = statistics.median(run[key] for run in runs[name])
  if name in SEARCHES:
    row["expansions_per_s"] = at.trees * at.nodes / row["full_s"]
    row["tokens_per_s"] = (
      row["expansions_per_s"] * NUM_CANDIDATES * SHAPES[at.shape][1]
    )
    if at.nodes > 1:
      rounds_s = row["full_s"] - row["first_s"]
      row["round_ms"] = 1e3 * rounds_s / (at.nodes - 1)
  reference = runs.get("step_tree" if name in SEARCHES else "decode", [])
  for key, ratio in (("full_s", "ratio"), ("cpu_s", "cpu_ratio")):
    pairs = zip(runs[name], reference, strict=False)
    ratios = [run[key] / ours[key] for run, ours in pairs if key in run]
    if ratios:
      row[ratio] = statistics.median(ratios)
  return row


def profile(at: Place) -> None:
  """Prints where the time of one round goes."""
  spawn = multiprocessing.get_context("spawn")
  process = spawn.Process(target=_profile_worker, args=(at,))
  process.start()
  process.join()


def _profile_worker(at: Place) -> None:
  from tools import search_parts

  case = at.case()
  stages = search_parts.profile_round(case)
  parts = search_parts.profile_decoding(case)
  total = sum(stages.values())
  print(f"\nA round of {at}, ms (and share of the round):\n")
  for name, seconds in [*stages.items(), *parts.items()]:
    indent = "  - " if name in parts else "- "
    print(f"{indent}{name}: {1e3 * seconds:.1f} ({seconds / total:.0%})")


_COLUMNS = {
  "shape": "{}",
  "trees": "{}",
  "nodes": "{}",
  "devices": "{}",
  "engine": "{}",
  "compile_s": "{:.1f}",
  "first_s": "{:.2f}",
  "full_s": "{:.2f}",
  "cpu_s": "{:.2f}",
  "ratio": "{:.2f}",
  "cpu_ratio": "{:.2f}",
  "round_ms": "{:.0f}",
  "expansions_per_s": "{:.0f}",
  "tokens_per_s": "{:.0f}",
  "program_mb": "{:.0f}",
  "rss_mb": "{:.0f}",
}


def table(rows: list[dict[str, Any]]) -> str:
  """The searches' rows in markdown, then what decoding reaches."""
  lines = [" | ".join(_COLUMNS), " | ".join("---" for _ in _COLUMNS)]
  for row in rows:
    if row["engine"] in SEARCHES:
      cells = [
        form.format(row[name]) if name in row else "-"
        for name, form in _COLUMNS.items()
      ]
      lines.append(" | ".join(cells))
  lines = [f"| {line} |" for line in lines]
  for row in rows:
    if row["engine"] == "products" and "ratio" in row:
      at = Place(*(row[name] for name in Place._fields))
      lines.append(
        f"\nDecoding at {at}: the products alone take "
        f"{1e3 * row['full_s']:.1f} ms, {row['ratio']:.0%} of its time."
      )
  return "\n".join(lines)


def _say(message: str) -> None:
  print(message, file=sys.stderr, flush=True)


def _numbers(text: str) -> list[int]:
  return [int(word) for word in text.split(",")]


def _names(known) -> Any:
  def parse(text: str) -> list[str]:
    unknown = set(text.split(",")) - set(known)
    if unknown:
      raise argparse.ArgumentTypeError(
        f"{sorted(unknown)} not among {', '.join(known)}"
      )
    return text.split(",")

  return parse


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--shapes", type=_names(SHAPES), default=list(SHAPES))
  parser.add_argument("--nodes", type=_numbers, default=[16, 64, 256])
  parser.add_argument("--trees", type=_numbers, default=[32])
  parser.add_argument("--devices", type=_numbers, default=[1, 2])
  parser.add_argument("--engines", type=_names(ENGINES), default=list(ENGINES))
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--max-gb", type=float, default=16.0)
  parser.add_argument("--profile", action="store_true")
  parser.add_argument("--json", action="store_true")
  args = parser.parse_args()
  places = [
    Place(shape, num_trees, num_nodes, num_devices)
    for shape in args.shapes
    for num_devices in args.devices
    for num_trees in args.trees
    for num_nodes in args.nodes
  ]
  if args.profile:
    for at in places:
      profile(at)
    return
  rows = []
  for at in places:
    rows += measure(at, args.engines, repeats=args.repeats, max_gb=args.max_gb)
  print(json.dumps(rows) if args.json else table(rows))


if __name__ == "__main__":
  main()
