"""Which parts of the loop does a result need?

usage: python tools/ablate.py STUDY.yaml [--out build/STUDY] [--arms NAME ...]

Trains a run for every arm and seed of a study, evaluates each, and compares the
arms with the first one. A study is a YAML file:

  config: game24_cpu                  # as of `qstar train`
  options: --max-minutes 15           # of all arms
  seeds: [0, 1]
  evaluate: --problems game24/24.csv --rows 900:1000 --searcher greedy,gumbel
  arms:                               # a name and its options a line
    reference:
    no PRM in the loss: --learner.losses.prm 0

Cut at any time and run again, it goes on where it was: runs resume, and what
is finished and evaluated is left alone. With `--arms` it trains these only, so
that several can share a study; the table has all arms that are finished.
OUT/ARM_SEED is a run's directory, with its evaluation in it; OUT/ablation.md
has the table, OUT/ablation.json the figures, OUT/ablation.png the picture.

A problem counts once a run, with the mean of its plays. Intervals are 95 %,
bootstrapped over the problems of these runs: they do not tell how other runs
would end, of which the figures by seed give an idea. A difference is of the
same problem and seed.
"""

import argparse
import json
import pathlib
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import yaml
from etils import epath
from matplotlib.figure import Figure

from qstar_jax.evaluation.metrics import bootstrap_ci95
from qstar_jax.store import files

# In a run's directory: the command that evaluated it, once it has.
_DONE = "evaluated.json"


class Study(NamedTuple):
  """What is compared.

  Attributes:
    config: of all runs.
    options: of all runs.
    seeds: of the runs of every arm.
    evaluate: options of `qstar evaluate`.
    arms: options by name; the first is what the others are compared with.
  """

  config: str
  options: str
  seeds: Sequence[int]
  evaluate: str
  arms: Mapping[str, str]


def read_study(path: pathlib.Path) -> Study:
  """The study of a YAML file; exits if it is none."""
  try:
    study = Study(**yaml.safe_load(path.read_text(encoding="utf-8")))
    arms = {str(k): v or "" for k, v in study.arms.items()}
  except (OSError, TypeError, AttributeError, yaml.YAMLError) as error:
    sys.exit(f"ablate.py: {path} is no study: {error}")
  if not (arms and study.seeds):
    sys.exit(f"ablate.py: {path} is no study: it needs an arm and a seed")
  return study._replace(arms=arms)


def qstar(command: Sequence[str]) -> int:
  """Runs a command in a process of its own; its exit code.

  SIGINT and SIGTERM are the command's: it saves what it has, and ends.
  """
  program = pathlib.Path(sys.executable).with_name("qstar")
  # In a session of its own a Ctrl-C reaches it once, from here.
  with subprocess.Popen([program, *command], start_new_session=True) as process:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [
      signal.signal(number, lambda number, _: process.send_signal(number))
      for number in numbers
    ]
    try:
      return process.wait()
    finally:
      for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def run_dir_of(out: pathlib.Path, arm: str, seed: int) -> pathlib.Path:
  """Where an arm's run of a seed is."""
  return out / f"{re.sub(r'[^a-z0-9]+', '_', arm.lower())}_{seed}"


def evaluation_of(study: Study, run_dir: pathlib.Path) -> list[str]:
  """The command that evaluates a run."""
  out = str(run_dir / "evaluation")
  return ["evaluate", str(run_dir), *shlex.split(study.evaluate), "--out", out]


def is_evaluated(study: Study, run_dir: pathlib.Path) -> bool:
  """Whether a run is finished, and evaluated as the study says now."""
  done = run_dir / _DONE
  command = evaluation_of(study, run_dir)
  return done.exists() and json.loads(done.read_text()) == command


def run_arm(study: Study, arm: str, seed: int, run_dir: pathlib.Path) -> None:
  """Trains and evaluates, as far as that has not been done yet."""
  train = ["train", study.config, *shlex.split(study.options)]
  train += [*shlex.split(study.arms[arm]), "--seed", str(seed)]
  print(f"{arm}, seed {seed}", file=sys.stderr, flush=True)
  # Has nothing to do in a run that is finished, and refuses that of another
  # config.
  if code := qstar([*train, "--run-dir", str(run_dir)]):
    sys.exit(code)
  if is_evaluated(study, run_dir):
    return
  (run_dir / _DONE).unlink(missing_ok=True)
  command = evaluation_of(study, run_dir)
  if code := qstar(command):
    sys.exit(code)
  files.publish_text(epath.Path(run_dir / _DONE), json.dumps(command))


def scores_of(
  out: pathlib.Path, arm: str, seeds: Sequence[int]
) -> dict[str, np.ndarray]:
  """Scores [seeds, problems] by searcher and budget, means of the plays."""
  found: dict[str, list[np.ndarray]] = {}
  for seed in seeds:
    path = run_dir_of(out, arm, seed) / "evaluation" / "problems.jsonl"
    plays: dict[str, dict[str, list[float]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
      play = json.loads(line)
      name = play["searcher"]
      if play["budget"] is not None and name != "greedy":
        name += f", {play['budget']} tokens"
      of_name = plays.setdefault(name, {})
      of_name.setdefault(play["problem"], []).append(play["score"])
    for name, of_name in plays.items():
      means = np.array([np.mean(scores) for scores in of_name.values()])
      found.setdefault(name, []).append(means)
  return {name: np.array(scores) for name, scores in found.items()}


def effort_of(run_dir: pathlib.Path) -> dict[str, float]:
  """Minutes, iterations and self-play tokens of a run."""
  lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
  records = [json.loads(line) for line in lines]
  last = [record for record in records if record["kind"] == "iteration"][-1]
  return {
    "minutes": last["minutes"],
    "iterations": last["iteration"],
    "tokens": last.get("tokens", 0),
  }


def summarise(
  out: pathlib.Path, arms: Sequence[str], seeds: Sequence[int]
) -> list[dict[str, Any]]:
  """A row for every arm and searcher."""
  reference = scores_of(out, arms[0], seeds)
  rows = []
  for arm in arms:
    efforts = [effort_of(run_dir_of(out, arm, seed)) for seed in seeds]
    effort = {
      name: float(np.mean([effort[name] for effort in efforts]))
      for name in efforts[0]
    }
    for searcher, scores in scores_of(out, arm, seeds).items():
      lead = scores - reference[searcher]
      rows.append(
        {
          "arm": arm,
          "searcher": searcher,
          "top1": float(scores.mean()),
          "ci95": list(bootstrap_ci95(scores.ravel(), seed=0)),
          "by_seed": scores.mean(axis=1).tolist(),
          "lead": float(lead.mean()),
          "lead_ci95": list(bootstrap_ci95(lead.ravel(), seed=0)),
          **effort,
        }
      )
  return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
  """The rows in markdown."""

  def interval(value, ci95, sign=""):
    low, high = (f"{100 * bound:{sign}.0f}" for bound in ci95)
    return f"{100 * value:{sign}.1f} [{low}, {high}]"

  lines = [
    "| arm | searcher | top-1, % | by seed | lead, points | iterations "
    "| self-play tokens | minutes |",
    "|---" * 8 + "|",
  ]
  for row in rows:
    by_seed = ", ".join(f"{100 * value:.1f}" for value in row["by_seed"])
    lines.append(
      f"| {row['arm']} | {row['searcher']} "
      f"| {interval(row['top1'], row['ci95'])} | {by_seed} "
      f"| {interval(row['lead'], row['lead_ci95'], '+')} "
      f"| {row['iterations']:.0f} | {row['tokens'] / 1e6:.1f} M "
      f"| {row['minutes']:.1f} |"
    )
  return "\n".join(lines) + "\n"


def draw(rows: Sequence[dict[str, Any]]) -> Figure:
  """Top-1 of every arm, a panel for each searcher."""
  searchers = list(dict.fromkeys(row["searcher"] for row in rows))
  arms = list(dict.fromkeys(row["arm"] for row in rows))
  figure = Figure(
    figsize=(3 + 3.5 * len(searchers), 1 + 0.45 * len(arms)),
    layout="constrained",
  )
  panels = figure.subplots(1, len(searchers), sharey=True, squeeze=False)[0]
  for axes, searcher in zip(panels, searchers, strict=True):
    for row in (row for row in rows if row["searcher"] == searcher):
      y = arms.index(row["arm"])
      color = f"C{y}"
      axes.plot([100 * x for x in row["ci95"]], [y, y], color=color, lw=2)
      axes.plot(100 * row["top1"], y, "o", color=color)
      for value in row["by_seed"]:
        axes.plot(100 * value, y, "|", color="black", markersize=9)
    axes.set_xlabel(f"{searcher}: top-1, %")
    axes.grid(alpha=0.3)
  panels[0].set_yticks(range(len(arms)), arms)
  panels[0].invert_yaxis()
  return figure


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("study", type=pathlib.Path)
  parser.add_argument("--out", type=pathlib.Path)
  parser.add_argument("--arms", nargs="+", help="only these; default: all")
  args = parser.parse_args(argv)
  study = read_study(args.study)
  out = args.out or pathlib.Path("build", args.study.stem)
  arms = args.arms or list(study.arms)
  if unknown := [arm for arm in arms if arm not in study.arms]:
    known = ", ".join(study.arms)
    sys.exit(f"ablate.py: no arm {unknown[0]!r}; the study has {known}")
  out.mkdir(parents=True, exist_ok=True)
  # Seed by seed, so that arms can be compared at any time.
  for seed in study.seeds:
    for arm in arms:
      run_arm(study, arm, seed, run_dir_of(out, arm, seed))
    report(study, out)


def report(study: Study, out: pathlib.Path) -> None:
  """Writes and prints what is known of the seeds that the first arm has."""

  def has(arm, seed):
    return is_evaluated(study, run_dir_of(out, arm, seed))

  reference = next(iter(study.arms))
  seeds = [seed for seed in study.seeds if has(reference, seed)]
  if not seeds:
    print(f"{reference} is not finished: nothing to compare", file=sys.stderr)
    return
  arms = [arm for arm in study.arms if all(has(arm, seed) for seed in seeds)]
  rows = summarise(out, arms, seeds)
  for name, text in (
    ("ablation.json", json.dumps(rows, indent=1) + "\n"),
    ("ablation.md", table(rows)),
  ):
    files.publish_text(epath.Path(out / name), text)
  draw(rows).savefig(out / "ablation.png", dpi=150)
  print(table(rows), end="")


if __name__ == "__main__":
  main()
