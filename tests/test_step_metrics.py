"""Numbers over scored steps, against hand numbers and plain loops."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from qstar_jax import step_metrics

# Few values, so that ties are frequent.
_SCORES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.5000001, 0.75, 1.0])
_SOFT = st.sampled_from([0.0, 0.25, 0.5, 1.0])
_STEPS = st.lists(
  st.tuples(_SCORES, _SOFT, st.sampled_from([0.0, 1.0, 3.0])),
  min_size=1,
  max_size=12,
)
_LINES = st.lists(
  st.lists(st.tuples(_SCORES, st.booleans()), min_size=1, max_size=5),
  min_size=1,
  max_size=8,
)


def _columns(steps):
  return np.array(steps, float).T


@hypothesis.given(_STEPS)
def test_auroc_is_the_share_of_pairs_in_order(steps):
  in_order = pairs = 0.0
  for score, label, weight in steps:
    for other, other_label, other_weight in steps:
      pair = weight * label * other_weight * (1 - other_label)
      pairs += pair
      in_order += pair * (1.0 if score > other else 0.5 * (score == other))
  expected = in_order / pairs if pairs else np.nan
  assert step_metrics.auroc(*_columns(steps)) == pytest.approx(
    expected, nan_ok=True
  )


@pytest.mark.parametrize(
  ("scores", "labels", "area"),
  [
    ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.75),
    ([0.2, 0.2, 0.2], [0, 1, 1], 0.5),
    ([0.9, 0.1], [0, 1], 0.0),
    ([0.9, 0.1], [1, 1], np.nan),
  ],
)
def test_auroc_by_hand(scores, labels, area):
  found = step_metrics.auroc(np.array(scores), np.array(labels))
  assert found == pytest.approx(area, nan_ok=True)


def test_auroc_sees_ranks_alone():
  rng = np.random.default_rng(0)
  scores, labels = rng.random(200), rng.integers(2, size=200)
  area = step_metrics.auroc(scores, labels)
  assert step_metrics.auroc(scores**3, labels) == area
  assert step_metrics.auroc(1 - scores, labels) == pytest.approx(1 - area)


def test_a_soft_label_is_many_hard_ones():
  """Three of four plays of a state are won."""
  soft = step_metrics.auroc(np.array([0.2, 0.7]), np.array([0.25, 0.75]))
  hard = step_metrics.auroc(
    np.array([0.2] * 4 + [0.7] * 4), np.array([1, 0, 0, 0, 1, 1, 1, 0])
  )
  assert soft == hard


def test_brier_by_hand():
  scores, labels = np.array([0.5, 1.0, 0.2]), np.array([0.0, 1.0, 0.7])
  assert step_metrics.brier(scores, labels) == pytest.approx(0.5 / 3)
  weighted = step_metrics.brier(scores, labels, np.array([2.0, 1.0, 0.0]))
  assert weighted == pytest.approx(0.5 / 3)


def test_ece_by_hand():
  # Bins [0.1, 0.2), [0.5, 0.6) and [0.9, 1]: gaps 0.15, 0.05 and 0.45.
  scores = np.array([0.1, 0.2 - 1e-9, 0.55, 0.55, 0.9, 1.0])
  labels = np.array([0, 0, 1, 0, 0, 1])
  bins = step_metrics.reliability(scores, labels)
  np.testing.assert_array_equal(bins.weight, [0, 2, 0, 0, 0, 2, 0, 0, 0, 2])
  np.testing.assert_allclose(bins.score[[1, 5, 9]], [0.15, 0.55, 0.95])
  np.testing.assert_allclose(bins.label[[1, 5, 9]], [0.0, 0.5, 0.5])
  assert np.isnan(bins.label[[0, 2, 3, 4, 6, 7, 8]]).all()
  assert step_metrics.ece(scores, labels) == pytest.approx(0.65 / 3)


@hypothesis.given(_STEPS)
def test_ece_is_that_of_a_plain_loop(steps):
  gaps, total = 0.0, sum(weight for _, _, weight in steps)
  for i in range(10):
    own = [
      step
      for step in steps
      if i / 10 <= step[0] < (i + 1) / 10 or (i == 9 and step[0] == 1)
    ]
    gaps += abs(sum(weight * (score - label) for score, label, weight in own))
  expected = gaps / total if total else np.nan
  assert step_metrics.ece(*_columns(steps)) == pytest.approx(
    expected, nan_ok=True
  )


def test_true_probabilities_are_calibrated():
  rng = np.random.default_rng(0)
  scores = rng.random(100_000)
  labels = (rng.random(scores.size) < scores).astype(float)
  assert step_metrics.ece(scores, labels) < 0.01
  assert step_metrics.brier(scores, labels) == pytest.approx(1 / 6, abs=0.003)
  # Of a uniform p: P(right above wrong) is 5/6.
  assert step_metrics.auroc(scores, labels) == pytest.approx(5 / 6, abs=0.005)


def _plain_first_error(scores, threshold):
  for i, score in enumerate(scores):
    if score < threshold:
      return i
  return -1


def _plain_f1(lines, threshold):
  hits = {True: [], False: []}
  for line in lines:
    scores, is_right = zip(*line, strict=True)
    truth = is_right.index(False) if False in is_right else -1
    found = _plain_first_error(scores, threshold)
    hits[truth == -1].append(found == truth)
  right, wrong = (
    np.mean(hits[kind]) if hits[kind] else np.nan for kind in (True, False)
  )
  f1 = 2 * right * wrong / (right + wrong) if right + wrong != 0 else 0.0
  return f1, wrong, right


def _arrays(lines):
  return [
    tuple(np.array(column, float) for column in zip(*line, strict=True))
    for line in lines
  ]


@hypothesis.given(_LINES, st.floats(-0.5, 1.5))
def test_first_error_f1_is_that_of_a_plain_loop(lines, threshold):
  errors = step_metrics.first_errors(_arrays(lines))
  assert step_metrics.first_error_f1(errors, threshold) == pytest.approx(
    _plain_f1(lines, threshold), nan_ok=True
  )


def test_first_error_f1_by_hand():
  lines = step_metrics.first_errors(
    _arrays(
      [
        [(0.9, 1), (0.3, 0), (0.1, 0)],  # Found.
        [(0.4, 1), (0.3, 0)],  # Too early.
        [(0.9, 1), (0.8, 0)],  # Missed.
        [(0.9, 1), (0.7, 1)],  # Nothing found, and there is nothing.
        [(0.2, 1)],
      ]
    )
  )
  found = step_metrics.first_error_f1(lines, 0.5)
  assert found == pytest.approx((0.4, 1 / 3, 1 / 2))
  # Twice the line where it is found, none where it comes too early.
  weights = np.array([2.0, 0.0, 1.0, 1.0, 0.0])
  weighted = step_metrics.first_error_f1(lines, 0.5, weights)
  assert weighted == pytest.approx((0.8, 2 / 3, 1.0))


@hypothesis.given(_LINES)
def test_no_threshold_is_better_than_the_best(lines):
  errors = step_metrics.first_errors(_arrays(lines))
  threshold = step_metrics.best_threshold(errors)
  best = _plain_f1(lines, threshold)[0]
  if np.isnan(best):
    assert threshold == 0.5
    return
  others = [_plain_f1(lines, t)[0] for t in np.linspace(-0.05, 1.05, 45)]
  assert best >= max(others) - 1e-9


def test_prm_score_by_hand():
  scores = np.array([0.9, 0.8, 0.4, 0.6, 0.1])
  labels = np.array([1.0, 1.0, 1.0, 0.0, 0.0])
  # Right: 2 of 3 called so, and 1 of 2 wrong ones too. Wrong: 1 of 2, and 1.
  found = step_metrics.prm_score(scores, labels, 0.5)
  assert found == pytest.approx((2 / 3, 1 / 2, 7 / 12))
  # A step at the threshold is right.
  at = step_metrics.prm_score(scores, labels, 0.4)
  assert at == pytest.approx((6 / 7, 2 / 3, 16 / 21))
  twice = step_metrics.prm_score(
    np.repeat(scores, 2), np.repeat(labels, 2), 0.5
  )
  assert step_metrics.prm_score(
    scores, labels, 0.5, np.full(5, 2.0)
  ) == pytest.approx(twice)


def test_prm_score_without_a_wrong_step():
  found = step_metrics.prm_score(np.array([0.9, 0.1]), np.ones(2), 0.5)
  assert found == pytest.approx((2 / 3, np.nan, np.nan), nan_ok=True)


def test_prm_score_that_never_calls_a_step_wrong():
  found = step_metrics.prm_score(np.ones(4), np.array([1, 1, 1, 0]), 0.5)
  assert found == pytest.approx((6 / 7, 0.0, 3 / 7))


def _mean(values):
  return lambda weights: np.average(values, weights=weights)


def test_steps_of_one_problem_are_drawn_together():
  """Ten steps of each problem that agree say no more than one."""
  rng = np.random.default_rng(0)
  once = (rng.random(200) < 0.5).astype(float)
  problem = np.arange(200)
  low, high = step_metrics.clustered_ci95(_mean(once), problem, 0)
  half = 1.96 * once.std() / np.sqrt(200)
  assert (high - low) / 2 == pytest.approx(half, rel=0.1)
  often = np.repeat(once, 10)
  clustered = step_metrics.clustered_ci95(
    _mean(often), np.repeat(problem, 10), 0
  )
  assert clustered == pytest.approx((low, high))
  low_a, high_a = step_metrics.clustered_ci95(_mean(often), np.arange(2000), 0)
  assert high_a - low_a < 0.4 * (high - low)


def test_resamples_without_a_number_do_not_count():
  scores, labels = np.array([0.2, 0.9]), np.array([0.0, 1.0])

  def area(weights):
    return step_metrics.auroc(scores, labels, weights)

  assert step_metrics.clustered_ci95(area, np.arange(2), 0) == (1.0, 1.0)
  only = step_metrics.clustered_ci95(area, np.zeros(2, int), 0)
  assert only == (1.0, 1.0)
  labels[:] = 1.0
  assert np.isnan(step_metrics.clustered_ci95(area, np.arange(2), 0)).all()
