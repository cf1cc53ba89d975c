"""Where scored and judged steps come from: play, roll-outs, stored labels."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from qstar_jax.evaluation.step_scores import LineScores
from qstar_jax.records import Domain, LabelledLine, Problem
from qstar_jax.search.tree import NONE, line_index
from qstar_jax.selfplay.player import Played


class ScoredLine(NamedTuple):
  """Steps of one line: what a network said of them, and what is so.

  Attributes:
    problem_key: canonical form of the problem.
    group: what kind of line it is, where there are kinds; empty otherwise.
    depth: int [D], steps of the line up to each; 1 for the first, 0 for the
      problem alone.
    score: float [D] in [0, 1].
    label: float [D] in [0, 1]; -1 of a step that nobody has judged.
  """

  problem_key: str
  group: str
  depth: np.ndarray
  score: np.ndarray
  label: np.ndarray


class State(NamedTuple):
  """Steps that stand, and what a network said of going on from there.

  Attributes:
    problem: the problem.
    steps: texts of the line so far; none at the problem itself.
    value: V, in [0, 1].
  """

  problem: Problem
  steps: tuple[str, ...]
  value: float


# The share of plays from each state that solve its problem, [states].
SuccessRates = Callable[[Sequence[State]], np.ndarray]


def oracle_lines(domain: Domain, played: Played) -> Iterator[ScoredLine]:
  """PRM scores of a play's sampled lines, against the exact oracle.

  A step is right if it and all before it are legal and a solution can still be
  reached. A step that was cut is no step of the domain, and wrong.

  Args:
    domain: has `solvable`, see `step_domain.StepDomain`.
    played: by a search that samples lines apart, such as `best_of_n`: each ends
      in a candidate that is not expanded.

  Yields:
    The lines, as long as they were sampled.
  """
  tree, problem = played.tree, played.problem
  is_tip = (tree.sampled > 0) & (tree.child == NONE)
  for edge in map(tuple, np.argwhere(is_tip)):
    steps = played.judge.line(int(line_index(tree, *edge)))
    prm = []
    for _ in steps:
      prm.append(tree.prm[edge])
      edge = tree.parent[edge[0]], tree.candidate[edge[0]]
    yield ScoredLine(
      problem.key,
      "",
      np.arange(1, len(steps) + 1),
      np.array(prm[::-1], float),
      np.array(
        [
          domain.solvable(problem, steps[:end])
          for end in range(1, len(steps) + 1)
        ],
        float,
      ),
    )


def open_states(played: Played) -> Iterator[State]:
  """What a play went on from: its problem, and steps that others follow."""
  tree = played.tree
  yield State(played.problem, (), float(tree.problem_value))
  for edge in map(tuple, np.argwhere(tree.child != NONE)):
    steps = played.judge.line(int(line_index(tree, *edge)))
    yield State(played.problem, steps, float(tree.value[edge]))


def value_lines(
  states: Iterable[State], success_rates: SuccessRates
) -> list[ScoredLine]:
  """V against roll-outs; a state that comes several times is asked for once.

  Args:
    states: at least one.
    success_rates: plays on from states, see there.

  Returns:
    A line of one step for every different state.
  """
  different = list(
    {(state.problem.key, state.steps): state for state in states}.values()
  )
  rates = success_rates(different)
  return [
    ScoredLine(
      state.problem.key,
      "",
      np.array([len(state.steps)]),
      np.array([state.value]),
      np.array([rate], float),
    )
    for state, rate in zip(different, rates, strict=True)
  ]


def labelled_lines(
  scored: Iterable[tuple[LabelledLine, LineScores]],
) -> Iterator[ScoredLine]:
  """PRM scores against stored labels; lines are grouped by their domain.

  A step that the network could not read is not judged.
  """
  for line, scores in scored:
    is_read = ~np.isnan(scores.prm)
    yield ScoredLine(
      line.problem_key,
      line.domain,
      np.arange(1, len(line.steps) + 1),
      np.where(is_read, scores.prm, 0).astype(float),
      np.where(is_read, line.label, -1).astype(float),
    )
