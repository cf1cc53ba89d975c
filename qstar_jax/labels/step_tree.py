"""The steps of a search tree as texts, and lines that hold each label once."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from qstar_jax.errors import UserError
from qstar_jax.records import (
  NO_LABEL,
  Domain,
  LabelledLine,
  Problem,
  TreeRecord,
)
from qstar_jax.text.vocabulary import Vocabulary


class Step(NamedTuple):
  """A step of a tree, after the steps above it.

  Attributes:
    above: index of the step that it follows; -1 at the root.
    text: without delimiter.
    ended: it has the end token in the delimiter's place.
    edges: (row of node, candidate) of all candidates that end with this step:
      lines sampled apart, or tokens that spell the same, say it more than once.
  """

  above: int
  text: str
  ended: bool
  edges: list[tuple[int, int]]


def read_steps(record: TreeRecord, vocabulary: Vocabulary) -> list[Step]:
  """The tree's different steps, each after the one above it.

  A step is what ends in a delimiter or the end token, be it one candidate or,
  in a search over tokens, a row of them. What was cut before that is no step,
  nor is anything below it.

  Args:
    record: the tree.
    vocabulary: that its tokens are in.

  Raises:
    UserError: the tokens are not of this vocabulary.
  """
  if ((record.tokens < 0) | (record.tokens >= vocabulary.size)).any():
    raise UserError(
      f"{origin(record)} has tokens beyond the {vocabulary.size} of the "
      "vocabulary: give the run that made the tree"
    )
  steps: list[Step] = []
  index_of: dict[tuple[int, str, bool], int] = {}
  # For each candidate, the last step up to it and the tokens after that.
  reached: dict[tuple[int, int], tuple[int, list[int]]] = {}
  end = np.cumsum(record.length).reshape(record.length.shape)
  for node, a in np.argwhere(record.count > 0).tolist():
    into = int(record.node_parent[node]), int(record.node_candidate[node])
    above, rest = reached[into] if into[0] >= 0 else (-1, [])
    start = end[node, a] - record.length[node, a]
    tokens = rest + record.tokens[start : end[node, a]].tolist()
    if vocabulary.ends_step[tokens[-1]]:
      key = (above, *vocabulary.decode_step(tokens))
      above = index_of.setdefault(key, len(steps))
      if above == len(steps):
        steps.append(Step(*key, edges=[]))
      steps[above].edges.append((node, a))
      tokens = []
    reached[node, a] = above, tokens
  return steps


def line_to(steps: list[Step], index: int) -> list[int]:
  """Indices of the steps from the root to a step, which is the last."""
  line = [index]
  while (above := steps[line[-1]].above) >= 0:
    line.append(above)
  return line[::-1]


def read_problem(record: TreeRecord, domain: Domain) -> Problem:
  """The problem of a tree.

  Raises:
    UserError: the domain is not the tree's.
  """
  if record.domain == domain.name:
    with contextlib.suppress(ValueError):
      problem = domain.parse(record.prompt)
      if problem.key == record.problem_key:
        return problem
  raise UserError(
    f"{origin(record)} has the problem {record.problem_key!r} of "
    f"{record.domain}, which {domain.name} reads otherwise: give the run that "
    "made the tree"
  )


def origin(record: TreeRecord) -> str:
  """Where a label of the tree comes from, for a person."""
  return f"actor {record.actor_id}, tree {record.sequence}"


def to_lines(
  record: TreeRecord,
  steps: list[Step],
  label: np.ndarray,
  *,
  kind: str,
  source: str,
  params_version: int = -1,
) -> Iterator[LabelledLine]:
  """Lines of a tree that hold every label exactly once.

  There is one for each labelled step with no labelled step below it, root to
  step. A step that lies on several is labelled in the first and context in the
  others.

  Args:
    record: the tree.
    steps: of it, S.
    label: float32 [S] in [0, 1], or `NO_LABEL`.
    kind: of the labels, `hard` or `soft`.
    source: of the labels.
    params_version: of the network that was asked; -1 if none was.
  """
  label = label.copy()
  is_inner = np.zeros(len(steps), bool)
  for index in reversed(range(len(steps))):
    above = steps[index].above
    if above >= 0 and (is_inner[index] or label[index] != NO_LABEL):
      is_inner[above] = True
  for index in np.flatnonzero((label != NO_LABEL) & ~is_inner):
    line = line_to(steps, int(index))
    yield LabelledLine(
      domain=record.domain,
      problem_key=record.problem_key,
      prompt=record.prompt,
      steps=tuple(steps[i].text for i in line),
      is_finished=steps[index].ended,
      label=label[line],
      kind=kind,
      source=source,
      params_version=params_version,
      tokens=0,  # Self-play has paid for the tree.
      origin=origin(record),
    )
    label[line] = NO_LABEL
