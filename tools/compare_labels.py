"""Whose labels teach a PRM best, and what do they cost?

usage: python tools/compare_labels.py RUN [--out build/labels]
         [--num-trees 1024] [--lines-per-tree 8] [--steps 200]
         [--seeds 0 1 2] [--sources oracle checked ...] [config overrides]

RUN is a finished run, e.g. of tiny_cpu. Of its newest trees some lines are
drawn, the same for everybody, and every source is asked about their steps:

  oracle         the domain's exact one: the ceiling
  checked        rules and verdicts
  rollouts_soft, rollouts_hard, binary_search
                 play by the run's network, `labels` of the config; bisection
                 adds the roll-outs that it came upon
  tree_q         the search that made the trees
  judge          a copy of the run's network, taught by the checked labels of
                 labels.judge.teach_share of the trees

A copy of the run's network whose PRM head is empty then learns the PRM, and
nothing else, from those labels: for every source the same start, optimizer,
gradient steps and rows to a step. What the trunk knows of steps it knows
before, so let RUN be one that has had no labels of steps, only answers:

  qstar train tiny_cpu --learner.losses.prm 0 --run-dir runs/no_prm

The PRMs score the same steps: all different ones of the lines that the run's
policy samples of held-out problems (search.num_lines of each), against the
oracle. Seeds change the play of the sources, the judge, and the rows that are
drawn; neither trees nor scored steps.

Intervals are bootstrapped over problems. A row that is in OUT/results.jsonl is
not made again. OUT/labels.md has the table, OUT/labels.png the picture.
"""

import argparse
import collections
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from matplotlib.figure import Figure

from qstar_jax import configuration
from qstar_jax.cli import runtime
from qstar_jax.distributed.mesh import make_mesh
from qstar_jax.errors import UserError
from qstar_jax.evaluation import calibration, job
from qstar_jax.evaluation.opened import Opened, open_checkpoint
from qstar_jax.evaluation.scored_lines import labelled_lines
from qstar_jax.evaluation.step_scores import score_lines
from qstar_jax.labels.lines import (
  Line,
  StepName,
  labelled,
  labels_on,
  step_names,
)
from qstar_jax.labels.merge import merge
from qstar_jax.labels.network_sources import NETWORK_SOURCES, network_source
from qstar_jax.labels.tree_lines import tree_lines
from qstar_jax.labels.tree_sources import TREE_SOURCES, tree_source
from qstar_jax.learner import phase, train_step
from qstar_jax.learner.labelled import labelled_to_rows
from qstar_jax.learner.rows import take
from qstar_jax.records import NO_LABEL, LabelledLine, TrainBatch, TreeRecord
from qstar_jax.replay import ReplayReader
from qstar_jax.training import judge_lessons, labelling
from qstar_jax.training.labelled_data import tokenise

SOURCES = ("oracle", "checked", "rollouts_soft", "rollouts_hard")
SOURCES += ("binary_search", "tree_q", "judge")

Row = dict[str, Any]


def draw_lines(
  opened: Opened, trees: Sequence[TreeRecord], lines_per_tree: int
) -> list[list[Line]]:
  """Lines of each tree, all equally likely; each step begins one at most."""
  rng = np.random.default_rng(0)
  found = []
  for number, tree in enumerate(trees):
    lines = list(
      tree_lines(
        tree,
        opened.loaded.vocabulary,
        opened.domain,
        which="all",
        number=number,
      )
    )
    drawn = sorted(rng.permutation(len(lines))[:lines_per_tree])
    seen: set[StepName] = set()
    own = []
    for line in (lines[i] for i in drawn):
      own.append(line._replace(begin=len(seen.intersection(step_names(line)))))
      seen.update(step_names(line))
    found.append(own)
  return found


def ask_oracle(opened: Opened, lines: Iterable[Line]) -> Iterator[LabelledLine]:
  """Whether a solution can still be reached after each step."""
  for line in lines:
    label = [
      float(opened.domain.solvable(line.problem, line.steps[:end]))
      for end in range(line.begin + 1, len(line.steps) + 1)
    ]
    yield labelled(
      line,
      [NO_LABEL] * line.begin + label,
      kind="hard",
      source="oracle",
      params_version=-1,
      tokens=0,
    )


def ask_tree(
  source: str, opened: Opened, tree: TreeRecord, lines: Sequence[Line]
) -> Iterator[LabelledLine]:
  """What a source of trees says of the steps of some lines of a tree."""
  label = tree_source(
    source, opened.loaded.vocabulary, opened.domain, opened.config.search
  )
  return labels_on(lines, label(tree))


def ask(
  source: str,
  opened: Opened,
  trees: Sequence[TreeRecord],
  lines: Sequence[Sequence[Line]],
  seed: int,
) -> list[LabelledLine]:
  """What a source says of the lines of trees, with no label twice."""
  flat = [line for own in lines for line in own]
  loaded = opened.loaded
  if source in TREE_SOURCES:
    answers = (
      line
      for tree, own in zip(trees, lines, strict=True)
      for line in ask_tree(source, opened, tree, own)
    )
  elif source in NETWORK_SOURCES:
    params = loaded.params
    if source == "judge":
      lessons = judge_lessons.lessons(
        opened, trees, len(trees), lines.__getitem__
      )
      params, _ = judge_lessons.teach(opened, lessons)
    answers = network_source(
      source,
      loaded.graphdef,
      params,
      opened.domain,
      loaded.vocabulary,
      config=opened.config,
      mesh=make_mesh(opened.config.mesh),
      seed=seed,
      params_version=loaded.step,
    )(flat)
  else:
    answers = ask_oracle(opened, flat)
  found = list(merge(answers))
  if not any((line.label >= 0).any() for line in found):
    raise UserError(
      f"{source} says nothing of the lines that were drawn: give more trees"
    )
  return found


def agreement(opened: Opened, lines: Sequence[LabelledLine]) -> dict[str, Any]:
  """Labels, their cost, and how many lie on the oracle's side of 1/2."""
  labels, truth = [], []
  for line in lines:
    problem = opened.domain.parse(line.prompt)
    for i in np.flatnonzero(line.label >= 0):
      labels.append(line.label[i])
      truth.append(opened.domain.solvable(problem, line.steps[: i + 1]))
  labels, truth = np.array(labels), np.array(truth)
  return {
    "labels": len(labels),
    "tokens": sum(line.tokens for line in lines),
    "mean_label": float(labels.mean()),
    "mean_truth": float(truth.mean()),
    "agreement": float(((labels > 0.5) == truth).mean()),
  }


def to_rows(opened: Opened, lines: Sequence[LabelledLine]) -> TrainBatch:
  """Rows that teach the PRM alone."""
  text = opened.config.text
  found = [
    row
    for line in lines
    for row in tokenise(line, opened.loaded.vocabulary, text)[0]
  ]
  rows = labelled_to_rows(found, text.max_line_tokens)
  nothing = np.zeros_like(rows.policy_weight)
  return dataclasses.replace(rows, policy_weight=nothing)


def without_prm(params: Any) -> Any:
  """A copy of params that says 1/2 of every step."""
  return jax.tree.map_with_path(
    lambda path, x: jnp.zeros_like(x) if _is_prm(path) else jnp.copy(x), params
  )


def _is_prm(path: Sequence[Any]) -> bool:
  return any(getattr(key, "key", None) == "prm_head" for key in path)


class Pupils:
  """Trains copies of a network; compiled once for all of them."""

  def __init__(self, opened: Opened, num_steps: int):
    # Whatever the run's were.
    self._learner = dataclasses.replace(
      opened.config.learner, losses={"prm": 1.0}
    )
    self._params = opened.loaded.params
    self._mesh = make_mesh(opened.config.mesh)
    self._num_steps = num_steps
    self._optimizer = train_step.make_optimizer(self._learner, num_steps)
    self._train_steps = train_step.make_train_steps(
      opened.loaded.graphdef, self._optimizer, self._learner, self._mesh
    )

  def train(self, rows: TrainBatch, seed: int) -> Any:
    """The params that rows, drawn with replacement, lead to."""
    rng = np.random.default_rng(seed)
    size = self._learner.lines_per_batch
    state, _ = phase.run_steps(
      self._train_steps,
      train_step.init_state(
        without_prm(self._params), self._optimizer, self._learner, self._mesh
      ),
      (
        take(rows, rng.integers(len(rows.tokens), size=size), size)
        for _ in range(self._num_steps)
      ),
      self._mesh,
      steps_per_call=self._learner.steps_per_call,
    )
    return state.played


def held_out_steps(opened: Opened) -> list[LabelledLine]:
  """Steps that the policy samples of held-out problems, with the truth."""
  vocabulary = opened.loaded.vocabulary
  sample = labelling.sample_fn(opened, seed=0)
  problems = job.select_problems(opened, None, None)
  lines = (
    line
    for number, tree in enumerate(sample(problems, 0))
    for line in tree_lines(
      tree, vocabulary, opened.domain, which="all", number=number
    )
  )
  return list(ask_oracle(opened, lines))


def score(
  opened: Opened, params: Any, lines: Sequence[LabelledLine]
) -> dict[str, Any]:
  """AUROC, Brier score and ECE of a PRM on labelled lines."""
  scored = score_lines(
    opened.loaded.graphdef,
    params,
    opened.loaded.vocabulary,
    lines,
    text=opened.config.text,
    batch_size=opened.config.evaluation.batch_size,
  )
  fitting = ((line, found) for line, found in scored if found is not None)
  report = calibration.report(list(labelled_lines(fitting)), seed=0)
  names = ("steps", "mean_label", "auroc", "brier", "ece")
  return {name: report[name] for name in names}


@dataclasses.dataclass(frozen=True)
class Setting:
  """What all rows of a table have in common.

  Attributes:
    checkpoint: step of the network that samples, plays on and judges.
    num_trees: the newest of the run.
    lines_per_tree: drawn of each.
    steps: gradient steps of every PRM.
    overrides: of the run's config.
  """

  checkpoint: int
  num_trees: int
  lines_per_tree: int
  steps: int
  overrides: tuple[str, ...]


def compare(
  opened: Opened,
  trees: ReplayReader,
  setting: Setting,
  results: pathlib.Path,
  *,
  sources: Sequence[str],
  seeds: Sequence[int],
) -> list[Row]:
  """Makes the rows that `results` lacks; returns all of the setting's."""
  results.parent.mkdir(parents=True, exist_ok=True)
  results.touch()
  told = json.loads(json.dumps(dataclasses.asdict(setting)))
  rows = [json.loads(line) for line in results.read_text().splitlines()]
  rows = [row for row in rows if row["setting"] == told]
  done = {(row["source"], row["seed"]) for row in rows}
  # Seed by seed, so that what is there can be compared at any time.
  asked = [(source, seed) for seed in seeds for source in sources]
  if left := [pair for pair in asked if pair not in done]:
    first = max(len(trees) - setting.num_trees, 0)
    newest = [trees[i] for i in range(first, len(trees))]
    lines = draw_lines(opened, newest, setting.lines_per_tree)
    test = held_out_steps(opened)
    pupils = Pupils(opened, setting.steps)
    for source, seed in left:
      config = dataclasses.replace(opened.config, seed=seed)
      seeded = dataclasses.replace(opened, config=config)
      labels = ask(source, seeded, newest, lines, seed)
      params = pupils.train(to_rows(opened, labels), seed)
      row = {
        "source": source,
        "seed": seed,
        "setting": told,
        **agreement(opened, labels),
        "test": score(opened, params, test),
      }
      with results.open("a") as file:
        file.write(json.dumps(row) + "\n")
      rows.append(row)
  return rows


def _by_source(rows: Sequence[Row]) -> dict[str, list[Row]]:
  groups = collections.defaultdict(list)
  for row in rows:
    groups[row["source"]].append(row)
  return {source: groups[source] for source in SOURCES if source in groups}


def table(rows: Sequence[Row]) -> str:
  """Means over seeds, of values and of the ends of their intervals."""
  titles = ["source", "AUROC, %", "seeds", "ECE, %", "seeds", "labels"]
  titles += ["mean label, %", "agree with oracle, %", "tokens a label"]
  lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
  for source, group in _by_source(rows).items():
    cells = [source]
    for name in ("auroc", "ece"):
      figures = [row["test"][name] for row in group]
      value = 100 * np.array([figure["value"] for figure in figures], float)
      ends = np.array([figure["ci95"] for figure in figures], float)
      low, high = 100 * ends.mean(axis=0)
      cells.append(f"{value.mean():.1f} [{low:.1f}, {high:.1f}]")
      cells.append(f"{value.min():.1f} to {value.max():.1f}")
    mean = {
      name: np.mean([row[name] for row in group])
      for name in ("labels", "mean_label", "agreement", "tokens")
    }
    cells += [
      f"{mean['labels']:.0f}",
      f"{100 * mean['mean_label']:.1f}",
      f"{100 * mean['agreement']:.1f}",
      f"{mean['tokens'] / mean['labels']:.1f}",
    ]
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], path: pathlib.Path) -> None:
  """AUROC and ECE: a dot for each seed with its interval, by source."""
  groups = _by_source(rows)
  figure = Figure(figsize=(9, 4), layout="constrained")
  panels = figure.subplots(1, 2, sharey=True)
  for axes, name in zip(panels, ("auroc", "ece"), strict=True):
    for place, group in enumerate(groups.values()):
      figures = [row["test"][name] for row in group]
      value = np.array([f["value"] for f in figures], float)
      ends = np.array([f["ci95"] for f in figures], float)
      apart = place + 0.12 * (np.arange(len(group)) - (len(group) - 1) / 2)
      axes.errorbar(
        100 * value,
        apart,
        xerr=100 * np.abs(ends.T - value),
        fmt="o",
        color=f"C{place}",
        ms=4,
      )
    axes.set_xlabel(f"{name.upper()} against the oracle, %")
    axes.grid(alpha=0.3)
  panels[0].set_yticks(range(len(groups)), list(groups))
  panels[0].invert_yaxis()
  figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("run", type=pathlib.Path)
  parser.add_argument("--out", type=pathlib.Path, default="build/labels")
  parser.add_argument("--num-trees", type=int, default=1024)
  parser.add_argument("--lines-per-tree", type=int, default=8)
  parser.add_argument("--steps", type=int, default=200)
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument(
    "--sources", nargs="+", choices=SOURCES, default=list(SOURCES)
  )
  args, overrides = parser.parse_known_args(argv)
  config = configuration.load_run(
    args.run, overrides, prog="tools/compare_labels.py RUN"
  )
  runtime.start_runtime(config)
  opened = open_checkpoint(args.run, config)
  setting = Setting(
    opened.loaded.step,
    args.num_trees,
    args.lines_per_tree,
    args.steps,
    tuple(overrides),
  )
  rows = compare(
    opened,
    ReplayReader(epath.Path(args.run) / "replay"),
    setting,
    args.out / "results.jsonl",
    sources=args.sources,
    seeds=args.seeds,
  )
  (args.out / "labels.md").write_text(table(rows))
  draw(rows, args.out / "labels.png")
  print(table(rows), end="")


if __name__ == "__main__":
  main()
