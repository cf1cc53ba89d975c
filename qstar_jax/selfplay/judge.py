"""The domain as the judge of a search: texts in, verdicts out. Host side."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qstar_jax.records import NOT_JUDGED, Domain, Problem
from qstar_jax.search.expand import NOTHING, PROBLEM, Expansion, Judgement
from qstar_jax.text.vocabulary import Vocabulary


class Candidates(NamedTuple):
  """The part of an `Expansion` that a judge reads, as numpy arrays."""

  tokens: np.ndarray
  length: np.ndarray
  count: np.ndarray


class LineJudge:
  """Checks every candidate of a batch of searches, and verifies ended lines.

  Called once a round, in order: it keeps the steps that lead to every node.
  Model text reaches the domain as text and is never evaluated.
  """

  def __init__(
    self,
    domain: Domain,
    problems: Sequence[Problem],
    vocabulary: Vocabulary,
    num_candidates: int,
  ):
    """Starts with the problems, one per tree; fewer than trees is allowed.

    Args:
      domain: the rules.
      problems: of the first len(problems) trees; the others are padding.
      vocabulary: that the trees' tokens are in.
      num_candidates: A.
    """
    self._domain = domain
    self._problems = problems
    self._vocabulary = vocabulary
    self._num_candidates = num_candidates
    # Steps up to candidate index, per tree.
    self._lines: list[dict[int, tuple[str, ...]]] = [
      {PROBLEM: ()} for _ in problems
    ]

  def line(self, tree: int, candidate: int) -> tuple[str, ...]:
    """The steps up to and with a candidate index; () for `PROBLEM`."""
    return self._lines[tree][candidate]

  def __call__(
    self, leaf_BW: np.ndarray, block: int, expansion: Expansion | Candidates
  ) -> Judgement:
    """See `search.expand.JudgeFn`."""
    shape = expansion.count.shape
    judgement = Judgement(
      legal=np.full(shape, -1, np.int8),
      finished=np.zeros(shape, bool),
      outcome=np.full(shape, NOT_JUDGED, np.int8),
      score=np.zeros(shape, np.float32),
    )
    is_candidate = (expansion.count > 0) & (leaf_BW != NOTHING)[..., None]
    is_candidate[len(self._problems) :] = False
    for b, w, a in np.argwhere(is_candidate):
      steps = self._lines[b][int(leaf_BW[b, w])]
      tokens = expansion.tokens[b, w, a, : expansion.length[b, w, a]]
      text, ended = self._vocabulary.decode_step(tokens.tolist())
      index = (block + int(w)) * self._num_candidates + int(a)
      self._lines[b][index] = (*steps, text)
      self._judge(judgement, (b, w, a), self._problems[b], steps, text, ended)
    return judgement

  def _judge(self, judgement, at, problem, steps, text, ended) -> None:
    """Writes what the domain says of `text` after `steps`."""
    check = self._domain.check_step(problem, steps, text)
    judgement.legal[at] = check.is_legal
    judgement.finished[at] = check.is_terminal
    if ended or check.is_terminal:
      verdict = self._domain.verify(problem, (*steps, text))
      judgement.outcome[at] = verdict.outcome
      judgement.score[at] = verdict.score
