"""A tree record as every view of it reads it: terminal, page and JSON."""

from typing import NamedTuple

import jax
import numpy as np

from qstar_jax import improvement
from qstar_jax.records import NOT_JUDGED, Outcome, TreeRecord
from qstar_jax.text.vocabulary import Vocabulary

# A candidate: (row of its node, index).
Edge = tuple[int, int]


class Fate(NamedTuple):
  """Why a candidate's branch ends where it does.

  Attributes:
    kind: "illegal", "truncated", "correct", "wrong", "unparseable", "timeout",
      "unjudged" (the line is finished), "unexpanded" or "expanded".
    words: the same for a person, with the score of a graded line; empty if the
      branch goes on.
  """

  kind: str
  words: str


class TreeReading:
  """What a tree record says of each candidate.

  Attributes:
    record: the tree.
    child: row of the node that expands a candidate, for those expanded.
    committed: the committed candidates, first to last.
    prior: float [n, A], each node's prior over its candidates.
  """

  def __init__(self, record: TreeRecord, vocabulary: Vocabulary):
    self.record = record
    self._vocabulary = vocabulary
    parents = record.node_parent.tolist()
    into = zip(parents, record.node_candidate.tolist(), strict=True)
    # Lines sampled apart begin at nodes of their own: all are the problem.
    self._roots = np.flatnonzero(record.node_parent < 0).tolist()
    self.child = {
      edge: row for row, edge in enumerate(into) if parents[row] >= 0
    }
    self.committed: list[Edge] = list(
      zip(
        record.committed_node.tolist(),
        record.committed_candidate.tolist(),
        strict=True,
      )
    )
    self._committed = frozenset(self.committed)
    self.prior = np.asarray(
      jax.nn.softmax(
        improvement.candidate_prior_logits(
          record.log_prob, record.proposal_log_prob, record.count
        )
      )
    )
    self._ends = np.cumsum(record.length).reshape(record.length.shape)
    # A step that is cut is never expanded, except where each token is a step.
    self._by_token = not all(map(self._is_whole, self.child))

  def candidates(self, node: int) -> list[Edge]:
    """A node's candidates, by visits, then Q; node 0 is the problem."""
    record = self.record
    rows = self._roots if node == 0 else [node]
    edges = [
      (row, int(a)) for row in rows for a in np.flatnonzero(record.count[row])
    ]
    edges.sort(key=lambda edge: (-record.visits[edge], -record.q[edge], edge))
    return edges

  def is_committed(self, edge: Edge) -> bool:
    """True for the candidates of the committed line."""
    return edge in self._committed

  def text(self, edge: Edge) -> str:
    """A candidate's text, as the model wrote it."""
    return self._vocabulary.decode_step(self._tokens(edge))[0]

  def fate(self, edge: Edge) -> Fate:
    """Why a candidate's branch ends there, or that it goes on."""
    record = self.record
    if record.legal[edge] == 0:
      return Fate("illegal", "illegal")
    if not self._by_token and not self._is_whole(edge):
      return Fate("truncated", "truncated")
    outcome, score = self._outcome(edge)
    if outcome != NOT_JUDGED:
      kind = Outcome(outcome).name.lower()
      graded = "" if score in (0.0, 1.0) else f", score {score:.2f}"
      return Fate(kind, f"ended {kind}{graded}")
    if record.ended[edge]:
      return Fate("unjudged", "ended, not judged")
    if edge in self.child:
      return Fate("expanded", "")
    return Fate("unexpanded", "not expanded")

  def _is_whole(self, edge: Edge) -> bool:
    return bool(self._vocabulary.ends_step[self._tokens(edge)[-1]])

  def _tokens(self, edge: Edge) -> list[int]:
    end = self._ends[edge]
    return self.record.tokens[end - self.record.length[edge] : end].tolist()

  def _outcome(self, edge: Edge) -> tuple[int, float]:
    """Outcome and score of the line that ends with a candidate."""
    record = self.record
    if record.outcome[edge] == NOT_JUDGED and [edge] == self.committed[-1:]:
      return record.final_outcome, record.final_score
    return int(record.outcome[edge]), float(record.score[edge])
