"""Choosers of lines: exact expectations against every subset, and a run."""

import itertools
import json
import os
import pathlib
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from tools import compare_choosers
from tools.compare_choosers import CHOOSERS

pytest_plugins = ["tests.training.micro_run"]

ROOT = pathlib.Path(__file__).resolve().parents[2]


@hypothesis.given(
  lines=st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 0.9]), st.sampled_from([0.0, 1.0])),
    min_size=1,
    max_size=7,
  ),
  data=st.data(),
)
def test_the_best_of_k_is_the_mean_over_all_subsets(lines, data):
  k = data.draw(st.integers(1, len(lines)))
  chosen = []
  for subset in itertools.combinations(lines, k):
    most = max(key for key, _ in subset)
    chosen.append(np.mean([score for key, score in subset if key == most]))
  key, score = np.array(lines).T
  assert compare_choosers.expected_of_best(key, score, k) == pytest.approx(
    np.mean(chosen)
  )


def test_the_largest_of_64_is_exact():
  score = np.arange(64) / 63
  best = compare_choosers.expected_of_best(score, score, 32)
  # The mean maximum of k of 0..n-1 is k (n + 1) / (k + 1) - 1.
  assert best == pytest.approx((32 * 65 / 33 - 1) / 63)
  assert compare_choosers.expected_of_best(score, score, 64) == 1.0
  worst = compare_choosers.expected_of_best(-score, score, 64)
  assert worst == 0.0


def test_measure_and_summary_by_hand():
  # The right line, second by its least PRM score and first by its product.
  lines = compare_choosers.Lines(
    score=np.array([1.0, 0.0, 0.0]),
    keys={
      "prm_min": np.array([0.5, 0.6, 0.4]),
      "prm_product": np.array([0.45, 0.36, 0.16]),
      "value": np.array([0.1, 0.2, 0.3]),
      "random": np.zeros(3),
      "any": np.array([1.0, 0.0, 0.0]),
    },
    answers=["1", "2", "2"],
  )
  scores = compare_choosers.measure(lines, [1, 3], seed=0)
  found = dict(zip(CHOOSERS, scores.tolist(), strict=True))
  assert found["prm_min"] == pytest.approx([1 / 3, 0])
  assert found["prm_product"] == pytest.approx([1 / 3, 1])
  assert found["value"] == pytest.approx([1 / 3, 0])
  assert found["random"] == pytest.approx([1 / 3, 1 / 3])
  assert found["any"] == pytest.approx([1 / 3, 1])
  assert found["majority"][1] == 0
  rows = compare_choosers.summarize(
    np.tile(scores, (5, 2, 1, 1)), [1, 3], seed=0
  )
  by_key = {(row["chooser"], row["lines"]): row for row in rows}
  assert by_key["any", 3]["over_majority"] == 1.0
  assert by_key["any", 3]["over_majority_ci95"] == [1.0, 1.0]
  assert by_key["any", 3]["over_value"] == 1.0
  assert by_key["random", 3]["over_value"] == pytest.approx(1 / 3)
  assert by_key["value", 3]["over_value_ci95"] == [0.0, 0.0]
  assert "| 33.3 [33.3, 33.3] | 100.0 [100.0, 100.0] |" in (
    compare_choosers.table(rows)
  )


def _run(*arguments):
  return subprocess.run(
    [sys.executable, "tools/compare_choosers.py", *map(str, arguments)],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"},
    capture_output=True,
    text=True,
  )


def test_it_compares_on_a_run(micro_run, tmp_path):
  done = _run(
    *(micro_run.directory, "--num-problems", 6, "--num-seeds", 2),
    *("--search.num-lines", 4, "--out", tmp_path / "out"),
  )
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / "out" / "choosers.json").read_text())
  assert (found["problems"], found["num_seeds"]) == (6, 2)
  rows = found["results"]
  assert [row["lines"] for row in rows] == [1, 2, 4] * len(CHOOSERS)
  for size in (1, 2, 4):
    solved = {r["chooser"]: r["solved"] for r in rows if r["lines"] == size}
    assert all(solved[name] <= solved["any"] for name in CHOOSERS)
  assert (tmp_path / "out" / "choosers.md").read_text() == done.stdout
  assert (tmp_path / "out" / "choosers.png").read_bytes()[1:4] == b"PNG"
  header = (tmp_path / "out" / "choosers.csv").read_text().splitlines()[0]
  assert header.startswith("chooser,lines,solved,ci95")


def test_it_refuses_problems_that_were_not_held_out(micro_run):
  done = _run(micro_run.directory, "--num-problems", 17)
  assert done.returncode == 1
  assert done.stderr.startswith("compare_choosers.py: --num-problems 17: ")
  assert done.stderr.count("\n") == 1
