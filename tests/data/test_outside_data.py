"""The counts of the real files, and test problems kept out of training."""

import collections
import functools
import gzip
import json
import re

import numpy as np
import pytest

from qstar_jax.data import (
  competition_math,
  gsm8k,
  math_aps,
  math_shepherd,
  prm800k,
  prmbench,
  splits,
)
from qstar_jax.data.reading import Reason, Report
from qstar_jax.errors import UserError


def _read_all(reader, path, **options):
  return list(reader(path, Report(), **options))


@pytest.mark.parametrize(
  ("name", "problems", "steps", "marks", "without_marks"),
  [
    # Four and two of the lines that hold no answer are blank.
    ("train", 7473, 26_724 - 4, 23_716, 95),
    ("test", 1319, 4821 - 2, 4282, 18),
    ("test_socratic", 1319, 4821, 4282, 18),
  ],
)
def test_gsm8k(data_dir, name, problems, steps, marks, without_marks):
  path = data_dir / f"gsm8k/{name}.jsonl.gz"
  marked = _read_all(gsm8k.read, path, keep_marks=True)
  assert len(marked) == problems
  assert sum(len(p.steps) for p in marked) == steps
  num_marks = [sum(step.count("<<") for step in p.steps) for p in marked]
  assert sum(num_marks) == marks
  assert num_marks.count(0) == without_marks
  stripped = _read_all(gsm8k.read, path)
  assert not any("<<" in step for p in stripped for step in p.steps)
  assert [p.answer for p in stripped] == [str(int(p.answer)) for p in marked]
  negative = {"train": 3, "test": 2, "test_socratic": 2}[name]
  assert sum(p.answer.startswith("-") for p in stripped) == negative


@pytest.mark.parametrize(
  ("name", "problems", "without_answer"),
  [
    ("math_test_5000.jsonl.gz", 5000, 0),
    ("cs336_validation.jsonl.gz", 5000, 0),
    ("math500_openai_order.jsonl.gz", 500, 0),
    ("math500_openr_test500.jsonl.gz", 500, 0),
    ("cs336_train.jsonl.gz", 7500, 2),
    ("train_7500_problems_and_answers.json.gz", 7500, 2),
  ],
)
def test_math(data_dir, name, problems, without_answer):
  report = Report("skip")
  found = list(competition_math.read(data_dir / "math" / name, report))
  assert len(found) == report.num_records == problems - without_answer
  assert report.refused.total() == report.refused[Reason.EMPTY_TEXT]
  assert report.refused.total() == without_answer


def test_math_answers_from_boxes_are_those_of_another_copy(data_dir):
  boxed, listed = (
    {p.problem_key: p.answer for p in _read_all(competition_math.read, path)}
    for path in (
      data_dir / "math/math_test_5000.jsonl.gz",
      data_dir / "math/cs336_validation.jsonl.gz",
    )
  )
  assert boxed.keys() == listed.keys()
  # In one, the copy holds a part of the solution in place of the answer.
  assert sum(boxed[key] != listed[key] for key in boxed) == 1


@pytest.fixture(scope="module")
def read_phase_1(data_dir):
  """The lines of a split, where rating 0 is one half; each file read once."""

  @functools.cache
  def read(split):
    path = data_dir / f"prm800k/phase1_{split}_steps.jsonl.gz"
    return _read_all(prm800k.read, path, neutral=0.5)

  return read


PHASE_1 = {
  "train": (900, {1: 18_782, 0: 10_234, -1: 19_656, None: 3163}, 45_435, 55),
  "test": (101, {1: 2245, 0: 867, -1: 1970, None: 367}, 4893, 0),
}


@pytest.mark.parametrize("split", PHASE_1)
def test_prm800k(read_phase_1, split):
  problems, ratings, unique_steps, conflicting = PHASE_1[split]
  lines = read_phase_1(split)
  label = {1: 1.0, 0: 0.5, -1: 0.0, None: -1.0}
  assert collections.Counter(float(x.label[-1]) for x in lines) == {
    label[rating]: count for rating, count in ratings.items()
  }
  assert all((x.label[:-1] == -1).all() for x in lines)
  assert len({x.problem_key for x in lines}) == problems
  rated = collections.defaultdict(set)
  for x in lines:
    *before, step = x.steps
    step = step.partition(" # Answer ")[0]
    rated[x.prompt, *before, step].add(float(x.label[-1]))
  assert len(rated) == unique_steps
  num_conflicting = sum(len(labels - {-1.0}) > 1 for labels in rated.values())
  assert num_conflicting == conflicting


def test_prm800k_parquet_is_the_same(data_dir, read_phase_1):
  path = data_dir / "prm800k/phase1_test.stepwise-critic.parquet"
  rows = prm800k.read(path, Report(), neutral=0.5)
  for row, line in zip(rows, read_phase_1("test"), strict=True):
    assert (row.prompt, row.steps) == (line.prompt, line.steps)
    assert row.is_finished == line.is_finished
    np.testing.assert_array_equal(row.label, line.label)


def test_prm800k_layouts_agree(data_dir, read_phase_1):
  folder = data_dir / "prm800k/raw_examples"
  raw = [
    line
    for split in ("train", "test")
    for line in prm800k.read(
      folder / f"prm800k-phase1-{split}-example.json", Report(), neutral=0.5
    )
  ]
  lines, last_steps = set(), set()
  for line in [*read_phase_1("train"), *read_phase_1("test")]:
    lines.add((line.prompt, line.steps, line.label[-1]))
    last_steps.add((line.prompt, line.steps[-1], line.label[-1]))
  assert len(raw) == 168 + 15
  agree = [(x.prompt, x.steps, x.label[-1]) in lines for x in raw]
  # Of one labelling, the step-wise file lacks steps before the last.
  assert agree.count(False) == 7
  assert (
    len({x.origin for x, same in zip(raw, agree, strict=True) if not same}) == 1
  )
  assert all((x.prompt, x.steps[-1], x.label[-1]) in last_steps for x in raw)


@pytest.mark.parametrize("split", ["train", "test"])
def test_prm800k_phase_2(data_dir, split):
  folder = data_dir / "prm800k/raw_examples"
  path = folder / f"prm800k-phase2-{split}-example.json"
  lines = _read_all(prm800k.read, path, neutral=0.5)
  labels = collections.Counter(float(line.label[-1]) for line in lines)
  assert labels == {1.0: 8, 0.5: 1, 0.0: 1}


def test_openr_samples(data_dir):
  folder = data_dir / "openr_samples"
  lines = _read_all(prm800k.read, folder / "samples_prm800k.jsonl")
  assert len({x.origin for x in lines}) == 6
  lines = _read_all(math_shepherd.read, folder / "samples_math-shepherd.jsonl")
  assert [len(x.steps) for x in lines] == [5, 3, 2, 5, 5, 2, 3]
  assert [int(x.label.sum()) for x in lines] == [4, 0, 0, 0, 1, 0, 0]
  assert all(x.is_finished for x in lines)
  lines = _read_all(math_aps.read, folder / "samples_math-aps.jsonl")
  # 90, 13 and 42 prefixes, of which the first is the question.
  assert len(lines) == 90 + 13 + 42 - 3
  lines = _read_all(math_aps.read, folder / "samples_math-aps-tree.jsonl")
  assert len(lines) == 137 + 85 + 20
  assert sum((x.label >= 0).sum() for x in lines) == 143 + 90 + 24 - 3


def test_prmbench(data_dir):
  report = Report("skip")
  lines = [
    line
    for path in sorted((data_dir / "prmbench").glob("prm*.jsonl.gz"))
    for line in prmbench.read(path, report)
  ]
  assert report.refused == {Reason.BAD_INDEX: 100, Reason.EMPTY_TEXT: 3}
  assert report.num_records + 103 == len(lines) + 103 == 6216
  assert {x.domain for x in lines} == {
    f"prmbench/{c}" for c in prmbench.CLASSES
  }
  # The multi_solutions class, and no other, has no mistakes.
  assert {x.domain for x in lines if x.label.all()} == {
    "prmbench/multi_solutions"
  }
  assert sum(x.label.all() for x in lines) == 165


def test_prmbench_class_by_class(data_dir):
  """What is read and what is refused make up all that there is."""
  expected = {
    "circular": 758,
    "redundency": 758,
    "step_contradiction": 758,
    "confidence": 757,
    "counterfactual": 757,
    "domain_inconsistency": 757,
    "missing_condition": 756,
    "deception": 750,
    "multi_solutions": 165,
  }
  records, counts = collections.Counter(), collections.Counter()
  for path in sorted((data_dir / "prmbench").glob("prm*.jsonl.gz")):
    report = Report("skip")
    lines = list(prmbench.read(path, report))
    (domain,) = {line.domain for line in lines}
    name = domain.removeprefix("prmbench/")
    records[name] += len(lines) + report.refused.total()
    counts["read steps"] += sum(len(line.steps) for line in lines)
    counts["read marks"] += sum(int((x.label == 0).sum()) for x in lines)
    with gzip.open(path) as file:
      for record in map(json.loads, file):
        steps, marks = record["modified_process"], record["error_steps"]
        outside = sum(mark > len(steps) for mark in marks)
        counts["steps"] += len(steps)
        counts["marks"] += len(marks)
        counts["marks outside"] += outside
        if outside or not all(step.strip() for step in steps):
          counts["refused steps"] += len(steps)
          counts["refused marks"] += len(marks)
  assert records == expected
  assert (counts["steps"], counts["marks"]) == (83_456, 13_300)
  assert counts["marks outside"] == 151
  for what, total in (("steps", 83_456), ("marks", 13_300)):
    assert counts[f"read {what}"] + counts[f"refused {what}"] == total
  report = Report("skip")
  path = data_dir / "prmbench/subset400/target_data.jsonl.gz"
  assert len(list(prmbench.read(path, report))) == 394 - 11
  assert report.refused == {Reason.BAD_INDEX: 11}


def test_no_test_problem_is_trained_on(data_dir, read_phase_1):
  keys = splits.held_out_keys(data_dir)
  train = list(splits.without(read_phase_1("train"), keys))
  # PRMBench is made of 401 of the 900 training problems, too.
  assert len({line.problem_key for line in train}) == 499
  assert len(train) == 30_508

  def texts(problems):
    """Problems, however they are spaced, escaped and set."""
    return {re.sub(r"left|right|[\s\\$!,;~dt]", "", text) for text in problems}

  def prompts(lines):
    return texts(line.prompt for line in lines)

  benched = set()
  for path in (data_dir / "prmbench").glob("prm*.jsonl.gz"):
    with gzip.open(path) as file:
      benched |= texts(json.loads(line)["question"] for line in file)
  math = _read_all(
    competition_math.read, data_dir / "math/math_test_5000.jsonl.gz"
  )
  for tested in (prompts(math), prompts(read_phase_1("test")), benched):
    assert len(tested) > 100
    assert not prompts(train) & tested
  # They would be found if they were there.
  assert len(prompts(read_phase_1("train")) & benched) == 401


def test_test_problems_must_be_there(data_dir, tmp_path):
  (tmp_path / "math").symlink_to(data_dir / "math")
  with pytest.raises(UserError, match=r"has no prm800k/phase\?_test\*"):
    splits.held_out_keys(tmp_path)
