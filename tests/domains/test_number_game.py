"""The rules of countdown and game24: what is refused, and with what reason."""

import re
import time

import numpy as np
import pytest

from qstar_jax.domains.countdown import Countdown
from qstar_jax.domains.game24 import Game24
from qstar_jax.domains.number_state import spaced
from qstar_jax.domains.reachability import reachable
from qstar_jax.errors import UserError
from qstar_jax.records import Outcome

GAME = Game24()
HAND = GAME.parse("4 9 10 13")
LINE = (
  "10 - 4 = 6 (left: 9 13 6)",
  "13 - 9 = 4 (left: 6 4)",
  "6 * 4 = 24 (left: 24)",
)
ANSWER = "Answer: (10 - 4) * (13 - 9) = 24"


def outcome(steps, hand="4 9 10 13"):
  verdict = GAME.verify(GAME.parse(hand), tuple(steps))
  assert (verdict.score == 1.0) == (verdict.outcome == Outcome.CORRECT)
  return verdict.outcome


def test_problem_record():
  assert HAND.prompt == "4 9 10 13 -> 24\n"
  problem = Countdown().parse("9 3 5 -> 42")
  assert problem.prompt == "3 5 9 -> 42\n"  # One problem, one writing.
  assert problem.key == "3 5 9 -> 42"
  assert problem.difficulty == 2
  assert GAME.split_key(HAND) == GAME.split_key(GAME.parse("13 10 9 4 -> 36"))
  assert Countdown().split_key(problem) != "3 5 9 -> 41"


@pytest.mark.parametrize("text", ["4 9 ten 13", "4", ""])
@pytest.mark.parametrize(
  ("game", "example"), [(GAME, "4 9 10 13"), (Countdown(), "3 5 9 -> 42")]
)
def test_a_malformed_problem_gets_an_example_of_its_domain(game, example, text):
  with pytest.raises(UserError, match=f"as .*`{re.escape(example)}`"):
    game.parse(text)


def test_the_line_of_the_documentation():
  assert outcome(LINE) == Outcome.CORRECT
  assert GAME.answer(HAND, LINE) == "(10 - 4) * (13 - 9) = 24"
  assert outcome([*LINE, ANSWER]) == Outcome.CORRECT
  assert GAME.answer(HAND, (ANSWER,)) == "(10 - 4) * (13 - 9) = 24"
  wrong = ANSWER.replace("13", "14")
  assert GAME.answer(HAND, (wrong,)) == "(10 - 4) * (14 - 9) = 24"


def test_left_in_any_order_and_operands_either_way():
  line = (
    "10 - 4 = 6 (left: 6 13 9)",
    "13 - 9 = 4 (left: 4 6)",
    "4 * 6 = 24 (left: 24)",
  )
  assert outcome(line) == Outcome.CORRECT


def test_fractions_and_negatives_are_exact():
  line = (
    "8 / 3 = 8/3 (left: 3 8 8/3)",
    "3 - 8/3 = 1/3 (left: 8 1/3)",
    "8 / 1/3 = 24 (left: 24)",
  )
  assert outcome(line, "3 3 8 8") == Outcome.CORRECT
  assert GAME.answer(GAME.parse("3 3 8 8"), line) == "8 / (3 - 8 / 3) = 24"
  line = (
    "1 - 9 = -8 (left: 4 4 -8)",
    "4 * 4 = 16 (left: -8 16)",
    "16 - -8 = 24 (left: 24)",
  )
  assert outcome(line, "1 4 4 9") == Outcome.CORRECT


WRONG_STEPS = [
  ("4 + 9 = 12 (left: 10 13 12)", "4 + 9 is 13, not 12"),
  ("4 + 4 = 8 (left: 9 10 13 8)", "reuses 4: the numbers left are 4 9 10 13"),
  ("4 + 7 = 11 (left: 9 10 13 11)", "7 is not among the numbers left"),
  ("4 + 9 = 13 (left: 10 13)", "the list left omits 13"),
  ("4 + 9 = 13 (left: 13 13)", "the list left omits 10"),
  ("4 + 9 = 13 (left: 4 10 13 13)", "the list left has an unknown 4"),
  ("4 + 9 = 13 (left: 10 10 13 13)", "the list left reuses 10"),
  ("4 / 9 = 0 (left: 10 13 0)", "4 / 9 is 4/9, not 0"),
  ("Answer: 4 + 9 + 10 + 13 = 36", "4 + 9 + 10 + 13 is 36, not 24"),
  ("Answer: 4 + 9 + 10 + 13 = 24", "4 + 9 + 10 + 13 is 36, not 24"),
  ("Answer: (10 - 4) * (13 - 9) = 999", "the right-hand side is 999, not 24"),
  ("Answer: (10 - 4) * 9 = 24", "the answer omits 13"),
  ("Answer: 4 * 9 * 10 * 13 * 4 = 24", "the answer reuses 4"),
  ("Answer: 4 * 9 * 10 * 13 * 1 = 24", "the answer has an unknown 1"),
  ("Answer: 24 = 24", "the answer omits 4"),
  ("Answer: 4 / (13 - 9 - 4 - 10) = 24", "the answer reuses 4"),
  ("Answer: -4 * 9 + 10 + 13 = 24", "the answer omits 4"),
]
UNPARSEABLE_STEPS = [
  ("", "'' is not a step"),
  (" ", "' ' is not a step"),
  ("4+9 = 13 (left: 10 13 13)", "is not a step: write `a + b = c"),
  ("4  + 9 = 13 (left: 10 13 13)", "is not a step"),
  (" 4 + 9 = 13 (left: 10 13 13)", "is not a step"),
  ("4 + 9 = 13 (left: 10 13 13) ", "is not a step"),
  ("4 + 9 = 13 (left: 10 13 13)\n", "character '\\n' is not part of a step"),
  ("4 + 9 = 13", "is not a step"),
  ("4 + 9 = 13 (left: )", "is not a step"),
  ("4 + 9 + 10 = 23 (left: 13 23)", "is not a step"),
  ("4 / 9 = 0.44 (left: 10 13 0.44)", "character '.' is not part of a step"),
  ("4 / 9 = 8/18 (left: 10 13 4/9)", "8/18 should be written 4/9"),
  ("04 + 9 = 13 (left: 10 13 13)", "04 should be written 4"),
  ("9 - 9/0 = 1 (left: 4 10 13)", "9/0 divides by zero"),
  ("\u0664 + 9 = 13 (left: 10 13 13)", "character '\\u0664' is not part of"),
  ("4 ** 9 = 13 (left: 10 13 13)", "is not a step"),
  ("4! + 9 = 33 (left: 10 13 33)", "character '!' is not part of a step"),
  ("answer: (10 - 4) * (13 - 9) = 24", "character 'a' is not part of a step"),
  ("Answer: 2**3*3*1 = 24", "expected a number or ( at '*3*3*1 '"),
  ("Answer: 4!*1*1*1 = 24", "character '!' is not allowed"),
  ("Answer: 7//2*3 = 24", "expected a number or ( at '/2*3 '"),
  ("Answer: 4 + 9", "expected = in '4 + 9'"),
  ("Answer: (10 - 4) * (13 - 9) = 24 = 24", "'24 = 24' is not an integer"),
  ("Answer: (10 - 4) * (13 - 9) = 024", "024 should be written 24"),
  ("Answer: (10 - 4) * (13 - 9) = 24.0", "'24.0' is not an integer"),
  ("Answer: (10 - 4) * (13 - 9) =", "'' is not an integer"),
  ("Answer: (10 - 4) \u00d7 (13 - 9) = 24", "character '\\xd7' is not allowed"),
  (
    "Answer: (10 - 4) * (13 - \uff19) = 24",
    "character '\\uff19' is not allowed",
  ),
  (
    "Answer: (10 - 4) * (13 - 9) = \uff12\uff14",
    "is not an integer in the digits",
  ),
  ("Answer:(10 - 4) * (13 - 9) = 24", "character 'A' is not part of a step"),
  ("(10 - 4) * (13 - 9) = 24", "is not a step"),
]


@pytest.mark.parametrize(
  ("step", "reason", "expected"),
  [(*case, Outcome.WRONG) for case in WRONG_STEPS]
  + [(*case, Outcome.UNPARSEABLE) for case in UNPARSEABLE_STEPS],
)
def test_refused_with_a_reason(step, reason, expected):
  verdict = GAME.verify(HAND, (step,))
  assert verdict.outcome == expected
  assert verdict.score == 0.0
  assert verdict.reason.startswith("step 1: ")
  assert reason in verdict.reason
  check = GAME.check_step(HAND, (), step)
  assert not check.is_legal and not check.is_terminal
  assert check.reason == verdict.reason


def test_traps_of_other_checkers_are_refused_on_their_own_hands():
  for hand, equation in [
    ("1 2 3 3", "2**3*3*1"),
    ("1 1 1 4", "4!*1*1*1"),
    ("2 3 7 13", "7//2*3"),
    ("2 2 3 4", "2*3*4"),
    ("2 2 3 4", "2*2*2*3"),
  ]:
    for right_side in ("24", "999"):
      step = f"Answer: {equation} = {right_side}"
      assert outcome([step], hand) != Outcome.CORRECT
  assert outcome(["Answer: 2*3*4/(2/2) = 24"], "2 2 3 4") == Outcome.WRONG


def test_division_by_zero_is_refused():
  hand = GAME.parse("4 4 5 6")
  line = ("4 - 4 = 0 (left: 5 6 0)", "5 / 0 = 0 (left: 6 0)")
  assert "5 / 0 divides by zero" in GAME.verify(hand, line).reason
  line = ("Answer: 5 / (4 - 4) * 6 = 24",)
  assert "the answer divides by zero" in GAME.verify(hand, line).reason
  assert not any(" / 0 " in step for step in GAME.legal_steps(hand, line[:0]))


def test_line_that_ends_elsewhere():
  line = (*LINE[:2], "6 + 4 = 10 (left: 10)")
  assert GAME.verify(HAND, line).reason == "line ends at 10, not 24"
  assert GAME.check_step(HAND, line[:2], line[2]).is_terminal
  assert not GAME.solvable(HAND, line)
  verdict = GAME.verify(HAND, LINE[:1])
  assert verdict.reason == "line ends with numbers left: 9 13 6"
  assert GAME.verify(HAND, ()).outcome == Outcome.WRONG


def test_answer_after_the_line_may_be_another_solution():
  assert outcome([*LINE, "Answer: (10-4) * (13-9) = 24"]) == Outcome.CORRECT
  verdict = GAME.verify(HAND, (*LINE, ANSWER, ANSWER))
  assert "nothing follows its answer" in verdict.reason
  verdict = GAME.verify(HAND, (*LINE, LINE[0]))
  assert "the line is finished: 24 is left" in verdict.reason
  line = (*LINE[:2], "6 + 4 = 10 (left: 10)", ANSWER)
  assert "the line ended at 10, not 24" in GAME.verify(HAND, line).reason


def test_early_answer_goes_on_from_the_steps():
  for steps in (LINE[:0], LINE[:1], LINE[:2]):
    assert outcome([*steps, ANSWER]) == Outcome.CORRECT
    check = GAME.check_step(HAND, steps, ANSWER)
    assert check.is_legal and check.is_terminal
    assert GAME.solvable(HAND, (*steps, ANSWER))
  # Operands of a sum may be swapped, those of a difference may not.
  line = ("4 * 2 = 8 (left: 3 3 8)", "Answer: 2 * 4 * (3 / 3) = 24")
  assert outcome(line, "2 3 3 4") == Outcome.WRONG
  line = ("4 * 2 = 8 (left: 3 3 8)", "Answer: 3 * (2 * 4) - 3 = 21")
  game, hand = Countdown(), Countdown().parse("2 3 3 4 -> 21")
  assert game.verify(hand, line).outcome == Outcome.CORRECT
  # An answer that takes another way would make a lost line good.
  line = ("4 + 9 = 13 (left: 10 13 13)", ANSWER)
  assert "does without the step 4 + 9" in GAME.verify(HAND, line).reason
  assert not GAME.solvable(HAND, line[:1])


def test_early_answer_needs_its_operations_in_an_order_that_fits():
  """Each operation occurs, but none of them can come next."""
  game = Countdown()
  hand = game.parse("1 2 3 6 -> 7")
  # 3 - 2 took the 2 and the 3 that the answer uses otherwise: 6 / 3 = 2 first.
  answer = "Answer: 6 * (3 - 2) + 1 = 7"
  assert game.verify(hand, (answer,)).outcome == Outcome.CORRECT
  line = ("3 - 2 = 1 (left: 1 6 1)", answer)
  assert game.verify(hand, line).outcome == Outcome.CORRECT
  hand = game.parse("2 2 4 -> 4")
  answer = "Answer: 2 * (4 / 2) = 4"
  line = ("2 * 2 = 4 (left: 4 4)", answer)
  assert "does not go on" in game.verify(hand, line).reason


def test_long_lines_are_refused_at_once():
  digits = "9" * 10_000
  for step in (
    digits,
    "(" * 10_000,
    f"Answer: {'(' * 5000}1{')' * 5000} = 24",
    f"Answer: {'1/7+' * 2500}1 = 24",
    f"{digits} + 4 = 5 (left: 5)",
    "4 + 9 = 13 (left: " + "10 " * 3500 + "13)",
    LINE[0] + " " * 10_000,
  ):
    start = time.perf_counter()
    verdict = GAME.verify(HAND, (step,))
    assert time.perf_counter() - start < 0.01
    assert verdict.outcome == Outcome.UNPARSEABLE
    assert f"has {len(step)} characters, over 1000" in verdict.reason
    assert len(verdict.reason) < 100
  # Just within the bound, the worst that fits is refused by other bounds.
  for step in (
    f"Answer: {'(' * 990}1",
    f"Answer: {'1/7+' * 240}1 = 24",
    f"Answer: {'9' * 980} = 24",
    f"Answer: {'9' * 40}/{'7' * 40}+1 = 24",
    f"{'9' * 900} + 4 = 5 (left: 5)",
    "4 + 9 = 13 (left: " + "10 " * 300 + "13)",
  ):
    verdict = GAME.verify(HAND, (step,))
    assert verdict.outcome != Outcome.CORRECT
    assert len(verdict.reason) < 200


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("", "has 0 numbers; write 2 to 6"),
    ("5 -> 5", "has 1 numbers"),
    ("1 2 3 4 5 6 7 -> 5", "has 7 numbers"),
    ("1 2 3", "has no target"),
    ("1 2 x -> 3", "'x' is not an integer"),
    ("1 2 -> x", "'x' is not an integer"),
    ("1 2 -> ", "'' is not an integer"),
    ("1 2 -> 3 -> 4", "'3 -> 4' is not an integer"),
    ("1 0 -> 3", "'0' is out of range"),
    ("1 -2 -> 3", "'-2' is out of range"),
    ("1 10000 -> 3", "'10000' is out of range"),
    ("1 2 -> 0", "'0' is out of range"),
    ("1 2 -> 1000000", "'1000000' is out of range"),
    ("01 2 -> 3", "01 should be written 1"),
    ("1.5 2 -> 3", "'1.5' is not an integer"),
    ("\u0661 2 -> 3", "is not an integer in the digits 0 to 9"),
    ("1 2 -> " + "9" * 5000, "has over 40 digits"),
  ],
)
def test_malformed_countdown_problem(text, reason):
  with pytest.raises(UserError) as info:
    Countdown().parse(text)
  assert reason in str(info.value)
  assert "\n" not in str(info.value) and len(str(info.value)) < 200


@pytest.mark.parametrize("text", ["4 9 10", "4 9 10 14", "4 9 10 13 2", "4"])
def test_malformed_game24_problem(text):
  with pytest.raises(UserError, match=r"no game of 24|has 1 numbers"):
    GAME.parse(text)


def test_spaces_around_a_typed_problem_are_free():
  assert GAME.parse("  4 9  10 13 ") == GAME.parse("4 9 10 13->24\n") == HAND


def test_integers_only_plays_with_positive_integers():
  rng = np.random.default_rng(0)
  domain = Countdown(max_number=20)
  for _ in range(200):
    problem, steps = domain.random_play(rng, 3)
    assert not set("/-") & set("".join(s.split(" = ")[1] for s in steps))
    assert 1 <= problem.payload["target"] <= domain.max_target
    assert all(1 <= n <= 20 for n in problem.payload["numbers"])
  rational = Game24(integers_only=False)
  lines = [rational.random_play(rng, 3)[1] for _ in range(200)]
  results = "".join(s.split(" = ")[1] for line in lines for s in line)
  assert "/" in results and "-" in results


def test_game24_targets():
  rng = np.random.default_rng(0)
  problems = [GAME.sample(rng, 3) for _ in range(50)]
  assert {problem.payload["target"] for problem in problems} == {24}
  played = {GAME.random_play(rng, 3)[0].payload["target"] for _ in range(50)}
  assert len(played) > 10


@pytest.mark.parametrize("integers_only", [False, True])
def test_sampled_hands_need_fractions_only_where_allowed(integers_only):
  domain = Game24(integers_only=integers_only)
  rng = np.random.default_rng(0)
  needs_fractions = {
    spaced(hand)
    for _ in range(3000)
    if 24
    not in reachable(
      hand := tuple(sorted(domain.sample(rng, 3).payload["numbers"])), True
    )
  }
  # 16 hands of 1362 do.
  assert len(needs_fractions) in (range(1) if integers_only else range(8, 17))


def test_related_problems_have_each_target_alike_often(monkeypatch):
  hand = (1, 5, 6, 11)
  monkeypatch.setattr(Game24, "_draw_numbers", lambda *_: list(hand))
  domain = Game24(max_target=30)
  rng = np.random.default_rng(0)
  targets = [
    domain.sample_related(rng, 3).payload["target"] for _ in range(3000)
  ]
  possible = [t for t in range(1, 31) if t in reachable(hand)]
  assert sorted(set(targets)) == possible
  mean = 3000 / len(possible)
  for target in possible:
    assert abs(targets.count(target) - mean) < 5 * mean**0.5


def test_impossible_target_is_a_user_error():
  domain = Countdown(min_number=9998, max_number=9999, max_target=2)
  rng = np.random.default_rng(0)
  assert domain.sample(rng, 1).payload["target"] == 1
  # Two sevens make 1, three make 2 at least.
  domain = Countdown(min_number=7, max_number=7, max_target=1)
  for generate in (domain.sample, domain.random_play):
    with pytest.raises(UserError, match="max_target is 1: none of"):
      generate(rng, 2)


def test_related_games_have_another_target_or_larger_numbers():
  game, rng = Game24(max_target=30, max_number=18), np.random.default_rng(0)
  problems = [game.sample_related(rng, 3).payload for _ in range(400)]
  large = [p for p in problems if max(p["numbers"]) > 13]
  assert {p["target"] for p in large} == {24}
  # (13 / 18)^4 of the draws have no larger number.
  assert 100 < len(large) < 190
  others = {p["target"] for p in problems}
  assert others <= set(range(1, 31)) and len(others) > 20
  for problem in problems:
    assert max(problem["numbers"]) <= 18
    assert problem["target"] in reachable(tuple(problem["numbers"]))
  played = [game.random_play(rng, 3)[0] for _ in range(200)]
  assert 50 < sum(max(p.payload["numbers"]) > 13 for p in played) < 150
  assert all(game.parse(p.key) == p for p in played)


def test_the_game_itself_knows_no_larger_numbers():
  """Nor do related problems by default; what is held out stays the same."""
  wide, plain = Game24(max_number=18), Game24()
  for seed in range(50):
    problem = wide.sample(np.random.default_rng(seed), 3)
    assert problem == plain.sample(np.random.default_rng(seed), 3)
    rng = np.random.default_rng(seed)
    for related in (plain.sample_related(rng, 3), plain.random_play(rng, 3)[0]):
      assert max(related.payload["numbers"]) <= 13
  with pytest.raises(UserError, match="from 1 to 13, as"):
    plain.parse("4 9 10 14")
  for number in 12, 100:
    with pytest.raises(UserError, match=r"max_number is .*need 13 to 99"):
      Game24(max_number=number)
