"""Wrong steps of number games, of the kinds that language models write.

Each function takes `(rng, state, move)`, the move being legal, and returns the
text of a step that is most often illegal (the caller checks).

A wrong number is a slip, close to the right one, or a wish: one from which the
target can be made. Search finds the wishes, since they look good to a value
that reads what is left and not how it came about.
"""

from collections.abc import Sequence

import numpy as np

from qstar_jax.domains import expressions
from qstar_jax.domains.expressions import Number
from qstar_jax.domains.number_state import (
  Move,
  State,
  legal_moves,
  spaced,
  write_step,
)
from qstar_jax.domains.reachability import is_positive_integer, partners
from qstar_jax.domains.step_domain import pick


def wrong_result(rng: np.random.Generator, state: State, move: Move) -> str:
  """A wrong result, carried into the list left."""
  *rest, result = state.after(move).left
  return write_step(move, (*rest, _wrong(rng, result, rest, state.target)))


def wrong_list(rng: np.random.Generator, state: State, move: Move) -> str:
  """The right result, but a number is lost, kept or changed."""
  left = list(state.after(move).left)
  equation, _, _ = write_step(move, tuple(left)).partition(" (left: ")
  index = int(rng.integers(len(left)))
  number = left.pop(index)
  other = _wrong(rng, number, left, state.target)
  changes = [[number, number], [other], [number, move[0]]]
  if left:
    changes.append([])
  return f"{equation} (left: {spaced(sorted(left + pick(rng, changes)))})"


def wrong_operand(rng: np.random.Generator, state: State, move: Move) -> str:
  """A number that is not left, or not any more."""
  a, op, b = move
  *rest, result = state.after(move).left
  used = [
    number for first, _, second in state.moves for number in (first, second)
  ]
  wish = _first_operand(op, b, _wish(rng, result, rest, state.target))
  operand = pick(rng, [_slip(rng, a), *used, a if wish is None else wish])
  value = expressions.apply(op, operand, b)
  # Play in positive integers makes its mistakes in positive integers.
  if is_positive_integer(result) and not is_positive_integer(value):
    op, value = "+", operand + b
  return write_step((operand, op, b), (*rest, value))


def garbled(rng: np.random.Generator, state: State, move: Move) -> str:
  """A word lost, doubled, or one of the step's others in its place."""
  words = write_step(move, state.after(move).left).split(" ")
  index = int(rng.integers(len(words)))
  word = words[index]
  words[index : index + 1] = pick(rng, [[], [word, word], [pick(rng, words)]])
  return " ".join(words)


def _wrong(
  rng: np.random.Generator,
  number: Number,
  others: Sequence[Number],
  target: int,
) -> Number:
  """A slip or a wish in the place of `number`, evenly."""
  if rng.random() < 0.5:
    return _slip(rng, number)
  return _wish(rng, number, others, target)


def _slip(rng: np.random.Generator, number: Number) -> Number:
  """A number close to `number`; positive if that is."""
  other = number + pick(rng, [-10, -2, -1, 1, 2, 10])
  return other if (other > 0) == (number > 0) else number + 1


def _wish(
  rng: np.random.Generator,
  number: Number,
  others: Sequence[Number],
  target: int,
) -> Number:
  """A number that makes the target with `others`, each used once.

  A positive integer where `number` is one; a slip if there is none.
  """
  state = State(target, left=tuple(others), trees=tuple(others))
  while len(state.left) > 1:
    state = state.after(pick(rng, legal_moves(state)))
  if not state.left:
    return target
  wishes = list(partners(state.left[0], target))
  if is_positive_integer(number):
    wishes = [*filter(is_positive_integer, wishes)]
  return pick(rng, wishes) if wishes else _slip(rng, number)


def _first_operand(op: str, b: Number, result: Number) -> Number | None:
  """The a of `a op b = result`; None if there is none."""
  if op == "/":
    return result * b
  if op == "*":
    return expressions.apply("/", result, b) if b else None
  return result - b if op == "+" else result + b
