"""Which of N sampled lines to take: PRM, value, majority?

usage: python tools/compare_choosers.py RUN [--num-problems 1000]
         [--num-seeds 3] [--out DIR] [--search.num-lines 64 ...]

The policy samples lines of held-out problems, once for each problem and seed;
every chooser picks from the same lines. For N below their number a score is the
expectation over all subsets of N of them: exact, but for `majority`, which is
the mean over 64 draws. Intervals are bootstrapped over problems and seeds.

  prm_min      the line of largest least PRM score of its steps
  prm_product  of largest product of them
  value        of largest V at its end
  majority     the answer that most lines give, as they write it
  random       any line
  any          a right line if there is one: the ceiling

A line that was cut, or did not finish, is taken only if no line finished. No
chooser knows the verifier's word, but for `any`.

Writes choosers.json, .csv, .md and .png to DIR (default: RUN/choosers), and the
table to stdout. The run must have held out as many problems as are asked for.
"""

import argparse
import csv
import io
import json
import math
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from qstar_jax import configuration
from qstar_jax.cli import runtime
from qstar_jax.errors import UserError
from qstar_jax.store import files

CHOOSERS = ("prm_min", "prm_product", "value", "majority", "random", "any")
# More than a picture takes; only named where the disk is full.
_MAX_BYTES = 1_000_000


class Lines(NamedTuple):
  """The n lines of one play.

  Attributes:
    score: float [n] in [0, 1], the verifier's.
    keys: float [n] by chooser, for those that take the largest; ties are
      broken at random.
    answers: n texts; empty of a line that did not finish.
  """

  score: np.ndarray
  keys: dict[str, np.ndarray]
  answers: list[str]


def expected_of_best(key: np.ndarray, score: np.ndarray, k: int) -> float:
  """Mean score of the line of largest key among k of n, over all subsets.

  The line of rank r, from 0, is the best of C(n - 1 - r, k - 1) of the C(n, k)
  subsets; lines of equal keys share what their ranks have.

  Args:
    key: [n].
    score: [n].
    k: 1 to n.
  """
  n = len(key)
  order = np.argsort(-key)
  chance = np.array([math.comb(n - 1 - r, k - 1) for r in range(n)], float)
  _, group = np.unique(key[order], return_inverse=True)
  mean = np.bincount(group, score[order]) / np.bincount(group)
  return float(chance @ mean[group] / math.comb(n, k))


def read_lines(domain, played) -> Lines:
  """The lines of a play of `best_of_n`."""
  from qstar_jax.search.tree import NONE, line_index

  tree = played.tree
  is_tip = (tree.sampled > 0) & (tree.child == NONE)
  prms, values, scores, answers = [], [], [], []
  for edge in map(tuple, np.argwhere(is_tip)):
    steps = played.judge.line(int(line_index(tree, *edge)))
    is_finished = not tree.is_failed[edge]
    answers.append(domain.answer(played.problem, steps) if is_finished else "")
    scores.append(float(tree.score[edge]))
    values.append(tree.value[edge] if is_finished else -1.0)
    prm = []
    while edge[0] != NONE:
      prm.append(tree.prm[edge])
      edge = tree.parent[edge[0]], tree.candidate[edge[0]]
    prms.append(np.array(prm) if is_finished else np.array([-1.0]))
  score = np.array(scores)
  keys = {
    "prm_min": np.array([prm.min() for prm in prms]),
    "prm_product": np.array([prm.prod() for prm in prms]),
    "value": np.array(values),
    "random": np.zeros(len(score)),
    "any": score,
  }
  return Lines(score, keys, answers)


def measure(lines: Lines, sizes: Sequence[int], seed: int) -> np.ndarray:
  """Expected scores [choosers, sizes] of one play."""
  from qstar_jax.evaluation import metrics

  return np.array(
    [
      [
        metrics.maj_at_k(lines.answers, lines.score, k, seed)
        if chooser == "majority"
        else expected_of_best(lines.keys[chooser], lines.score, k)
        for k in sizes
      ]
      for chooser in CHOOSERS
    ]
  )


def play(
  opened, problems: Sequence[Any], num_seeds: int, seed: int
) -> Iterator[Lines]:
  """Lines of every problem, then with other seeds again."""
  from qstar_jax.search.searchers import for_evaluation
  from qstar_jax.selfplay.player import Job

  search = for_evaluation(opened.config.search, "best_of_n")
  total = num_seeds * len(problems)
  player = opened.player(
    search, min(opened.config.evaluation.batch_size, total)
  )
  jobs = (Job(problems[i % len(problems)], seed + i) for i in range(total))
  for played in player.play(opened.loaded.params, jobs):
    yield read_lines(opened.domain, played)


def summarize(
  scores: np.ndarray, sizes: Sequence[int], seed: int
) -> list[dict[str, Any]]:
  """A row for every chooser and size.

  Args:
    scores: [problems, seeds, choosers, sizes].
    sizes: N.
    seed: of the bootstrap.
  """
  from qstar_jax.evaluation.metrics import bootstrap_ci95

  rows = []
  for c, chooser in enumerate(CHOOSERS):
    for k, size in enumerate(sizes):
      own = scores[:, :, c, k]
      row = {
        "chooser": chooser,
        "lines": size,
        "solved": float(own.mean()),
        "ci95": list(bootstrap_ci95(own, seed)),
      }
      for other in "majority", "value":
        # Paired: the same lines of the same problems.
        lead = own - scores[:, :, CHOOSERS.index(other), k]
        row[f"over_{other}"] = float(lead.mean())
        row[f"over_{other}_ci95"] = list(bootstrap_ci95(lead, seed))
      rows.append(row)
  return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
  """Choosers by N in markdown: % solved [95 % interval]."""
  sizes = list(dict.fromkeys(row["lines"] for row in rows))
  lines = [
    "| chooser | " + " | ".join(map(str, sizes)) + " |",
    "|---" * (1 + len(sizes)) + "|",
  ]
  for chooser in CHOOSERS:
    cells = [
      f"{100 * row['solved']:.1f} "
      f"[{100 * row['ci95'][0]:.1f}, {100 * row['ci95'][1]:.1f}]"
      for row in rows
      if row["chooser"] == chooser
    ]
    lines.append(f"| {chooser} | " + " | ".join(cells) + " |")
  return "\n".join(lines) + "\n"


def draw(rows: Sequence[dict[str, Any]], title: str) -> Figure:
  """% solved against N, 95 % intervals shaded."""
  figure = Figure(figsize=(7, 5), layout="constrained")
  axes = figure.add_subplot()
  for chooser in CHOOSERS:
    own = [row for row in rows if row["chooser"] == chooser]
    sizes = [row["lines"] for row in own]
    style = "--" if chooser in ("random", "any") else "-"
    (line,) = axes.plot(
      sizes,
      [100 * row["solved"] for row in own],
      style,
      marker="o",
      markersize=4,
      label=chooser.replace("_", " "),
    )
    low, high = zip(*(row["ci95"] for row in own), strict=True)
    axes.fill_between(
      sizes,
      [100 * x for x in low],
      [100 * x for x in high],
      color=line.get_color(),
      alpha=0.15,
      lw=0,
    )
  axes.set_xscale("log", base=2)
  axes.set_xticks(sizes, map(str, sizes))
  axes.set_xlabel("N, lines to choose from")
  axes.set_ylabel("solved, %")
  axes.set_title(title, fontsize=10)
  axes.grid(alpha=0.3)
  axes.legend(fontsize=8)
  return figure


def write(
  directory: epath.Path, about: dict[str, Any], rows: Sequence[dict[str, Any]]
) -> None:
  """The files that the module's docstring names."""
  files.make_folder(directory)
  text = io.StringIO()
  writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
  writer.writeheader()
  writer.writerows(
    {
      name: json.dumps(value) if isinstance(value, list) else value
      for name, value in row.items()
    }
    for row in rows
  )
  results = json.dumps({**about, "results": list(rows)}, indent=1) + "\n"
  files.publish_text(directory / "choosers.json", results)
  files.publish_text(directory / "choosers.csv", text.getvalue())
  files.publish_text(directory / "choosers.md", table(rows))
  title = (
    f"{about['domain']}: {about['problems']} held-out problems, "
    f"{about['num_seeds']} plays each"
  )
  figure = draw(rows, title)
  files.publish(
    directory / "choosers.png",
    _MAX_BYTES,
    lambda aside: figure.savefig(pathlib.Path(aside), format="png", dpi=150),
  )


def held_out_problems(opened, num_problems: int) -> list[Any]:
  """As many of the run's held-out problems; UserError if there are fewer."""
  from qstar_jax.domains.splits import held_out_by

  config = opened.config.domain
  if config.held_out_problems < num_problems:
    raise UserError(
      f"--num-problems {num_problems}: the run held out "
      f"{config.held_out_problems}; train one with "
      f"--domain.held-out-problems {num_problems}, or ask for fewer"
    )
  held_out = held_out_by(opened.config, opened.domain)
  return held_out.evaluation[:num_problems]


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("run")
  parser.add_argument("--num-problems", type=int, default=1000)
  parser.add_argument("--num-seeds", type=int, default=3)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--out", help="default: RUN/choosers")
  args, overrides = parser.parse_known_args()
  config = configuration.load_run(
    args.run,
    ["--search.num-lines", "64", *overrides],
    prog="compare_choosers.py RUN",
  )
  runtime.start_runtime(config)
  from qstar_jax.evaluation.opened import open_checkpoint

  opened = open_checkpoint(args.run, config)
  problems = held_out_problems(opened, args.num_problems)
  num_lines = config.search.num_lines
  sizes = [2**i for i in range(num_lines.bit_length())]
  scores = np.array(
    [
      measure(lines, sizes, args.seed)
      for lines in play(opened, problems, args.num_seeds, args.seed)
    ]
  ).reshape(args.num_seeds, len(problems), len(CHOOSERS), len(sizes))
  rows = summarize(scores.swapaxes(0, 1), sizes, args.seed)
  about = {
    "domain": opened.domain.name,
    "checkpoint_step": opened.loaded.step,
    "problems": len(problems),
    "num_seeds": args.num_seeds,
    "seed": args.seed,
    "lines_sampled": num_lines,
  }
  write(epath.Path(args.out or f"{args.run}/choosers"), about, rows)
  print(table(rows), end="")


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    sys.exit(f"compare_choosers.py: {error}")
