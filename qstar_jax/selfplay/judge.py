"""The domain as the judge of a search: texts in, verdicts out. Host side."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qstar_jax.records import (
  NOT_JUDGED,
  Domain,
  Problem,
  StepCheck,
  Verdict,
)
from qstar_jax.search.expand import NOTHING, PROBLEM, Expansion, Judgement
from qstar_jax.search.tree import NONE, SearchTree, line_index
from qstar_jax.text.vocabulary import Vocabulary

# Stands behind a step that has no delimiter: no domain's step ends like this.
_CUT = "\N{HORIZONTAL ELLIPSIS}"

_REFUSED = StepCheck(is_legal=False, is_terminal=False)


class _Line(NamedTuple):
  """Steps up to a candidate, and whether all of them are legal.

  `rest` are tokens after them that make no step yet.
  """

  steps: tuple[str, ...]
  is_legal: bool
  rest: tuple[int, ...] = ()


class LineJudge:
  """Checks the candidates of one search, and verifies lines that end.

  Asked in the order in which nodes are made: it keeps the steps that lead to
  every candidate. Model text reaches the domain as text and is never evaluated.
  What follows an illegal step is illegal. A step that was cut reads as one:
  `4 + 9 = ...`.
  """

  def __init__(
    self,
    domain: Domain,
    problem: Problem,
    vocabulary: Vocabulary,
    *,
    by_token: bool = False,
    steps: tuple[str, ...] = (),
  ):
    """Starts with the problem, and steps that stand already.

    Args:
      domain: the rules.
      problem: that is searched.
      vocabulary: that the tree's tokens are in.
      by_token: candidates are parts of steps: a step is complete, and checked,
        at its delimiter.
      steps: that every line begins with, legal or not.
    """
    self._by_token = by_token
    self._domain = domain
    self._problem = problem
    self._vocabulary = vocabulary
    # By candidate index.
    is_legal = all(
      domain.check_step(problem, steps[:i], step).is_legal
      for i, step in enumerate(steps)
    )
    self._lines = {PROBLEM: _Line(steps, is_legal)}
    # By length of the line and key of the state.
    self._states: dict[tuple[int, str], int] = {}

  def state_dict(self) -> dict[int, tuple]:
    """The lines of all candidates, for a judge on another host."""
    return {candidate: tuple(line) for candidate, line in self._lines.items()}

  def load_state_dict(self, state: dict[int, tuple]) -> None:
    """Makes `line` say what it says where `state_dict` comes from."""
    self._lines = {candidate: _Line(*line) for candidate, line in state.items()}

  def line(self, candidate: int) -> tuple[str, ...]:
    """The whole line up to and with a candidate index, or `PROBLEM`."""
    line = self._lines[candidate]
    if not line.rest:
      return line.steps
    return (
      *line.steps,
      self._vocabulary.decode_step(list(line.rest))[0] + _CUT,
    )

  def state(self, candidate: int) -> int:
    """A number for the state after a legal, unfinished line; NONE if unnamed.

    It is equal for lines of one length that reach the same state: lines of
    different lengths have different numbers of steps left.
    """
    steps = self.line(candidate)
    key = self._domain.state_key(self._problem, steps)
    if key is None:
      return NONE
    return self._states.setdefault((len(steps), key), len(self._states))

  def check(
    self, leaf: int, candidate: int, tokens: Sequence[int]
  ) -> tuple[StepCheck, Verdict | None]:
    """What the domain says of a step.

    Args:
      leaf: index of the candidate that it follows, or `PROBLEM`.
      candidate: its own index, see `tree.line_index`.
      tokens: of the step, at least one.

    Returns:
      The check, and the verdict on its line if that ends here.
    """
    above = self._lines[leaf]
    tokens = (*above.rest, *tokens)
    is_whole = self._vocabulary.ends_step[tokens[-1]]
    if self._by_token and not is_whole:
      self._lines[candidate] = above._replace(rest=tokens)
      return StepCheck(above.is_legal, is_terminal=False), None
    text, ended = self._vocabulary.decode_step(list(tokens))
    if not is_whole:
      text += _CUT
    steps = (*above.steps, text)
    check = _REFUSED
    if above.is_legal:
      check = self._domain.check_step(self._problem, above.steps, text)
    self._lines[candidate] = _Line(steps, check.is_legal)
    if ended or check.is_terminal:
      return check, self._domain.verify(self._problem, steps)
    return check, None


def judge_round(
  judges: Sequence[LineJudge | None],
  leaf_BW: np.ndarray,
  node_B: np.ndarray,
  expansion: Expansion,
  *,
  names_states: bool = False,
) -> Judgement:
  """Judges the candidates of one round; arrays on the host.

  Args:
    judges: one per tree; None where there is nothing to judge.
    leaf_BW: what was expanded: `tree.line_index`, `PROBLEM` or `NOTHING`.
    node_B: serial number of the first of the W nodes that each tree has made.
    expansion: the candidates.
    names_states: fills in `state`; the domain needs `state_key`.

  Returns:
    The judgement.
  """
  shape = expansion.count.shape
  judgement = Judgement(
    legal=np.full(shape, -1, np.int8),
    finished=np.zeros(shape, bool),
    outcome=np.full(shape, NOT_JUDGED, np.int8),
    score=np.zeros(shape, np.float32),
    state=np.full(shape, NONE, np.int32),
  )
  is_judged_B = np.array([judge is not None for judge in judges])
  is_leaf_BW = is_judged_B[:, None] & (leaf_BW != NOTHING)
  for b, w, a in np.argwhere((expansion.count > 0) & is_leaf_BW[..., None]):
    tokens = expansion.tokens[b, w, a, : expansion.length[b, w, a]]
    index = int(node_B[b] + w) * shape[-1] + int(a)
    check, verdict = judges[b].check(int(leaf_BW[b, w]), index, tokens.tolist())
    judgement.legal[b, w, a] = check.is_legal
    judgement.finished[b, w, a] = check.is_terminal
    if verdict:
      judgement.outcome[b, w, a] = verdict.outcome
      judgement.score[b, w, a] = verdict.score
    elif names_states and check.is_legal:
      judgement.state[b, w, a] = judges[b].state(index)
  return judgement


def judge_afterwards(judge: LineJudge, tree: SearchTree) -> SearchTree:
  """Shows a finished search, which knew nothing of it, to a judge.

  Args:
    judge: fresh.
    tree: numpy arrays of one tree.

  Returns:
    The tree with `legal`, `outcome` and `score` as the judge says.
  """
  legal = np.full_like(tree.legal, -1)
  outcome = np.full_like(tree.outcome, NOT_JUDGED)
  score = np.zeros_like(tree.score)
  for node, a in np.argwhere(tree.sampled > 0):
    above = int(tree.parent[node])
    leaf = PROBLEM
    if above != NONE:
      leaf = int(line_index(tree, above, tree.candidate[node]))
    tokens = tree.tokens[node, a, : tree.length[node, a]]
    index = int(line_index(tree, node, a))
    check, verdict = judge.check(leaf, index, tokens.tolist())
    legal[node, a] = check.is_legal
    if verdict:
      outcome[node, a] = verdict.outcome
      score[node, a] = verdict.score
  return tree.replace(legal=legal, outcome=outcome, score=score)
