"""How good scores are at the level of steps, as a JSON-able report."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from qstar_jax import step_metrics
from qstar_jax.evaluation.scored_lines import ScoredLine

_STATISTICS = {
  "auroc": step_metrics.auroc,
  "brier": step_metrics.brier,
  "ece": step_metrics.ece,
}
# Where a probability says yes.
_EVEN = 0.5


def report(lines: Sequence[ScoredLine], seed: int) -> dict[str, Any]:
  """AUROC, Brier score, ECE and reliability bins, of all steps and by depth.

  Args:
    lines: with at least one judged step among them.
    seed: of the bootstrap, which draws problems.

  Returns:
    Counts of problems, lines and judged steps; figures of all judged steps; and
    `by_depth`, the same figures at every depth. A figure is
    `{value, ci95: [low, high]}`, null where it is not defined.
  """
  steps = _judged_steps(lines)

  def of(which):
    return _figures(*(column[which] for column in steps), seed)

  return {
    "problems": len({line.problem_key for line in lines}),
    "lines": len(lines),
    **of(slice(None)),
    "by_depth": [
      {"depth": int(depth), **of(steps.depth == depth)}
      for depth in np.unique(steps.depth)
    ],
  }


def figures(lines: Sequence[ScoredLine], seed: int) -> dict[str, Any]:
  """The figures of `report` of all judged steps together."""
  return _figures(*_judged_steps(lines), seed)


class _Steps(NamedTuple):
  """Judged steps of lines, one after another; fields are [S]."""

  problem: np.ndarray
  depth: np.ndarray
  score: np.ndarray
  label: np.ndarray


def _judged_steps(lines: Sequence[ScoredLine]) -> _Steps:
  lengths = [len(line.score) for line in lines]
  problem = np.repeat(_problem_numbers(lines), lengths)
  depth, score, label = (
    np.concatenate([getattr(line, name) for line in lines])
    for name in ("depth", "score", "label")
  )
  is_judged = label >= 0
  return _Steps(*(x[is_judged] for x in (problem, depth, score, label)))


def _problem_numbers(lines: Sequence[ScoredLine]) -> np.ndarray:
  """int [L], the problem of each line, numbered as they come."""
  numbers: dict[str, int] = {}
  return np.array(
    [numbers.setdefault(line.problem_key, len(numbers)) for line in lines]
  )


def _figures(problem, depth, score, label, seed: int) -> dict[str, Any]:
  """Of judged steps, see `_Steps`; at least one."""
  del depth
  bins = step_metrics.reliability(score, label)
  return {
    "steps": len(score),
    "mean_score": float(score.mean()),
    "mean_label": float(label.mean()),
    **{
      name: _figure(functools.partial(statistic, score, label), problem, seed)
      for name, statistic in _STATISTICS.items()
    },
    "bins": {
      name: [_number(x) for x in values]
      for name, values in bins._asdict().items()
    },
  }


def _figure(
  statistic: Callable[..., float], problem: np.ndarray, seed: int
) -> dict[str, Any]:
  """A statistic of all steps, or of weighted ones, with its interval."""
  # Numbers without gaps: a problem may have no step here.
  _, cluster = np.unique(problem, return_inverse=True)
  interval = step_metrics.clustered_ci95(
    lambda weights: statistic(weights=weights), cluster, seed
  )
  return {"value": _number(statistic()), "ci95": [*map(_number, interval)]}


def _number(x: float) -> float | None:
  return float(x) if math.isfinite(x) else None


def first_error_report(
  lines: Sequence[ScoredLine], seed: int
) -> dict[str, Any]:
  """Finding a line's first error, as in ProcessBench (arXiv:2412.06559).

  The problems, numbered as they come, are split in two: lines of the even ones
  choose the threshold, those of the odd ones are judged by it. A line in which
  a step before its first error is not judged is left out.

  Args:
    lines: of any number of problems.
    seed: of the bootstrap.

  Returns:
    The threshold, and of the judged lines: how many are wrong, right and left
    out, and f1, its accuracy on wrong and on right lines.
  """
  problem = _problem_numbers(lines)
  parts = []
  for parity in (0, 1):
    own = np.flatnonzero(problem % 2 == parity)
    known = [i for i in own if _is_judged_to_first_error(lines[i].label)]
    errors = step_metrics.first_errors(
      [(lines[i].score, lines[i].label) for i in known]
    )
    parts.append((errors, problem[known], len(own) - len(known)))
  threshold = step_metrics.best_threshold(parts[0][0])
  errors, problem, num_left_out = parts[1]

  def figure(name):
    def statistic(weights=None):
      found = step_metrics.first_error_f1(errors, threshold, weights)
      return getattr(found, name)

    return _figure(statistic, problem, seed)

  return {
    "threshold": threshold,
    "wrong_lines": int(errors.is_wrong.sum()),
    "right_lines": int((~errors.is_wrong).sum()),
    "left_out_lines": num_left_out,
    **{name: figure(name) for name in step_metrics.FirstErrorF1._fields},
  }


def _is_judged_to_first_error(label: np.ndarray) -> bool:
  wrong = np.flatnonzero((label >= 0) & (label < _EVEN))
  end = wrong[0] if wrong.size else len(label)
  return bool((label[:end] >= 0).all())


def group_report(lines: Sequence[ScoredLine], seed: int) -> dict[str, Any]:
  """PRMScore and its parts for each group of lines, such as a class of errors.

  A step that scores below 1/2 is called wrong.

  Returns:
    By group, in order of appearance, and by `all`: steps, how many of them are
    wrong, f1, negative_f1 and score; see `step_metrics.PrmScore`.
  """
  groups = dict.fromkeys(line.group for line in lines)
  of_group = {
    group: [line for line in lines if line.group == group] for group in groups
  }
  return {
    group: _group_figures(own, seed)
    for group, own in {**of_group, "all": lines}.items()
  }


def _group_figures(lines: Sequence[ScoredLine], seed: int) -> dict[str, Any]:
  problem, _, score, label = _judged_steps(lines)

  def figure(name):
    def statistic(weights=None):
      found = step_metrics.prm_score(score, label, _EVEN, weights)
      return getattr(found, name)

    return _figure(statistic, problem, seed)

  return {
    "steps": len(score),
    "wrong_steps": int((label < _EVEN).sum()),
    **{name: figure(name) for name in step_metrics.PrmScore._fields},
  }
