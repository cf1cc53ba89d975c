"""The shallow baseline: its regression, its features, and a run of it."""

import gzip
import json

import numpy as np
import pytest
import scipy.special

from qstar_jax.records import NO_LABEL, LabelledLine
from qstar_jax.training.labelled_data import is_held_out
from tools import prm800k_baseline


def rated(problem, *steps, label=1.0):
  """A line of which the last step has a label."""
  return LabelledLine(
    domain="prm800k",
    problem_key=problem,
    prompt=f"{problem}\n",
    steps=steps,
    is_finished=False,
    label=np.array([NO_LABEL] * (len(steps) - 1) + [label], np.float32),
    kind="hard",
    source="prm800k",
    params_version=-1,
    tokens=0,
    origin="",
  )


def test_weights_are_where_the_gradient_is_zero():
  rng = np.random.default_rng(0)
  features = np.column_stack([np.ones(200), rng.normal(size=(200, 3))])
  labels = (rng.random(200) < scipy.special.expit(features @ [1, 2, 0, -1])) * 1
  weights = prm800k_baseline.fit(features, labels, penalty=2.0)
  error = scipy.special.expit(features @ weights) - labels
  pull = 2.0 * weights * [0, 1, 1, 1]
  np.testing.assert_allclose(features.T @ error + pull, 0, atol=1e-2)
  # Without features there is the share of right steps alone.
  (intercept,) = prm800k_baseline.fit(features[:, :1], labels, penalty=2.0)
  assert scipy.special.expit(intercept) == pytest.approx(
    labels.mean(), abs=1e-4
  )


def test_features_are_length_depth_and_frequent_words():
  lines = [rated("p", *["Add 2"] * (1 + i % 2), "So x is") for i in range(6)]
  features = prm800k_baseline.Features([*lines, rated("p", "rare")])
  rows = features([rated("q", "SO is", "so X ? rare")]).toarray()
  # 1, length and depth, then of "is", "so" and "x" those that it has.
  assert rows.shape == (1, 6)
  assert rows[0, 0] == 1
  assert rows[0, 3:].tolist() == [0, 1, 1]
  train = features([*lines, rated("p", "rare")]).toarray()
  np.testing.assert_allclose(train[:, 1:3].mean(axis=0), 0, atol=1e-12)
  np.testing.assert_allclose(train[:, 1:3].std(axis=0), 1)


@pytest.fixture
def data(tmp_path):
  """In the files' own layout: the word `wrong` stands in wrong steps."""
  folder = tmp_path / "prm800k"
  folder.mkdir()
  for split, first in (("train", 0), ("test", 100)):
    with gzip.open(folder / f"phase1_{split}_steps.jsonl.gz", "wt") as file:
      for problem in range(first, first + 20):
        for rating, word in ((1, "right"), (-1, "wrong"), (None, "wrong")):
          record = {
            "instruction": f"What is {problem}?",
            "responses": [],
            "next_response": f"That is {word} of {problem}",
            "answer": None,
            "rating": rating,
          }
          file.write(json.dumps(record) + "\n")
  return tmp_path


def test_words_that_tell_are_found(data, tmp_path, capsys):
  prm800k_baseline.main([str(data), "--out", str(tmp_path / "out")])
  found = json.loads((tmp_path / "out" / "prm800k.json").read_text())
  assert json.loads(capsys.readouterr().out.partition("\n")[2]) == found
  assert (found["steps"], found["problems"]) == (40, 20)
  assert found["share_right"] == 0.5
  assert found["auroc"]["baseline"] == {"value": 1.0, "ci95": [1.0, 1.0]}


def test_what_is_kept_back_is_judged_in_place_of_the_test_file(data):
  train, test = prm800k_baseline.read_splits(data, None)
  rest, kept = prm800k_baseline.read_splits(data, 0.25)
  keys = [{line.problem_key for line in lines} for lines in (rest, kept, test)]
  assert keys[0] | keys[1] == {line.problem_key for line in train}
  assert not keys[0] & keys[1]
  assert not keys[2] & (keys[0] | keys[1])
  assert 0 < len(keys[1]) < 12
  assert all(is_held_out(key, 0.25) for key in keys[1])
