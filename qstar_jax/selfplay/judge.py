"""The domain as the judge of a search: texts in, verdicts out. Host side."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qstar_jax.records import NOT_JUDGED, Domain, Problem, StepCheck
from qstar_jax.search.expand import NOTHING, PROBLEM, Expansion, Judgement
from qstar_jax.text.vocabulary import Vocabulary

# Stands behind a step that has no delimiter: no domain's step ends like this.
_CUT = "\N{HORIZONTAL ELLIPSIS}"

_REFUSED = StepCheck(is_legal=False, is_terminal=False)


class Candidates(NamedTuple):
  """The part of an `Expansion` that a judge reads, as numpy arrays."""

  tokens: np.ndarray
  length: np.ndarray
  count: np.ndarray


class _Line(NamedTuple):
  """Steps up to a candidate, and whether all of them are legal."""

  steps: tuple[str, ...]
  is_legal: bool


class LineJudge:
  """Checks every candidate of a batch of searches, and verifies ended lines.

  Called once a round, in order: it keeps the steps that lead to every node.
  Model text reaches the domain as text and is never evaluated. What follows an
  illegal step is illegal. A step that was cut reads as one: `4 + 9 = ...`.
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
    # By candidate index, per tree.
    self._lines: list[dict[int, _Line]] = [
      {PROBLEM: _Line((), is_legal=True)} for _ in problems
    ]

  def line(self, tree: int, candidate: int) -> tuple[str, ...]:
    """The steps up to and with a candidate index; () for `PROBLEM`."""
    return self._lines[tree][candidate].steps

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
      above = self._lines[b][int(leaf_BW[b, w])]
      tokens = expansion.tokens[b, w, a, : expansion.length[b, w, a]]
      text, ended = self._vocabulary.decode_step(tokens.tolist())
      if not self._vocabulary.ends_step[tokens[-1]]:
        text += _CUT
      steps = (*above.steps, text)
      check = _REFUSED
      if above.is_legal:
        check = self._domain.check_step(self._problems[b], above.steps, text)
      index = (block + int(w)) * self._num_candidates + int(a)
      self._lines[b][index] = _Line(steps, check.is_legal)
      judgement.legal[b, w, a] = check.is_legal
      judgement.finished[b, w, a] = check.is_terminal
      if ended or check.is_terminal:
        verdict = self._domain.verify(self._problems[b], steps)
        judgement.outcome[b, w, a] = verdict.outcome
        judgement.score[b, w, a] = verdict.score
    return judgement
