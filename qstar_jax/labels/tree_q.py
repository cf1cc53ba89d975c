"""Labels from the search itself: what it made of the steps that it tried."""

from collections.abc import Iterator

import numpy as np

from qstar_jax.labels import step_tree
from qstar_jax.records import (
  NO_LABEL,
  NOT_JUDGED,
  LabelledLine,
  Outcome,
  TreeRecord,
)
from qstar_jax.text.vocabulary import Vocabulary


def tree_q(
  record: TreeRecord, vocabulary: Vocabulary
) -> Iterator[LabelledLine]:
  """The search's Q of the candidates that it visited; soft.

  One visit is enough: it puts into Q what the search thinks of all the
  candidates below, while Q of one without visits is the network's own V, which
  is no news to it. A finished line is never visited; where the search asked the
  verifier (`terminal_value: outcome`) its Q is the verdict's score, and it
  counts too. Q is P(solved) only where V drove the search
  (`search.utility: value`).

  A step that several candidates say has the mean of their Q, by visits.

  Args:
    record: the tree.
    vocabulary: that its tokens are in.

  Raises:
    UserError: the vocabulary is not the tree's.
  """
  steps = step_tree.read_steps(record, vocabulary)
  label = np.full(len(steps), NO_LABEL, np.float32)
  is_verdict = np.isin(
    record.outcome, (NOT_JUDGED, Outcome.TIMEOUT), invert=True
  )
  for index, step in enumerate(steps):
    edges = tuple(np.transpose(step.edges))
    visits = record.visits[edges]
    if visits.any():
      label[index] = np.average(record.q[edges], weights=visits)
    elif record.terminal_value == "outcome" and is_verdict[edges].all():
      label[index] = record.score[edges][0]
  # A weighted mean of ones may come out a rounding error above 1.
  label = np.minimum(label, 1)
  return step_tree.to_lines(
    record,
    steps,
    label,
    kind="soft",
    source="tree_q",
    params_version=record.params_version,
  )
