"""The judge of a labelling job is taught once, and a copy."""

import dataclasses

import jax
import numpy as np
import pytest
from etils import epath

from qstar_jax.config import JudgeConfig
from qstar_jax.errors import UserError
from qstar_jax.evaluation.opened import open_checkpoint
from qstar_jax.labels.judge import Questions, label_lines
from qstar_jax.labels.lines import Line, step_names
from qstar_jax.labels.tree_lines import tree_lines
from qstar_jax.replay import ReplayReader
from qstar_jax.training import judge_lessons

pytest_plugins = ["tests.training.micro_run"]


@pytest.fixture(scope="module")
def opened(micro_run, micro_config):
  judge = JudgeConfig(teach_steps=40, teach_share=0.25)
  labels = dataclasses.replace(micro_config.labels, judge=judge)
  # What the run itself has learnt is no matter of the judge's.
  learner = dataclasses.replace(
    micro_config.learner, losses={"prm": 1.0, "entropy": 0.1}
  )
  config = dataclasses.replace(micro_config, labels=labels, learner=learner)
  return open_checkpoint(micro_run.directory, config)


@pytest.fixture(scope="module")
def trees(micro_run):
  return ReplayReader(micro_run.directory / "replay")


def judge(opened, params, lines):
  """P(right) of the last step of every line."""
  questions = Questions(
    opened.config.labels.judge, opened.loaded.vocabulary, opened.config.text
  )
  asked = [
    Line(i, opened.domain.parse(line.prompt), line.steps, False)
    for i, line in enumerate(lines)
  ]
  found = label_lines(
    *(opened.loaded.graphdef, params, asked),
    questions=questions,
    batch_size=8,
    params_version=0,
  )
  return np.array([line.label[-1] for line in found])


def lines_of(opened, trees):
  """All lines of the tree at an index."""
  return lambda index: tree_lines(
    trees[index],
    opened.loaded.vocabulary,
    opened.domain,
    which="all",
    number=index,
  )


def num_labels(lines):
  return sum((line.label >= 0).sum() for line in lines)


def test_lessons_are_a_share_of_the_trees(opened, trees):
  asked = []

  class Trees:
    def __getitem__(self, index):
      asked.append(index)
      return trees[index]

  every = lines_of(opened, trees)
  lines = list(judge_lessons.lessons(opened, Trees(), 20, every))
  # A quarter of twenty, from the newest to the oldest.
  assert asked == [19, 14, 9, 4, 0]
  assert {line.source for line in lines} == {"checked"}


def test_lessons_are_of_what_is_judged(opened, trees):
  every = lines_of(opened, trees)

  def of_odd_trees(index):
    return every(index) if index % 2 else []

  judged = {
    name
    for index in range(len(trees))
    for line in of_odd_trees(index)
    for name in step_names(line)
  }
  whole, part = (
    list(judge_lessons.lessons(opened, trees, len(trees), lines))
    for lines in (every, of_odd_trees)
  )
  found = {
    name
    for line in part
    for name, label in zip(step_names(line), line.label, strict=True)
    if label >= 0
  }
  assert found <= judged
  assert 0 < num_labels(part) == len(found) < num_labels(whole)


def test_a_copy_learns_what_it_is_shown(opened, trees):
  """Told that steps are right which it has called wrong."""
  lines = [
    dataclasses.replace(line, label=np.abs(line.label - (line.label == 0)))
    for line in judge_lessons.lessons(
      opened, trees, len(trees), lines_of(opened, trees)
    )
    if (line.label >= 0)[-1]
  ]
  before = jax.device_get(opened.loaded.params)
  taught, summary = judge_lessons.teach(opened, lines)
  assert summary["labels"] == num_labels(lines)
  assert summary["steps"] == 40
  untaught = judge(opened, opened.loaded.params, lines)
  assert untaught.mean() < 0.01
  assert judge(opened, taught, lines).mean() > 0.1
  for old, new in zip(
    jax.tree.leaves(before),
    jax.tree.leaves(jax.device_get(opened.loaded.params)),
    strict=True,
  ):
    np.testing.assert_array_equal(old, new)


def test_the_judge_is_taught_once(opened, trees, tmp_path):
  folder = epath.Path(tmp_path / "judge")
  stored = lines_of(opened, trees)
  lines = list(judge_lessons.lessons(opened, trees, len(trees), stored))
  first = judge_lessons.stored(folder, opened, lines)

  def never():
    raise AssertionError("it has been taught")
    yield

  again = judge_lessons.stored(folder, opened, never())
  leaves = list(zip(*map(jax.tree.leaves, (first, again)), strict=True))
  for one, other in leaves:
    np.testing.assert_array_equal(one, other)
  path = folder / "params.npz"
  for damage in (b"", b"garbage", path.read_bytes()[:300]):
    path.write_bytes(damage)
    with pytest.raises(UserError, match=r"params.npz is damaged .* another"):
      judge_lessons.stored(folder, opened, never())
  with path.open("wb") as file:
    np.savez(file, *(np.zeros(3) for _ in leaves))
  with pytest.raises(UserError, match="it is of another network"):
    judge_lessons.stored(folder, opened, never())


def test_without_a_label_there_is_no_lesson(opened):
  with pytest.raises(UserError, match=r"^no checked label .*teach_share"):
    judge_lessons.teach(opened, [])
