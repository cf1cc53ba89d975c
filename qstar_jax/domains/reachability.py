"""Which values a hand of numbers can make: exact, by splitting the hand.

An expression over a hand combines an expression over one part of the hand with
one over the rest, so what a hand reaches follows from what its parts reach.
Hands are sorted tuples; results are memoised by hand.
"""

import functools
import itertools
from collections.abc import Iterator
from fractions import Fraction

from qstar_jax.domains.expressions import Number, apply

Hand = tuple[Number, ...]


def is_positive_integer(value: Number) -> bool:
  """Whether `value` is 1, 2, 3 and so on."""
  return value.denominator == 1 and value > 0


@functools.lru_cache(maxsize=1024)
def reachable(hand: Hand, positive_integers: bool = False) -> frozenset[Number]:
  """The values of all expressions that use every number of `hand` once.

  Args:
    hand: sorted numbers, at least one.
    positive_integers: only expressions all of whose intermediate values are
      positive integers.
  """
  if len(hand) == 1:
    return frozenset(hand)
  values = set()
  for part, rest in _splits(hand):
    for a in reachable(part, positive_integers):
      for b in reachable(rest, positive_integers):
        values.update(_combinations(a, b))
    if positive_integers:
      values = set(filter(is_positive_integer, values))
  return frozenset(values)


@functools.lru_cache(maxsize=1 << 12)
def reachable_targets(
  hand: Hand, max_target: int, positive_integers: bool
) -> tuple[int, ...]:
  """The integers 1 to `max_target` in `reachable(...)`, sorted."""
  # Past its cache: the set of a whole hand can be large and is not used again.
  values = reachable.__wrapped__(hand, positive_integers)
  return tuple(
    sorted(int(v) for v in values if is_positive_integer(v) and v <= max_target)
  )


@functools.lru_cache(maxsize=1 << 16)
def can_reach(
  hand: Hand, target: Number, positive_integers: bool = False
) -> bool:
  """Whether `target` is in `reachable(...)`, without listing large hands.

  Every value of the smaller part is tried, and what the larger part would have
  to make of it follows by solving the equation.
  """
  if positive_integers and not is_positive_integer(target):
    return False
  if len(hand) <= 3:
    return target in reachable(hand, positive_integers)
  for part, rest in _splits(hand):
    small, large = sorted((part, rest), key=len)
    for a in reachable(small, positive_integers):
      for b in _partners(a, target):
        if can_reach(large, b, positive_integers):
          return True
  return False


def _splits(hand: Hand) -> Iterator[tuple[Hand, Hand]]:
  """The ways to part `hand` in two; the first part has its first number."""
  first, *others = hand
  seen = set()
  for size in range(len(others)):
    for chosen in itertools.combinations(range(len(others)), size):
      part = (first, *(others[i] for i in chosen))
      if part not in seen:
        seen.add(part)
        rest = (others[i] for i in range(len(others)) if i not in chosen)
        yield part, tuple(rest)


def _combinations(a: Number, b: Number) -> Iterator[Number]:
  """The values of one operation on a and b, in either order."""
  yield a + b
  yield a - b
  yield b - a
  yield a * b
  if b:
    yield apply("/", a, b)
  if a:
    yield apply("/", b, a)


def _partners(a: Number, target: Number) -> Iterator[Number]:
  """The b for which one operation on a and b gives `target`.

  All b give 0 times b = 0, and none of them is named: what a hand makes that
  way it also makes as a number times the 0 of the others, or plus that 0.
  """
  yield target - a  # a + b, b + a
  yield a - target  # a - b
  yield target + a  # b - a
  if a:
    yield Fraction(target, a)  # a * b, b * a
    yield target * a  # b / a
    if target:
      yield Fraction(a, target)  # a / b
