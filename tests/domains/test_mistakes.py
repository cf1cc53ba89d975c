"""Wrong steps of number games, and how lines go on from them."""

from fractions import Fraction

import numpy as np
import pytest

from qstar_jax.domains import expressions, mistakes
from qstar_jax.domains.countdown import Countdown
from qstar_jax.domains.game24 import Game24
from qstar_jax.domains.number_state import State, legal_moves, listed_left
from qstar_jax.domains.reachability import can_reach
from qstar_jax.domains.step_domain import pick

SLIPS = {-10, -2, -1, 1, 2, 10}


def drawn(kind, num=400):
  """Mistakes at random states: (state, move, text)."""
  rng = np.random.default_rng(0)
  for _ in range(num):
    size = int(rng.integers(2, 5))
    numbers = tuple(rng.integers(1, 14, size=size).tolist())
    state = State(24, left=numbers, trees=numbers)
    move = pick(rng, legal_moves(state))
    yield state, move, kind(rng, state, move)


def makes_target(left, target=24):
  return can_reach(tuple(sorted(left)), target)


def test_a_wrong_result_is_a_slip_or_makes_the_target():
  num_slips = num_wishes = 0
  for state, move, text in drawn(mistakes.wrong_result):
    right, left = state.after(move).left, listed_left(text)
    rest, result = right[:-1], right[-1]
    equation = text.partition(" (left: ")[0]
    given = expressions.read_number(equation.split(" ")[-1])
    assert sorted(left) == sorted((*rest, given))
    is_slip = abs(given - result) in SLIPS
    is_wish = makes_target(left)
    assert is_slip or is_wish
    num_slips += is_slip and not is_wish
    num_wishes += is_wish and not is_slip
  assert min(num_slips, num_wishes) > 100


def test_a_wrong_list_has_the_right_result():
  num_wishes = 0
  for state, move, text in drawn(mistakes.wrong_list):
    a, op, b = move
    equation, _, _ = text.partition(" (left: ")
    assert equation == f"{a} {op} {b} = {expressions.apply(op, a, b)}"
    left = listed_left(text)
    # As long lists are written: nothing in it tells but its numbers.
    assert list(left) == sorted(left)
    assert abs(len(left) - len(state.left) + 1) <= 1
    is_right = sorted(left) == sorted(state.after(move).left)
    num_wishes += bool(left) and makes_target(left) and not is_right
  assert num_wishes > 50


def test_a_wrong_operand_calculates_rightly():
  num_wishes = 0
  for state, _, text in drawn(mistakes.wrong_operand):
    equation, _, _ = text.partition(" (left: ")
    a, op, b, _, result = equation.split(" ")
    a, b, result = map(expressions.read_number, (a, b, result))
    assert expressions.apply(op, a, b) == result
    is_used = a in state.left
    num_wishes += not is_used and makes_target(listed_left(text))
  assert num_wishes > 80


def test_a_garbled_step_differs_by_one_word():
  for state, move, text in drawn(mistakes.garbled):
    a, op, b = move
    *rest, result = state.after(move).left
    left = " ".join(map(str, sorted((*rest, result))))
    right = f"{a} {op} {b} = {result} (left: {left})".split(" ")
    words = text.split(" ")
    assert abs(len(words) - len(right)) <= 1
    assert set(words) <= set(right)
    same = next(
      (i for i in range(min(map(len, (words, right)))) if words[i] != right[i]),
      len(right),
    )
    cut = max(len(words), len(right)) - same - 1
    assert words[len(words) - cut :] == right[len(right) - cut :]


@pytest.mark.parametrize("domain", [Game24(), Countdown(max_number=9)])
def test_a_line_goes_on_from_what_its_mistake_claims(domain):
  """Legally, and to the target if what is claimed can make it."""
  rng = np.random.default_rng(1)
  num_on_target = num_dead = 0
  for _ in range(300):
    problem, steps = domain.random_play(rng, 3)
    line, bad = domain.corrupt(rng, problem, steps)
    target = problem.payload["target"]
    left = listed_left(line[bad])
    for step in line[bad + 1 :]:
      a, op, b, _, result = step.partition(" (left: ")[0].split(" ")
      a, b, result = map(expressions.read_number, (a, b, result))
      before, left = sorted(left), listed_left(step)
      assert expressions.apply(op, a, b) == result
      assert sorted((*left, a, b)) == sorted((*before, result))
    if bad + 1 < len(line):
      claimed = listed_left(line[bad])
      assert len(line) == min(len(steps), bad + len(claimed))
      if len(left) == 1:
        assert (left[0] == target) == makes_target(claimed, target)
        num_on_target += left[0] == target
        num_dead += left[0] != target
  assert min(num_on_target, num_dead) > 20


@pytest.mark.parametrize(
  ("step", "left"),
  [
    ("10 - 4 = 6 (left: 6 9 13)", (6, 9, 13)),
    ("10 4 = 6 (left: -6 9/2)", (-6, Fraction(9, 2))),
    ("10 - 4 = 6 (left: 6 9/0)", ()),
    ("10 - 4 = 6 (left: 6 4/2)", ()),
    ("10 - 4 = 6 (left: 6 9) 13", ()),
    ("Answer: 10 - 4 = 6", ()),
    ("", ()),
  ],
)
def test_what_a_step_says_is_left(step, left):
  assert listed_left(step) == left
