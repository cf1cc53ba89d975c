"""Random legal play, read as solving what it reached; some of it made wrong.

Rules only: no solution comes from outside, and no held-out problem is played.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from qstar_jax.domains.splits import TrainingProblems
from qstar_jax.records import Outcome, Problem


@dataclasses.dataclass(frozen=True)
class HindsightLine:
  """A line that solves its problem, or goes wrong at a known step.

  Attributes:
    problem: what it solves, or fails to.
    steps: texts without delimiter.
    is_finished: the last step finishes the line.
    bad_step: index of the step that breaks a rule or finishes a wrong line;
      None if the line solves its problem.
    is_corrupted: it was to be made wrong. (Play that aims at nothing may solve
      its problem all the same.)
    is_aimless: nobody knows whether the steps before the bad one lead to a
      solution. Otherwise they do.
  """

  problem: Problem
  steps: tuple[str, ...]
  is_finished: bool = True
  bad_step: int | None = None
  is_corrupted: bool = False
  is_aimless: bool = False


def draw_line(
  problems: TrainingProblems,
  rng: np.random.Generator,
  difficulties: Sequence[int],
  corrupt_share: float,
) -> HindsightLine:
  """One line.

  Half of the wrong ones break a rule at some step; the other half are legal to
  the end and miss the goal, so that value and PRM must read the problem and not
  the line alone.

  Args:
    problems: to play.
    rng: consumed.
    difficulties: drawn from uniformly.
    corrupt_share: of the lines that are made wrong.
  """
  problem, steps = problems.random_play(rng, int(rng.choice(difficulties)))
  kind = rng.random()
  if kind < corrupt_share / 2:
    wrong, bad_step = problems.domain.corrupt(rng, problem, steps)
    # A mistake in mid-line does not look like the line's end.
    is_finished = len(wrong) == len(steps)
    return HindsightLine(problem, wrong, is_finished, bad_step, True)
  if kind < corrupt_share:
    steps, bad_step = _aimless_play(problems, rng, problem)
    is_aimless = bad_step is not None
    return HindsightLine(problem, steps, True, bad_step, True, is_aimless)
  return HindsightLine(problem, steps)


def _aimless_play(
  problems: TrainingProblems, rng: np.random.Generator, problem: Problem
) -> tuple[tuple[str, ...], int | None]:
  """Random legal steps to the end of a line, and the index of the bad one.

  The last step is bad unless the line happens to solve the problem.
  """
  domain = problems.domain
  steps: tuple[str, ...] = ()
  while legal := domain.legal_steps(problem, steps):
    steps = (*steps, legal[int(rng.integers(len(legal)))])
  is_correct = domain.verify(problem, steps).outcome == Outcome.CORRECT
  return steps, None if is_correct else len(steps) - 1
