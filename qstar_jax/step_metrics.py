"""Numbers over scored steps: do scores rank, are they probabilities, do they
find mistakes.

A label is in [0, 1]: a probability where it is soft. Every function takes
weights of the steps (or lines), 1 each if left out: the bootstrap draws whole
problems, and a problem drawn twice weighs 2.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

_NUM_RESAMPLES = 1000
# Equal widths: [0, 0.1), ..., [0.9, 1].
NUM_BINS = 10


def _weights(weights: np.ndarray | None, like: np.ndarray) -> np.ndarray:
  return np.ones(len(like)) if weights is None else weights


def _ratio(part: float, whole: float) -> float:
  """part / whole; NaN of nothing."""
  return float(part / whole) if whole else np.nan


def auroc(
  scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> float:
  """Chance that a right step scores above a wrong one; a tie is a half.

  The area under the ROC curve, by ranks: the statistic of Mann and Whitney over
  the number of pairs. A step of soft label y is right with weight y and wrong
  with weight 1 - y, as if it had been judged many times.

  Args:
    scores: [S].
    labels: [S] in [0, 1].
    weights: [S] >= 0.

  Returns:
    In [0, 1]; NaN unless there are both right and wrong steps.
  """
  weights = _weights(weights, scores)
  _, rank = np.unique(scores, return_inverse=True)
  right = np.bincount(rank, weights * labels)
  wrong = np.bincount(rank, weights * (1 - labels))
  wrong_below = np.cumsum(wrong) - wrong / 2
  return _ratio(right @ wrong_below, right.sum() * wrong.sum())


def brier(
  scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> float:
  """Mean squared difference of score and label (Brier 1950), in [0, 1]."""
  weights = _weights(weights, scores)
  return _ratio(weights @ (scores - labels) ** 2, weights.sum())


class Bins(NamedTuple):
  """Steps by score, in `NUM_BINS` bins of equal width from 0 to 1.

  Attributes:
    weight: float [bins], of the steps in each.
    score: float [bins], their mean score; NaN of an empty bin.
    label: float [bins], their mean label; NaN of an empty bin.
  """

  weight: np.ndarray
  score: np.ndarray
  label: np.ndarray


def reliability(
  scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> Bins:
  """What is true of steps that score alike: see `Bins`."""
  weights = _weights(weights, scores)
  index = np.minimum((scores * NUM_BINS).astype(int), NUM_BINS - 1)
  weight, score, label = (
    np.bincount(index, weights * values, minlength=NUM_BINS)
    for values in (1.0, scores, labels)
  )
  with np.errstate(invalid="ignore"):
    return Bins(weight, score / weight, label / weight)


def ece(
  scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> float:
  """Expected calibration error (Naeini et al. 2015): mean |score - label| of
  the bins of `reliability`, each by its weight.

  In [0, 1]. Few steps to a bin make it larger than it is in truth.
  """
  bins = reliability(scores, labels, weights)
  gap = np.nan_to_num(np.abs(bins.score - bins.label))
  return _ratio(bins.weight @ gap, bins.weight.sum())


class FirstErrors(NamedTuple):
  """At which thresholds a line's first error is found, for L lines.

  The first step that scores below the threshold is taken for the first error,
  as in ProcessBench (Zheng et al. 2024, arXiv:2412.06559); none is, if no step
  does. That is right exactly for low < threshold <= high.

  Attributes:
    low: float [L], the score of the first error; -inf of a line without.
    high: float [L] >= low, the least score of the steps before; inf of none.
    is_wrong: bool [L], the line has an error.
  """

  low: np.ndarray
  high: np.ndarray
  is_wrong: np.ndarray


def first_errors(
  lines: Sequence[tuple[np.ndarray, np.ndarray]],
) -> FirstErrors:
  """What `first_error_f1` needs of lines.

  Args:
    lines: scores and labels of each line's steps, every step labelled up to
      the first wrong one; a label below 1/2 is wrong.
  """
  low, high, is_wrong = [], [], []
  for scores, labels in lines:
    errors = np.flatnonzero(labels < 0.5)
    is_wrong.append(errors.size > 0)
    end = errors[0] if errors.size else len(labels)
    high.append(np.min(scores[:end], initial=np.inf))
    own = scores[end] if errors.size else -np.inf
    low.append(min(own, high[-1]))
  return FirstErrors(np.array(low), np.array(high), np.array(is_wrong, bool))


class FirstErrorF1(NamedTuple):
  """How often the first error is found; NaN where there is no such line.

  Attributes:
    f1: harmonic mean of the two accuracies, 0 if either is.
    wrong: accuracy on lines with an error: the step is the very first one.
    right: accuracy on lines without: none is found.
  """

  f1: float
  wrong: float
  right: float


def first_error_f1(
  lines: FirstErrors, threshold: float, weights: np.ndarray | None = None
) -> FirstErrorF1:
  """The F1 of ProcessBench at a threshold; weights [L] are of lines."""
  weights = _weights(weights, lines.low)
  is_found = (lines.low < threshold) & (threshold <= lines.high)
  wrong, right = (
    _ratio(weights @ (is_found & group), weights @ group)
    for group in (lines.is_wrong, ~lines.is_wrong)
  )
  return FirstErrorF1(_harmonic_mean(wrong, right), wrong, right)


def _harmonic_mean(a: float, b: float) -> float:
  return 2 * a * b / (a + b) if a + b != 0 else 0.0


def best_threshold(lines: FirstErrors) -> float:
  """The threshold of largest F1 on these lines, the least of equals.

  To be chosen on other lines than are judged by it.

  Returns:
    A score of some step; 1/2 if there are not both kinds of lines.
  """
  ends = np.unique([lines.low, lines.high])
  thresholds = ends[np.isfinite(ends)]

  def accuracy(group):
    low, high = np.sort(lines.low[group]), np.sort(lines.high[group])
    below = np.searchsorted(low, thresholds) - np.searchsorted(high, thresholds)
    return below / group.sum()

  if not 0 < lines.is_wrong.sum() < len(lines.is_wrong):
    return 0.5
  wrong, right = accuracy(lines.is_wrong), accuracy(~lines.is_wrong)
  f1 = 2 * wrong * right / np.maximum(wrong + right, 1e-9)
  return float(thresholds[np.argmax(f1)])


class PrmScore(NamedTuple):
  """How steps are told apart at a threshold; NaN where there are none to tell.

  Attributes:
    f1: of finding the right steps.
    negative_f1: of finding the wrong steps; NaN if no step is wrong.
    score: PRMScore (Song et al. 2025, arXiv:2501.03124), the mean of both.
  """

  f1: float
  negative_f1: float
  score: float


def prm_score(
  scores: np.ndarray,
  labels: np.ndarray,
  threshold: float,
  weights: np.ndarray | None = None,
) -> PrmScore:
  """PRMScore = w1 negative_f1 + w2 f1 with w1 = w2 = 1/2, over all steps.

  Args:
    scores: [S]; a step below the threshold is called wrong.
    labels: [S]; below 1/2 is wrong.
    threshold: of the scores.
    weights: [S] >= 0.
  """
  weights = _weights(weights, scores)
  is_right, is_called_right = labels >= 0.5, scores >= threshold

  def f1(truth, called):
    # 2 TP / (2 TP + FP + FN); of a class that does not occur it says nothing.
    if not weights @ truth:
      return np.nan
    return _ratio(
      2 * (weights @ (truth & called)), weights @ truth + weights @ called
    )

  positive, negative = (
    f1(is_right, is_called_right),
    f1(~is_right, ~is_called_right),
  )
  return PrmScore(positive, negative, (positive + negative) / 2)


def clustered_ci95(
  statistic: Callable[[np.ndarray], float], cluster: np.ndarray, seed: int
) -> tuple[float, float]:
  """Percentile bootstrap interval that draws whole clusters.

  The steps of a problem are not independent: problems are drawn anew, each with
  all that it has.

  Args:
    statistic: of weights [S]. A resample of which it is NaN does not count.
    cluster: int [S] in 0..C-1, the problem of each step (or line).
    seed: of the resampling.

  Returns:
    (low, high), NaN if every resample is.
  """
  rng = np.random.default_rng(seed)
  num_clusters = int(cluster.max(initial=-1)) + 1
  values = np.full(_NUM_RESAMPLES, np.nan)
  for i in range(_NUM_RESAMPLES if num_clusters else 0):
    picks = rng.integers(num_clusters, size=num_clusters)
    times = np.bincount(picks, minlength=num_clusters)
    values[i] = statistic(times[cluster].astype(float))
  values = values[~np.isnan(values)]
  if not values.size:
    return np.nan, np.nan
  low, high = np.percentile(values, [2.5, 97.5])
  return float(low), float(high)
