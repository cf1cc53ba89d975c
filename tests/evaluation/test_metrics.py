"""Numbers over plays, against brute force."""

import collections
import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from qstar_jax.evaluation import metrics


@hypothesis.given(
  is_correct=st.lists(st.booleans(), max_size=8), k=st.integers(1, 10)
)
def test_pass_at_k_is_the_mean_over_all_subsets(is_correct, k):
  estimate = metrics.pass_at_k(len(is_correct), sum(is_correct), k)
  size = min(k, len(is_correct))
  subsets = list(itertools.combinations(is_correct, size))
  expected = np.mean([any(subset) for subset in subsets])
  assert estimate == pytest.approx(expected)


def test_pass_at_k_of_many_lines_is_exact():
  # 1 - (3/4)(2.99/3.99)... of 400 lines, where factorials overflow floats.
  expected = 1 - np.prod((300 - np.arange(16)) / (400 - np.arange(16)))
  assert metrics.pass_at_k(400, 100, 16) == pytest.approx(expected)


@pytest.mark.parametrize(
  ("answers", "scores", "majority"),
  [
    ("aab", [1, 1, 0], 1),
    ("abb", [1, 0, 0], 0),
    # Ties share; what has no answer does not vote.
    ("ab", [1, 0], 0.5),
    (["", "", "a"], [0, 0, 1], 1),
    (["", ""], [0, 0], 0),
    ("", [], 0),
  ],
)
def test_majority_of_all(answers, scores, majority):
  assert metrics.maj_at_k(list(answers), scores, 99, seed=0) == majority


def test_one_line_votes_for_itself():
  answers, scores = list("aab"), [1, 1, 0]
  estimates = [metrics.maj_at_k(answers, scores, 1, seed) for seed in range(40)]
  assert np.mean(estimates) == pytest.approx(2 / 3, abs=0.04)


def test_plays_of_one_problem_are_drawn_together():
  """Ten plays of each problem that agree say no more than one."""
  rng = np.random.default_rng(0)
  once = (rng.random(60) < 0.5).astype(float)
  often = np.repeat(once[:, None], 10, axis=1)
  low, high = metrics.bootstrap_ci95(once, 0)
  low_10, high_10 = metrics.bootstrap_ci95(often, 0)
  assert high_10 - low_10 == pytest.approx(high - low, rel=0.1)
  # As many plays that are all different say more.
  different = (rng.random((60, 10)) < 0.5).astype(float)
  low_d, high_d = metrics.bootstrap_ci95(different, 0)
  assert high_d - low_d < 0.6 * (high - low)


def test_majority_is_the_mean_over_all_subsets():
  """Of the lines that say `a`, one has a mistake on the way."""
  answers, score = list("aaabbc"), np.array([1, 1, 0, 0, 0, 1.0])
  chosen = []
  for subset in itertools.combinations(range(6), 3):
    votes = collections.Counter(answers[i] for i in subset)
    winners = [a for a, n in votes.items() if n == max(votes.values())]
    chosen.append(
      np.mean(
        [
          np.mean([score[i] for i in subset if answers[i] == winner])
          for winner in winners
        ]
      )
    )
  found = [metrics.maj_at_k(answers, score, 3, seed) for seed in range(60)]
  assert np.mean(found) == pytest.approx(np.mean(chosen), abs=0.02)
  everyone = metrics.maj_at_k(answers, score, 6, 0)
  assert everyone == pytest.approx(2 / 3)
