"""The oracle against a brute-force enumeration with other arithmetic."""

import itertools

import numpy as np
import pytest

from qstar_jax.domains.reachability import (
  can_reach,
  reachable,
  reachable_targets,
)

# Keeps products of small primes apart, so modular values identify rationals.
PRIME = 2_305_843_009_213_693_951


def brute_force(values):
  """Values modulo PRIME that some order of operations leaves."""
  if len(values) == 1:
    return set(values)
  reached = set()
  for i, j in itertools.permutations(range(len(values)), 2):
    rest = [values[k] for k in range(len(values)) if k not in (i, j)]
    a, b = values[i], values[j]
    results = [(a + b) % PRIME, (a - b) % PRIME, a * b % PRIME]
    if b:
      results.append(a * pow(b, -1, PRIME) % PRIME)
    for result in results:
      reached |= brute_force([*rest, result])
  return reached


def residue(value):
  return value.numerator * pow(value.denominator, -1, PRIME) % PRIME


def hands(sizes, num, largest, seed=0):
  rng = np.random.default_rng(seed)
  return [
    tuple(sorted(rng.integers(1, largest + 1, size=size).tolist()))
    for size in sizes
    for _ in range(num)
  ]


@pytest.mark.parametrize("hand", hands((1, 2, 3), 12, 9))
def test_reachable_is_what_brute_force_reaches(hand):
  expected = brute_force(list(hand))
  values = reachable(hand)
  assert {residue(value) for value in values} == expected
  assert len(values) == len(expected)
  for target in range(-5, 40):
    assert can_reach(hand, target) == (target % PRIME in expected)


@pytest.mark.parametrize("hand", hands((4,), 4, 13))
def test_four_numbers(hand):
  expected = brute_force(list(hand))
  for target in range(-20, 120):
    assert can_reach(hand, target) == (target % PRIME in expected)


def positive_brute_force(values):
  """As brute_force, in positive integers."""
  if len(values) == 1:
    return set(values)
  reached = set()
  for i, j in itertools.permutations(range(len(values)), 2):
    rest = [values[k] for k in range(len(values)) if k not in (i, j)]
    a, b = values[i], values[j]
    results = {a + b, a * b} | ({a - b} if a > b else set())
    results |= {a // b} if a % b == 0 else set()
    for result in results:
      reached |= positive_brute_force([*rest, result])
  return reached


@pytest.mark.parametrize(
  "hand", [(0, 3, 5, 7), (0, 0, 1, 2), (0, 0, 0, 0), (-2, 0, 0, 3), (0, 0, 7)]
)
def test_hands_with_zeros(hand):
  """Steps may leave zeros, and 0 times anything is 0."""
  expected = brute_force(list(hand))
  for target in range(-20, 40):
    assert can_reach(hand, target) == (target % PRIME in expected)


@pytest.mark.parametrize("hand", hands((2, 3, 4), 6, 12))
def test_positive_integers(hand):
  expected = positive_brute_force(list(hand))
  assert reachable(hand, True) == expected
  targets = reachable_targets(hand, 50, True)
  assert targets == tuple(sorted(t for t in expected if t <= 50))
  for target in range(-5, 60):
    assert can_reach(hand, target, True) == (target in expected)


@pytest.mark.parametrize("hand", hands((5,), 2, 9))
def test_solving_for_a_target_agrees_with_listing_all(hand):
  values = reachable(hand)
  for target in [*range(-30, 200), 997, 9973]:
    assert can_reach(hand, target) == (target in values)
