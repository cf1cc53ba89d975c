"""Labels by rules: the domain checks every step and verifies finished lines."""

from collections.abc import Iterator

import numpy as np

from qstar_jax.labels import step_tree
from qstar_jax.records import (
  NO_LABEL,
  Domain,
  LabelledLine,
  Outcome,
  TreeRecord,
)
from qstar_jax.text.vocabulary import Vocabulary


def checked(
  record: TreeRecord, vocabulary: Vocabulary, domain: Domain
) -> Iterator[LabelledLine]:
  """The steps of a tree that the rules alone decide; hard.

  1 for the steps of lines verified correct. 0 for an illegal step, where the
  line stops: what follows it has no label. 0 for a legal step that finishes its
  line, by the rules or by the end token, when that is not correct. Other legal
  steps have none: nobody has shown what they lead to.

  Args:
    record: the tree.
    vocabulary: that its tokens are in.
    domain: of its problem.

  Raises:
    UserError: the vocabulary or the domain is not the tree's.
  """
  problem = step_tree.read_problem(record, domain)
  steps = step_tree.read_steps(record, vocabulary)
  label = np.full(len(steps), NO_LABEL, np.float32)
  # The texts up to each step; None where one of them is illegal.
  lines: list[tuple[str, ...] | None] = []
  for index, step in enumerate(steps):
    before = lines[step.above] if step.above >= 0 else ()
    if before is None:
      lines.append(None)
      continue
    check = domain.check_step(problem, before, step.text)
    line = (*before, step.text)
    lines.append(line if check.is_legal else None)
    if not check.is_legal:
      label[index] = 0
    elif step.ended or check.is_terminal:
      outcome = domain.verify(problem, line).outcome
      if outcome == Outcome.CORRECT:
        label[step_tree.line_to(steps, index)] = 1
      elif outcome != Outcome.TIMEOUT:
        label[index] = 0
  return step_tree.to_lines(record, steps, label, kind="hard", source="checked")
