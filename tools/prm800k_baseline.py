"""How far do shallow features go in telling wrong steps of PRM800K?

usage: python tools/prm800k_baseline.py DATA [--run RUN] [--held-out SHARE]
         [--out build/prm800k]

DATA holds prm800k/phase1_{train,test}_steps.jsonl.gz. Logistic regression on
the step's length, its depth in the line and a bag of its words is trained on
the train file and judged on the test file; no problem is in both. Rating 0
counts as right, as in the paper; rating null has no label and is left out. A
step rated several times counts each time.

With `--run` the PRM of a run is judged on the same steps, and the difference of
the two AUROCs is given; steps that do not fit the network's rows score 1/2
there. `--held-out` leaves the test file alone: what is judged are the problems
of the train file that `data.held_out_share` SHARE keeps back from a run, and
the regression is trained on the others. Intervals are 95 %, from resamples of
problems. OUT/prm800k.json has what is printed.
"""

import argparse
import collections
import json
import pathlib
import re
from collections.abc import Sequence

import numpy as np
import scipy.optimize
import scipy.sparse
import scipy.special

from qstar_jax import step_metrics
from qstar_jax.data import prm800k
from qstar_jax.data.reading import Report
from qstar_jax.records import LabelledLine
from qstar_jax.training.labelled_data import is_held_out

_WORD = re.compile(r"[a-z]+|[0-9]+|\\[a-z]+|\S", re.IGNORECASE)
# Words of fewer training steps are left out.
_MIN_STEPS = 5
# Weights of the squared norm; the best on training problems held out is taken.
_PENALTIES = (3.0, 10.0, 30.0, 100.0, 300.0)
_HELD_OUT = 0.1


def read_steps(path: pathlib.Path) -> list[LabelledLine]:
  """Rated completions: lines of which the last step alone has a label."""
  return [line for line in prm800k.read(path, Report()) if line.label[-1] >= 0]


def read_splits(
  data: pathlib.Path, held_out: float | None
) -> tuple[list[LabelledLine], list[LabelledLine]]:
  """Steps to train on and steps to judge by, see `--held-out`."""
  train, test = (
    read_steps(data / f"prm800k/phase1_{split}_steps.jsonl.gz")
    for split in ("train", "test")
  )
  assert not {x.problem_key for x in train} & {x.problem_key for x in test}
  if held_out is None:
    return train, test
  is_out = [is_held_out(line.problem_key, held_out) for line in train]
  return (
    [line for line, out in zip(train, is_out, strict=True) if not out],
    [line for line, out in zip(train, is_out, strict=True) if out],
  )


def words(step: str) -> set[str]:
  """The words, numbers and signs of a step, in lower case."""
  return set(map(str.lower, _WORD.findall(step)))


class Features:
  """Numbers of a step: 1, length, depth (log, standardised) and its words."""

  def __init__(self, lines: Sequence[LabelledLine]):
    """Learns words, means and deviations from training steps."""
    counts = collections.Counter()
    for line in lines:
      counts.update(words(line.steps[-1]))
    frequent = sorted(w for w, n in counts.items() if n >= _MIN_STEPS)
    self._column = {word: i for i, word in enumerate(frequent)}
    dense = self._dense(lines)
    self._mean, deviation = dense.mean(axis=0), dense.std(axis=0)
    self._deviation = np.where(deviation > 0, deviation, 1)

  def __call__(self, lines: Sequence[LabelledLine]) -> scipy.sparse.csr_matrix:
    """[S, F] of S steps."""
    dense = (self._dense(lines) - self._mean) / self._deviation
    dense = np.column_stack([np.ones(len(lines)), dense])
    found = [
      (row, self._column[word])
      for row, line in enumerate(lines)
      for word in words(line.steps[-1])
      if word in self._column
    ]
    bag = scipy.sparse.coo_matrix(
      (np.ones(len(found)), np.transpose(found)),
      shape=(len(lines), len(self._column)),
    )
    return scipy.sparse.hstack([dense, bag]).tocsr()

  def _dense(self, lines: Sequence[LabelledLine]) -> np.ndarray:
    return np.log(
      [[len(x.steps[-1]), len(x.steps)] for x in lines], dtype=float
    )


def fit(features, labels: np.ndarray, penalty: float) -> np.ndarray:
  """Weights [F] of the least penalised cross-entropy, summed over steps."""

  def loss(weights):
    logits = features @ weights
    entropy = np.logaddexp(0, logits) - labels * logits
    error = scipy.special.expit(logits) - labels
    free = np.r_[0, weights[1:]]  # Nothing pulls the intercept.
    return (
      entropy.sum() + penalty / 2 * free @ free,
      features.T @ error + penalty * free,
    )

  start = np.zeros(features.shape[1])
  return scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B").x


def baseline_scores(
  train: Sequence[LabelledLine], test: Sequence[LabelledLine]
) -> np.ndarray:
  """Logits of the test steps, [S]."""
  features = Features(train)
  x, y = features(train), labels_of(train)
  keys = sorted({line.problem_key for line in train})
  rng = np.random.default_rng(0)
  chosen = set(rng.choice(keys, int(_HELD_OUT * len(keys)), replace=False))
  is_out = np.array([line.problem_key in chosen for line in train])

  def held_out_auroc(penalty):
    weights = fit(x[~is_out], y[~is_out], penalty)
    return step_metrics.auroc(x[is_out] @ weights, y[is_out])

  penalty = max(_PENALTIES, key=held_out_auroc)
  print(f"{x.shape[1]} features, penalty {penalty:g}")
  return features(test) @ fit(x, y, penalty)


def labels_of(lines: Sequence[LabelledLine]) -> np.ndarray:
  """The labels of the last steps, [S]."""
  return np.array([line.label[-1] for line in lines], float)


def network_scores(run: str, test: Sequence[LabelledLine]) -> np.ndarray:
  """PRM scores of the test steps, [S]; 1/2 where one does not fit."""
  from qstar_jax import checkpoint
  from qstar_jax.evaluation.step_scores import score_lines

  loaded = checkpoint.load(run)
  scored = score_lines(
    loaded.graphdef,
    loaded.params,
    loaded.vocabulary,
    test,
    text=loaded.config.text,
    batch_size=loaded.config.evaluation.batch_size,
    labelled_only=True,
  )
  return np.array(
    [
      0.5 if scores is None else np.nan_to_num(scores.prm[-1], nan=0.5)
      for _, scores in scored
    ]
  )


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("data", type=pathlib.Path)
  parser.add_argument("--run")
  parser.add_argument("--held-out", type=float, metavar="SHARE")
  parser.add_argument("--out", type=pathlib.Path, default="build/prm800k")
  args = parser.parse_args(argv)
  train, test = read_splits(args.data, args.held_out)
  labels = labels_of(test)
  _, problem = np.unique([x.problem_key for x in test], return_inverse=True)
  scores = {"baseline": baseline_scores(train, test)}
  statistics = {
    "baseline": lambda w=None: step_metrics.auroc(scores["baseline"], labels, w)
  }
  if args.run:
    scores["network"] = network_scores(args.run, test)
    statistics["network"] = lambda w=None: step_metrics.auroc(
      scores["network"], labels, w
    )
    statistics["difference"] = lambda w=None: (
      statistics["network"](w) - statistics["baseline"](w)
    )
  found = {
    "steps": len(test),
    "problems": int(problem.max()) + 1,
    "share_right": float(labels.mean()),
    "auroc": {
      name: {
        "value": statistic(),
        "ci95": step_metrics.clustered_ci95(statistic, problem, seed=0),
      }
      for name, statistic in statistics.items()
    },
  }
  args.out.mkdir(parents=True, exist_ok=True)
  text = json.dumps(found, indent=1)
  (args.out / "prm800k.json").write_text(text + "\n")
  print(text)


if __name__ == "__main__":
  main()
