"""Imitation, AWR, ILQL and distillation, from the same stored trees.

usage: python tools/compare_offline.py RUN [--out build/offline]
         [--steps 1500] [--seeds 0 1 2] [--budget 512]
         [--methods imitation awr ilql distillation] [config overrides]

RUN is a finished run. For every method and seed a new network, of RUN's config,
learns from its newest `replay.window_trees` trees alone, for the same number of
gradient steps:

  imitation     of the lines that the verifier found correct
  awr           of all samples, by the exponential of their advantage
  ilql          of all samples alike, and twin token-Q heads with their values
  distillation  of the improved policy that the search left in the trees

All of them learn value and PRM besides. They solve RUN's held-out problems, of
which there is no tree, without a verifier: by the policy alone (greedy), and by
searches that read V, or, of ILQL, the Q heads. Intervals are bootstrapped over
problems and seeds. What is in OUT/results.jsonl is not made again.
OUT/offline.md has the table, OUT/offline.png the picture.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure

from qstar_jax import configuration
from qstar_jax.cli import runtime
from qstar_jax.cli import train as train_command
from qstar_jax.config import ExperimentConfig
from qstar_jax.domains import make_domain
from qstar_jax.domains.splits import held_out_by
from qstar_jax.errors import UserError
from qstar_jax.evaluation import job, metrics, sweep
from qstar_jax.evaluation.opened import open_checkpoint
from qstar_jax.records import Problem

# Beside value, PRM and policy.
_TOKEN_Q = {"token_q": 1.0, "token_value": 1.0, "cql": 0.1}
# Fields of the learner by method; the behaviour that the trees show is AWR
# without a difference between steps.
METHODS: Mapping[str, Mapping[str, Any]] = {
  "imitation": {"policy_target": "imitation"},
  "awr": {"policy_target": "awr"},
  "ilql": {"policy_target": "awr", "advantage_temperature": 1e3},
  "distillation": {"policy_target": "improved"},
}
_BY_VALUE = ("greedy", "value_guided", "token_astar", "best_first", "gumbel")
_BY_TOKEN_Q = (
  "token_astar[heuristic=token_q]",
  "best_first[heuristic=token_q]",
)

Row = dict[str, Any]


def method_config(
  config: ExperimentConfig, method: str, seed: int, trees: str, steps: int
) -> ExperimentConfig:
  """The config of a run that learns from stored trees by a method."""
  losses = dict(config.learner.losses)
  if method == "ilql":
    losses |= _TOKEN_Q
  per_iteration = config.learner.steps_per_iteration
  if steps % per_iteration:
    raise UserError(
      f"--steps {steps}: must be a multiple of learner.steps_per_iteration, "
      f"{per_iteration}"
    )

  def changed(section, **changes):
    return dataclasses.replace(getattr(config, section), **changes)

  return dataclasses.replace(
    config,
    name=method,
    seed=seed,
    num_iterations=steps // per_iteration,
    domain=changed("domain", held_out_problems=0),
    model=changed("model", token_q=method == "ilql"),
    data=changed("data", trees=trees),
    self_play=changed("self_play", problems_per_iteration=0),
    warm_start=changed("warm_start", steps=0),
    evaluation=changed("evaluation", num_problems=0),
    replay=changed("replay", max_reuse=1_000_000),
    learner=changed("learner", losses=losses, **METHODS[method]),
  )


def train(config: ExperimentConfig, out: pathlib.Path) -> pathlib.Path:
  """Runs `qstar train`, or goes on with a run that was cut."""
  run_dir = out / f"{config.name}_{config.seed}"
  path = run_dir.with_suffix(".yaml")
  path.write_text(yaml.safe_dump(configuration.to_json(config)))
  if code := train_command.main([str(path), "--run-dir", str(run_dir)]):
    raise SystemExit(code)
  return run_dir


def solve(
  run_dir: pathlib.Path, problems: Sequence[Problem], budget: int
) -> list[Row]:
  """What the searchers of a method's network solve."""
  config = configuration.load_run(run_dir, prog="tools/compare_offline.py RUN")
  opened = open_checkpoint(run_dir, config)
  searchers = _BY_VALUE + (_BY_TOKEN_Q if config.model.token_q else ())
  rows = []

  def on_row(row, plays):
    # In the order of the problems, as there is one play of each.
    scores = [play["score"] for play in plays]
    tokens = row["tokens_per_problem"]
    rows.append(
      {"searcher": row["searcher"], "tokens": tokens, "scores": scores}
    )

  sweep.run(
    opened,
    problems=problems,
    searches=job.read_searchers(",".join(searchers), config),
    budgets=[budget],
    terminal_value="value",
    seed=config.seed,
    on_row=on_row,
  )
  return rows


def compare(
  config: ExperimentConfig,
  out: pathlib.Path,
  *,
  trees: str,
  methods: Sequence[str],
  seeds: Sequence[int],
  steps: int,
  budget: int,
) -> list[Row]:
  """Makes the rows that OUT/results.jsonl lacks; returns all of the setting's.

  Args:
    config: of the run that made the trees.
    out: directory, made if missing.
    trees: directory of that run.
    methods: of `METHODS`.
    seeds: of training and play.
    steps: gradient steps.
    budget: tokens per problem.
  """
  out.mkdir(parents=True, exist_ok=True)
  results = out / "results.jsonl"
  results.touch()
  setting = {
    "trees": trees,
    "steps": steps,
    "budget": budget,
    "config": configuration.to_json(config),
  }
  setting = json.loads(json.dumps(setting))
  rows = [json.loads(line) for line in results.read_text().splitlines()]
  rows = [row for row in rows if row["setting"] == setting]
  done = {(row["method"], row["seed"]) for row in rows}
  domain = make_domain(config.domain.name, config.domain.options)
  problems = held_out_by(config, domain).evaluation
  # Seed by seed, so that what is there can be compared at any time.
  for seed in seeds:
    for method in methods:
      if (method, seed) in done:
        continue
      run_dir = train(method_config(config, method, seed, trees, steps), out)
      head = {"method": method, "seed": seed, "setting": setting}
      new = [head | row for row in solve(run_dir, problems, budget)]
      with results.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in new)
      rows += new
  return rows


def summary(rows: Sequence[Row]) -> list[Row]:
  """A row for each method and searcher: top-1 in %, with its interval."""
  groups: dict[tuple[str, str], list[Row]] = {}
  for row in rows:
    groups.setdefault((row["method"], row["searcher"]), []).append(row)
  return [
    {
      "method": method,
      "searcher": searcher,
      "top1": 100 * np.mean([row["scores"] for row in group]),
      "ci95": [
        100 * end
        for end in metrics.bootstrap_ci95(
          np.transpose([row["scores"] for row in group]), seed=0
        )
      ],
      "tokens": np.mean([row["tokens"] for row in group]),
      "seeds": len(group),
    }
    for (method, searcher), group in groups.items()
  ]


def table(rows: Sequence[Row]) -> str:
  """Methods down, searchers across: top-1 with its interval."""
  found = {(row["method"], row["searcher"]): row for row in summary(rows)}
  methods, searchers = (
    list(dict.fromkeys(x)) for x in zip(*found, strict=True)
  )
  lines = [
    "| " + " | ".join(["searcher", *(f"{m}, %" for m in methods)]) + " |",
    "|---" * (1 + len(methods)) + "|",
  ]
  for searcher in searchers:
    cells = [searcher]
    for method in methods:
      row = found.get((method, searcher))
      cells.append(
        f"{row['top1']:.1f} [{row['ci95'][0]:.1f}, {row['ci95'][1]:.1f}]"
        if row
        else ""
      )
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], path: pathlib.Path) -> None:
  """A dot with its interval for each method, by searcher."""
  found = summary(rows)
  searchers = list(dict.fromkeys(row["searcher"] for row in found))
  methods = list(dict.fromkeys(row["method"] for row in found))
  figure = Figure(figsize=(8, 1 + 0.55 * len(searchers)), layout="constrained")
  axes = figure.subplots()
  for number, method in enumerate(methods):
    own = [row for row in found if row["method"] == method]
    top1 = np.array([row["top1"] for row in own])
    low, high = np.transpose([row["ci95"] for row in own])
    apart = 0.15 * (number - (len(methods) - 1) / 2)
    axes.errorbar(
      top1,
      [searchers.index(row["searcher"]) + apart for row in own],
      xerr=[top1 - low, high - top1],
      fmt="os^D"[number % 4],
      ms=5,
      label=method,
    )
  axes.set_yticks(range(len(searchers)), searchers)
  axes.invert_yaxis()
  axes.set_xlabel("held-out problems solved, %")
  axes.grid(alpha=0.3)
  axes.legend(fontsize=8)
  figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("run", type=pathlib.Path)
  parser.add_argument("--out", type=pathlib.Path, default="build/offline")
  parser.add_argument("--steps", type=int, default=1500)
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument("--budget", type=int, default=512)
  parser.add_argument(
    "--methods", nargs="+", choices=METHODS, default=list(METHODS)
  )
  args, overrides = parser.parse_known_args(argv)
  config = configuration.load_run(
    args.run, overrides, prog="tools/compare_offline.py RUN"
  )
  runtime.start_runtime(config)
  rows = compare(
    config,
    args.out,
    trees=str(args.run.resolve()),
    methods=args.methods,
    seeds=args.seeds,
    steps=args.steps,
    budget=args.budget,
  )
  (args.out / "offline.md").write_text(table(rows))
  draw(rows, args.out / "offline.png")
  print(table(rows), end="")


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    sys.exit(f"compare_offline.py: {error}")
