"""Wrong steps of number games, of the kinds that language models write.

Each function takes `(rng, state, move)`, the move being legal, and returns the
text of a step that is most often illegal (the caller checks).
"""

import numpy as np

from qstar_jax.domains import expressions
from qstar_jax.domains.number_state import Move, State, write_step
from qstar_jax.domains.reachability import is_positive_integer
from qstar_jax.domains.step_domain import pick


def wrong_result(rng: np.random.Generator, state: State, move: Move) -> str:
  """A slip of calculation, carried into the list left."""
  *rest, result = state.after(move).left
  return write_step(move, (*rest, _near(rng, result)))


def wrong_list(rng: np.random.Generator, state: State, move: Move) -> str:
  """The right result, but a number is lost, kept or changed."""
  left = list(state.after(move).left)
  text = write_step(move, tuple(left))
  index = int(rng.integers(len(left)))
  number = left[index]
  changes = [[number, number], [_near(rng, number)], [number, move[0]]]
  if len(left) > 1:
    changes.append([])
  left[index : index + 1] = pick(rng, changes)
  head, _, _ = text.partition(" (left: ")
  return f"{head} (left: {' '.join(map(str, left))})"


def wrong_operand(rng: np.random.Generator, state: State, move: Move) -> str:
  """A number that is not left, or not any more."""
  a, op, b = move
  used = [
    number for first, _, second in state.moves for number in (first, second)
  ]
  operand = pick(rng, [_near(rng, a), *used])
  *rest, result = state.after(move).left
  value = expressions.apply(op, operand, b)
  # Play in positive integers makes its mistakes in positive integers.
  if is_positive_integer(result) and not is_positive_integer(value):
    op, value = "+", operand + b
  return write_step((operand, op, b), (*rest, value))


def forced_target(rng: np.random.Generator, state: State, move: Move) -> str:
  """A last equation bent to the target."""
  del rng
  return write_step(move, (*state.after(move).left[:-1], state.target))


def _near(
  rng: np.random.Generator, number: expressions.Number
) -> expressions.Number:
  """A number close to `number`; positive if that is."""
  other = number + pick(rng, [-10, -2, -1, 1, 2, 10])
  return other if (other > 0) == (number > 0) else number + 1
