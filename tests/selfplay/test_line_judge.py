"""The domain as judge, on candidates written by hand."""

import dataclasses

import numpy as np
import pytest

from qstar_jax.domains.countdown import Countdown
from qstar_jax.records import NOT_JUDGED, Outcome
from qstar_jax.search.expand import NOTHING, PROBLEM
from qstar_jax.selfplay.judge import Candidates, LineJudge
from qstar_jax.text.vocabulary import ByteVocabulary

A, T = 4, 40
VOCABULARY = ByteVocabulary()
DOMAIN = Countdown()
PROBLEM_235 = DOMAIN.parse("2 3 5 -> 10")
ADD = "2 + 3 = 5 (left: 5 5)"
# (text, how it ends): the delimiter, the end token, or not at all.
ROOT_STEPS = [
  (ADD, "delimiter"),
  ("2 + 3 = 6 (left: 5 6)", "delimiter"),
  (ADD, "cut"),
  ("", "end"),
]
NEXT_STEPS = [
  ("5 + 5 = 10 (left: 10)", "delimiter"),
  ("5 + 5 = 10 (left: 10)", "end"),
  ("5 * 5 = 25 (left: 25)", "end"),
  ("5 + 5 = 10 (left: 10)", "cut"),
]


def candidates(steps, count=(1, 1, 1, 1)):
  """One leaf of one tree: [1, 1, A]."""
  tokens = np.zeros((1, 1, A, T), np.int32)
  length = np.zeros((1, 1, A), np.int32)
  for a, (text, end) in enumerate(steps):
    ids = VOCABULARY.encode_step(text, is_last=end == "end")
    if end == "cut":
      ids = ids[:-1]
    tokens[0, 0, a, : len(ids)] = ids
    length[0, 0, a] = len(ids)
  return Candidates(tokens, length, np.array(count, np.int32)[None, None])


@pytest.fixture
def judge():
  return LineJudge(DOMAIN, [PROBLEM_235], VOCABULARY, A)


def leaf(index):
  return np.array([[index]], np.int32)


def fields(judgement):
  return [field[0, 0].tolist() for field in judgement]


def test_steps_after_the_problem(judge):
  judgement = judge(leaf(PROBLEM), 0, candidates(ROOT_STEPS))
  legal, finished, outcome, score = fields(judgement)
  assert legal == [1, 0, 0, 0]
  assert finished == [False] * 4
  # Only the last one says that it has ended, and that is no solution.
  assert outcome == [NOT_JUDGED] * 3 + [Outcome.UNPARSEABLE]
  assert score == [0] * 4
  assert [field.dtype for field in judgement] == [
    np.int8, bool, np.int8, np.float32
  ]  # fmt: skip


def test_steps_after_a_step(judge):
  judge(leaf(PROBLEM), 0, candidates(ROOT_STEPS))
  judgement = judge(leaf(0), 1, candidates(NEXT_STEPS))
  legal, finished, outcome, score = fields(judgement)
  assert legal == [1, 1, 1, 0]
  # The domain knows that nothing is left, end token or not.
  assert finished == [True, True, True, False]
  assert outcome == [
    Outcome.CORRECT, Outcome.CORRECT, Outcome.WRONG, NOT_JUDGED
  ]  # fmt: skip
  assert score == [1, 1, 0, 0]
  assert judge.line(0, A + 1) == (ADD, NEXT_STEPS[1][0])


def test_a_step_that_was_cut_is_wrong_however_complete_it_looks(judge):
  judge(leaf(PROBLEM), 0, candidates(ROOT_STEPS))
  judge(leaf(0), 1, candidates(NEXT_STEPS))
  line = judge.line(0, A + 3)
  assert line[-1] == "5 + 5 = 10 (left: 10)\N{HORIZONTAL ELLIPSIS}"
  assert DOMAIN.verify(PROBLEM_235, line).outcome == Outcome.UNPARSEABLE


def test_nothing_is_legal_after_an_illegal_step():
  asked = []

  @dataclasses.dataclass(frozen=True)
  class Asked(Countdown):
    def check_step(self, problem, steps, step):
      asked.append(steps)
      return super().check_step(problem, steps, step)

  judge = LineJudge(Asked(), [PROBLEM_235], VOCABULARY, A)
  judge(leaf(PROBLEM), 0, candidates(ROOT_STEPS))
  judgement = judge(leaf(1), 1, candidates(NEXT_STEPS))
  legal, finished, outcome, _ = fields(judgement)
  assert legal == [0] * 4
  assert finished == [False] * 4
  assert outcome == [NOT_JUDGED, Outcome.WRONG, Outcome.WRONG, NOT_JUDGED]
  # A domain is asked about steps after legal ones, and no others.
  assert set(asked) == {()}


def test_what_is_not_judged(judge):
  expansion = candidates(ROOT_STEPS, count=(0, 2, 0, 0))
  legal, *_ = fields(judge(leaf(PROBLEM), 0, expansion))
  assert legal == [-1, 0, -1, -1]
  unjudged = [[-1] * 4, [False] * 4, [-1] * 4, [0] * 4]
  assert fields(judge(leaf(NOTHING), 1, candidates(ROOT_STEPS))) == unjudged


def test_trees_of_padding_are_not_judged():
  judge = LineJudge(DOMAIN, [], VOCABULARY, A)
  judgement = judge(leaf(PROBLEM), 0, candidates(ROOT_STEPS))
  assert fields(judgement)[0] == [-1] * 4


def test_leaves_of_a_round_become_blocks_of_their_own():
  judge = LineJudge(DOMAIN, [PROBLEM_235], VOCABULARY, A)
  judge(leaf(PROBLEM), 0, candidates(ROOT_STEPS))
  one, two = candidates(NEXT_STEPS), candidates(ROOT_STEPS)
  both = Candidates(*map(lambda *x: np.concatenate(x, axis=1), one, two))
  judge(np.array([[0, 1]], np.int32), 2, both)
  assert judge.line(0, 2 * A) == (ADD, NEXT_STEPS[0][0])
  assert judge.line(0, 3 * A) == (ROOT_STEPS[1][0], ADD)
