"""Does it pay to choose problems? A ladder of difficulties, at equal tokens.

usage: python tools/compare_curriculum.py [--out build/curriculum]
         [--tokens 40000000] [--points 5] [--seeds 0 1]
         [--curricula uniform difficulty table proposer] [config overrides]

The config is tiny_cpu on countdown with 2, 3 and 4 numbers; overrides are those
of `qstar train`, e.g. `--domain.max-difficulty 2`. Self-play has `--tokens` to
generate and prefill, those of the proposer included, in `num_iterations` equal
parts: the learner's phase comes when a part is used up, however many problems
that took. So all runs have the same tokens and the same gradient steps, at the
same learning rates. Held-out problems are solved with the config's searcher and
without a verifier, `--points` times at equal distances.

A run that has been cut is played again, one that is in OUT/results.jsonl is
not. OUT/curriculum.md has the table, OUT/curriculum.png the picture.
"""

import argparse
import collections
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from qstar_jax import configuration
from qstar_jax.cli import runtime
from qstar_jax.config import CurriculumConfig, ExperimentConfig

LADDER = {
  "--domain.min-difficulty": 1,
  "--domain.max-difficulty": 3,
  "--domain.held-out-problems": 300,
  "--text.max-prompt-tokens": 10,
  "--text.max-step-tokens": 12,
  "--text.max-steps": 3,
  "--evaluation.num-problems": 300,
  # Played until a part of the tokens is used up: half a part or so.
  "--self-play.problems-per-iteration": 512,
}
_TABLE = CurriculumConfig(replay_share=0.25)
CURRICULA = {
  "uniform": CurriculumConfig(uniform_share=1.0),
  "difficulty": CurriculumConfig(),
  "table": _TABLE,
  "proposer": dataclasses.replace(
    _TABLE, proposer_problems=1024, proposer_every_iterations=4
  ),
}

Row = dict[str, Any]


def run(
  config: ExperimentConfig, run_dir: pathlib.Path, tokens: int, points: int
) -> Iterator[Row]:
  """Trains from nothing; yields accuracies by difficulty at every point."""
  # These load JAX, which has to be set up first.
  from qstar_jax.training.alternate import Alternate
  from qstar_jax.training.preemption import catch_signals
  from qstar_jax.training.reporting import Reporter
  from qstar_jax.training.trainer import Trainer

  reporter = Reporter(run_dir, config=config, stream=sys.stderr)
  with catch_signals() as flag, reporter:
    trainer = Trainer(config, epath.Path(run_dir), reporter, flag)
    progress = trainer.progress
    while progress.warm_steps < config.warm_start.steps:
      trainer.warm_start()
    phase, phases = 0, config.num_iterations
    with Alternate(trainer) as source:
      for point in range(points + 1):
        while phase < phases * point // points:
          phase += 1
          source.publish(lambda: trainer.played, trainer.played_step)
          while progress.num_tokens < tokens * phase / phases:
            source.bring(progress, int(trainer.state.step))
            progress.iteration += 1
          trainer.learn()
        yield {
          "point": point,
          "tokens": progress.num_tokens,
          "trees": progress.num_trees,
          "steps": int(trainer.state.step),
          "scores": held_out_scores(trainer),
        }


def held_out_scores(trainer) -> dict[str, list[float]]:
  """Scores of the held-out problems by difficulty, each in [0, 1]."""
  from qstar_jax.evaluation.evaluate import evaluate

  config = trainer.config
  problems = trainer.setup.held_out.evaluation[: config.evaluation.num_problems]
  evaluation = evaluate(
    trainer.examiner.players[config.search.searcher],
    trainer.played,
    trainer.setup.domain,
    problems,
    seed=config.seed,
    on_progress=lambda done: trainer.flag.check(),
  )
  scores = collections.defaultdict(list)
  for problem, result in zip(problems, evaluation.results, strict=True):
    scores[str(problem.difficulty)].append(result.verdict.score)
  return {key: scores[key] for key in sorted(scores)}


def compare(
  config: ExperimentConfig,
  out: pathlib.Path,
  *,
  curricula: Sequence[str],
  seeds: Sequence[int],
  tokens: int,
  points: int,
) -> list[Row]:
  """Runs what OUT/results.jsonl lacks; returns all its rows of this ladder."""
  out.mkdir(parents=True, exist_ok=True)
  results = out / "results.jsonl"
  results.touch()
  ladder = {"tokens": tokens, "points": points}
  rows = [json.loads(line) for line in results.read_text().splitlines()]
  rows = [row for row in rows if row["ladder"] == ladder]
  done = {(row["curriculum"], row["seed"]) for row in rows}
  # Seed by seed, so that what is there can be compared at any time.
  for seed in seeds:
    for name in curricula:
      if (name, seed) in done:
        continue
      of_run = dataclasses.replace(
        config, seed=seed, curriculum=CURRICULA[name]
      )
      head = {"curriculum": name, "seed": seed, "ladder": ladder}
      run_dir = out / f"{name}_{seed}"
      new = [head | row for row in _anew(of_run, run_dir, tokens, points)]
      with results.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in new)
      rows += new
  return rows


def _anew(config, run_dir, tokens, points) -> Iterator[Row]:
  """`run` in a folder without what a cut run left there."""
  epath.Path(run_dir).rmtree(missing_ok=True)
  return run(config, run_dir, tokens, points)


def _by(rows: Sequence[Row], *names: str) -> dict[tuple, list[Row]]:
  """Rows grouped by fields, in the order in which the groups come."""
  groups = collections.defaultdict(list)
  for row in rows:
    groups[tuple(row[name] for name in names)].append(row)
  return dict(groups)


def table(rows: Sequence[Row]) -> str:
  """Of the last point: accuracies over problems and seeds, with intervals.

  Every seed holds out problems of its own. The spread is that of the seeds.
  """
  last = [row for row in rows if row["point"] == row["ladder"]["points"]]
  rungs = list(last[0]["scores"])
  titles = ["curriculum", *(f"difficulty {rung}, %" for rung in rungs)]
  titles += ["all, %", "seeds", "Mtokens", "trees", "gradient steps"]
  lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
  for (name,), group in _by(last, "curriculum").items():
    cells = [_accuracy(group, [rung]) for rung in rungs]
    cells.append(_accuracy(group, rungs))
    means = [100 * np.mean(_scores([row], rungs)) for row in group]
    cells.append(f"{min(means):.1f} to {max(means):.1f}")
    tokens, trees, steps = (
      np.mean([row[name] for row in group])
      for name in ("tokens", "trees", "steps")
    )
    cells += [f"{tokens / 1e6:.1f}", f"{trees:,.0f}", f"{steps:,.0f}"]
    lines.append("| " + " | ".join([name, *cells]) + " |")
  return "\n".join(lines) + "\n"


def _scores(rows: Sequence[Row], rungs: Sequence[str]) -> list[float]:
  return [x for row in rows for rung in rungs for x in row["scores"][rung]]


def _accuracy(rows: Sequence[Row], rungs: Sequence[str]) -> str:
  from qstar_jax.evaluation.metrics import bootstrap_ci95

  scores = _scores(rows, rungs)
  low, high = bootstrap_ci95(scores, seed=0)
  return f"{100 * np.mean(scores):.1f} [{100 * low:.0f}, {100 * high:.0f}]"


def draw(rows: Sequence[Row], path: pathlib.Path) -> None:
  """A panel for each difficulty: accuracy against tokens of self-play."""
  from matplotlib.figure import Figure

  rungs = list(rows[0]["scores"])
  figure = Figure(figsize=(4 * len(rungs), 4), layout="constrained")
  panels = figure.subplots(1, len(rungs), sharey=True, squeeze=False)[0]
  for axes, rung in zip(panels, rungs, strict=True):
    for (name,), group in _by(rows, "curriculum").items():
      points = list(_by(group, "point").values())
      tokens = [np.mean([r["tokens"] for r in point]) / 1e6 for point in points]
      scores = [
        [100 * np.mean(r["scores"][rung]) for r in point] for point in points
      ]
      (line,) = axes.plot(
        tokens, [np.mean(s) for s in scores], marker="o", label=name
      )
      axes.fill_between(
        tokens,
        [min(s) for s in scores],
        [max(s) for s in scores],
        color=line.get_color(),
        alpha=0.15,
      )
    axes.set_title(f"difficulty {rung}", fontsize=10)
    axes.set_xlabel("million tokens of self-play")
    axes.grid(alpha=0.3)
  panels[0].set_ylabel("held-out problems solved, %")
  panels[0].legend(fontsize=8)
  figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--out", type=pathlib.Path, default="build/curriculum")
  parser.add_argument("--tokens", type=int, default=40_000_000)
  parser.add_argument("--points", type=int, default=5)
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
  parser.add_argument(
    "--curricula", nargs="+", choices=CURRICULA, default=list(CURRICULA)
  )
  args, overrides = parser.parse_known_args(argv)
  ladder = [str(part) for option in LADDER.items() for part in option]
  config = configuration.load("tiny_cpu", [*ladder, *overrides])
  runtime.start_runtime(config)
  rows = compare(
    config,
    args.out,
    curricula=args.curricula,
    seeds=args.seeds,
    tokens=args.tokens,
    points=args.points,
  )
  (args.out / "curriculum.md").write_text(table(rows))
  draw(rows, args.out / "curriculum.png")
  print(table(rows), end="")


if __name__ == "__main__":
  main()
