"""The domain as judge, on candidates written by hand."""

import dataclasses
import types

import numpy as np
import pytest

from qstar_jax.domains.countdown import Countdown
from qstar_jax.records import NOT_JUDGED, Outcome
from qstar_jax.search.expand import NOTHING, PROBLEM
from qstar_jax.selfplay.judge import LineJudge, judge_round
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
  count = np.array(count, np.int32)[None, None]
  return types.SimpleNamespace(tokens=tokens, length=length, count=count)


@pytest.fixture
def judge():
  return LineJudge(DOMAIN, PROBLEM_235, VOCABULARY)


def ask(judge, leaf, node, expansion):
  """What is said of one leaf's candidates."""
  leaf_BW, node_B = np.array([[leaf]], np.int32), np.array([node], np.int32)
  return judge_round([judge], leaf_BW, node_B, expansion)


def fields(judgement):
  return [field[0, 0].tolist() for field in judgement]


def test_steps_after_the_problem(judge):
  judgement = ask(judge, PROBLEM, 0, candidates(ROOT_STEPS))
  legal, finished, outcome, score, _ = fields(judgement)
  assert legal == [1, 0, 0, 0]
  assert finished == [False] * 4
  # Only the last one says that it has ended, and that is no solution.
  assert outcome == [NOT_JUDGED] * 3 + [Outcome.UNPARSEABLE]
  assert score == [0] * 4
  assert [field.dtype for field in judgement] == [
    np.int8, bool, np.int8, np.float32, np.int32
  ]  # fmt: skip


def test_steps_after_a_step(judge):
  ask(judge, PROBLEM, 0, candidates(ROOT_STEPS))
  judgement = ask(judge, 0, 1, candidates(NEXT_STEPS))
  legal, finished, outcome, score, _ = fields(judgement)
  assert legal == [1, 1, 1, 0]
  # The domain knows that nothing is left, end token or not.
  assert finished == [True, True, True, False]
  assert outcome == [
    Outcome.CORRECT, Outcome.CORRECT, Outcome.WRONG, NOT_JUDGED
  ]  # fmt: skip
  assert score == [1, 1, 0, 0]
  assert judge.line(A + 1) == (ADD, NEXT_STEPS[1][0])


def test_a_step_that_was_cut_is_wrong_however_complete_it_looks(judge):
  ask(judge, PROBLEM, 0, candidates(ROOT_STEPS))
  ask(judge, 0, 1, candidates(NEXT_STEPS))
  line = judge.line(A + 3)
  assert line[-1] == "5 + 5 = 10 (left: 10)\N{HORIZONTAL ELLIPSIS}"
  assert DOMAIN.verify(PROBLEM_235, line).outcome == Outcome.UNPARSEABLE


def test_nothing_is_legal_after_an_illegal_step():
  asked = []

  @dataclasses.dataclass(frozen=True)
  class Asked(Countdown):
    def check_step(self, problem, steps, step):
      asked.append(steps)
      return super().check_step(problem, steps, step)

  judge = LineJudge(Asked(), PROBLEM_235, VOCABULARY)
  ask(judge, PROBLEM, 0, candidates(ROOT_STEPS))
  judgement = ask(judge, 1, 1, candidates(NEXT_STEPS))
  legal, finished, outcome, *_ = fields(judgement)
  assert legal == [0] * 4
  assert finished == [False] * 4
  assert outcome == [NOT_JUDGED, Outcome.WRONG, Outcome.WRONG, NOT_JUDGED]
  # A domain is asked about steps after legal ones, and no others.
  assert set(asked) == {()}


def test_what_is_not_judged(judge):
  expansion = candidates(ROOT_STEPS, count=(0, 2, 0, 0))
  legal, *_ = fields(ask(judge, PROBLEM, 0, expansion))
  assert legal == [-1, 0, -1, -1]
  unjudged = [[-1] * 4, [False] * 4, [-1] * 4, [0] * 4, [-1] * 4]
  assert fields(ask(judge, NOTHING, 1, candidates(ROOT_STEPS))) == unjudged


def test_trees_without_a_judge_are_not_judged():
  judgement = ask(None, PROBLEM, 0, candidates(ROOT_STEPS))
  assert fields(judgement)[0] == [-1] * 4


def test_trees_and_leaves_of_a_round_have_nodes_of_their_own():
  """Two trees, one a round further than the other, with two leaves each."""
  judges = [LineJudge(DOMAIN, PROBLEM_235, VOCABULARY) for _ in range(2)]
  for judge in judges:
    ask(judge, PROBLEM, 0, candidates(ROOT_STEPS))
  one, two = candidates(NEXT_STEPS), candidates(ROOT_STEPS)
  both = types.SimpleNamespace(
    **{
      name: np.repeat(
        np.concatenate([value, vars(two)[name]], axis=1), 2, axis=0
      )
      for name, value in vars(one).items()
    }
  )
  leaf_BW = np.array([[0, 1], [0, 1]], np.int32)
  judgement = judge_round(judges, leaf_BW, np.array([2, 4]), both)
  np.testing.assert_array_equal(judgement.legal[0], judgement.legal[1])
  for judge, node in zip(judges, (2, 4), strict=True):
    assert judge.line(node * A) == (ADD, NEXT_STEPS[0][0])
    assert judge.line((node + 1) * A) == (ROOT_STEPS[1][0], ADD)


def test_lines_that_leave_the_same_numbers_are_in_the_same_state():
  problem = DOMAIN.parse("2 3 4 5 -> 100")
  judge = LineJudge(DOMAIN, problem, VOCABULARY)

  def states(leaf, node, texts):
    expansion = candidates([(text, "delimiter") for text in texts])
    leaf_BW, node_B = np.array([[leaf]]), np.array([node])
    judgement = judge_round(
      [judge], leaf_BW, node_B, expansion, names_states=True
    )
    assert judgement.state.dtype == np.int32
    return judgement.state[0, 0].tolist()

  add, multiply = "2 + 3 = 5 (left: 4 5 5)", "4 * 5 = 20 (left: 2 3 20)"
  first = states(PROBLEM, 0, [add, multiply, "2 + 3 = 6 (left: 4 5 6)", add])
  after_add = states(0, 1, [
    "4 * 5 = 20 (left: 5 20)",
    "5 * 4 = 20 (left: 20 5)",
    "5 - 4 = 1 (left: 5 1)",
    "5 + 5 = 10 (left: 4 10)",
  ])  # fmt: skip
  after_multiply = states(1, 2, [
    "2 + 3 = 5 (left: 5 20)",
    "3 - 2 = 1 (left: 1 20)",
    "2 + 3 = 6 (left: 6 20)",
    "20 + 2 = 22 (left: 3 22)",
  ])  # fmt: skip
  # What is refused has no state, and what is finished goes on from none.
  assert first == [0, 1, -1, 0]
  assert after_add == [2, 2, 3, 4]
  assert after_multiply == [2, 5, -1, 6]
  assert states(4, 3, ["5 * 20 = 100 (left: 100)"] * 4) == [-1] * 4


def test_a_state_is_that_of_lines_of_one_length():
  @dataclasses.dataclass(frozen=True)
  class Alike(Countdown):
    def state_key(self, problem, steps):
      return "all alike" if "2" not in steps[-1] else None

  problem = DOMAIN.parse("2 3 4 5 -> 100")
  judge = LineJudge(Alike(), problem, VOCABULARY)
  lines = [
    (PROBLEM, "4 + 5 = 9 (left: 3 9)"),
    (PROBLEM, "4 + 3 = 7 (left: 5 7)"),
    (0, "3 + 9 = 12 (left: 12)"),
    (0, "3 - 9 = -6 (left: -6)"),
  ]
  for index, (leaf, text) in enumerate(lines):
    judge.check(leaf, index, VOCABULARY.encode_step(text, is_last=False))
  assert [judge.state(i) for i in range(4)] == [0, 0, -1, 1]
