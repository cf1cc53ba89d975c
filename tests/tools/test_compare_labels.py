"""The comparison of labels: what is learnt from, what is told, and a run."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from qstar_jax.config import ExperimentConfig, TextConfig
from qstar_jax.domains.countdown import Countdown
from qstar_jax.evaluation.opened import Opened, open_checkpoint
from qstar_jax.labels.lines import step_names
from qstar_jax.labels.step_tree import read_steps
from qstar_jax.replay import ReplayReader
from qstar_jax.text.vocabulary import ByteVocabulary
from tools import compare_labels
from tools.compare_labels import SOURCES

pytest_plugins = ["tests.training.micro_run"]


@pytest.fixture(scope="module")
def opened(micro_run, micro_config):
  labels = dataclasses.replace(
    micro_config.labels,
    num_rollouts=2,
    budget=2,
    judge=dataclasses.replace(
      micro_config.labels.judge, teach_steps=2, teach_share=1.0
    ),
  )
  config = dataclasses.replace(micro_config, labels=labels)
  return open_checkpoint(micro_run.directory, config)


@pytest.fixture(scope="module")
def trees(micro_run):
  reader = ReplayReader(micro_run.directory / "replay")
  return [reader[i] for i in range(len(reader))]


def test_drawn_lines_want_a_label_for_every_step_once(opened, trees):
  every = compare_labels.draw_lines(opened, trees, 1000)
  for tree, lines in zip(trees, every, strict=True):
    num_steps = sum(len(line.steps) - line.begin for line in lines)
    assert num_steps == len(read_steps(tree, opened.loaded.vocabulary))
  for own, lines in zip(
    compare_labels.draw_lines(opened, trees, 2), every, strict=True
  ):
    assert len(own) == min(2, len(lines))
    assert {line.steps for line in own} <= {line.steps for line in lines}


def test_sources_of_trees_speak_of_drawn_steps_alone(opened, trees):
  for tree in trees:
    (every,) = compare_labels.draw_lines(opened, [tree], 1000)
    whole = list(compare_labels.ask_tree("checked", opened, tree, every))
    if sum((line.label >= 0).sum() for line in whole) > 1:
      break
  else:
    pytest.fail("no tree has two checked labels")
  drawn = [line for line in every if line.steps == whole[0].steps][:1]
  part = list(compare_labels.ask_tree("checked", opened, tree, drawn))
  assert part[0].label.tolist() == whole[0].label.tolist()
  # Others have what they share with it.
  names = {name for line in drawn for name in step_names(line)}
  for line in part:
    for name, label in zip(step_names(line), line.label, strict=True):
      assert label == -1 or name in names


def made(label, steps, is_finished=False):
  line = next(
    compare_labels.ask_oracle(
      Opened(None, None, Countdown()),
      [
        compare_labels.Line(
          0, Countdown().parse("2 3 5 -> 10"), steps, is_finished
        )
      ],
    )
  )
  return dataclasses.replace(line, label=np.array(label, np.float32))


STEPS = ("2 + 3 = 5 (left: 5 5)", "5 + 5 = 10 (left: 10)")


def test_labels_are_told_by_hand():
  lines = [
    made([1, 0.25], STEPS),
    made([-1, 1], (STEPS[0], "5 - 5 = 0 (left: 0)")),
    dataclasses.replace(made([0.75], ("2 * 3 = 6 (left: 5 6)",)), tokens=40),
  ]
  opened = Opened(None, None, Countdown())
  found = compare_labels.agreement(opened, lines)
  # The oracle says 1 1, 0 and 0.
  assert found == {
    "labels": 4,
    "tokens": 40,
    "mean_label": 0.75,
    "mean_truth": 0.5,
    "agreement": 0.25,
  }


def test_rows_teach_the_prm_alone_and_as_far_as_they_fit():
  text = TextConfig(max_prompt_tokens=12, max_step_tokens=22, max_steps=2)
  loaded = type("Loaded", (), {"vocabulary": ByteVocabulary()})
  opened = Opened(loaded, ExperimentConfig(text=text), Countdown())
  long = "1" * 40
  rows = compare_labels.to_rows(
    opened,
    [
      made([1, 0.25], STEPS, is_finished=True),
      made([-1, -1], STEPS),
      made([0, 1], (STEPS[0], long)),
      made([-1, 1], (STEPS[0], long)),
    ],
  )
  assert rows.tokens.shape == (4, 56)
  assert not rows.policy_weight.any()
  assert not rows.value_weight.any()
  ends = np.array([12 + 22, 12 + 22 + 22])
  for row, targets in ((0, [1, 0.25]), (1, [0])):
    at = np.flatnonzero(rows.prm_weight[row])
    np.testing.assert_array_equal(at, ends[: len(targets)] - 1)
    np.testing.assert_array_equal(rows.prm_target[row, at], targets)
    assert rows.last[row, 0] == ends[len(targets) - 1] - 1
  # Beside the step before it the long one does not fit.
  for row in (2, 3):
    assert np.flatnonzero(rows.prm_weight[row]) == 12 + len(long)
    assert rows.last[row, 0] == 12 + len(long)


def test_an_empty_prm_says_one_half(opened, trees):
  params = compare_labels.without_prm(opened.loaded.params)
  lines = compare_labels.draw_lines(opened, trees[:9], 3)
  labelled = compare_labels.ask_oracle(
    opened, [line for own in lines for line in own]
  )
  found = compare_labels.score_lines(
    opened.loaded.graphdef,
    params,
    opened.loaded.vocabulary,
    labelled,
    text=opened.config.text,
    batch_size=8,
  )
  scores = [x for _, x in found if x is not None]
  assert all((x.prm == 0.5).all() for x in scores)
  assert np.std([x.problem_value for x in scores]) > 0
  kept = jax.tree.leaves(opened.loaded.params)
  same = [
    np.array_equal(one, other)
    for one, other in zip(kept, jax.tree.leaves(params), strict=True)
  ]
  assert 0 < same.count(False) <= 2


def test_a_pupil_of_a_run_without_prm_loss_learns_the_prm(opened, trees):
  learner = dataclasses.replace(
    opened.config.learner,
    losses={"policy": 1.0, "value": 1.0, "prm": 0.0},
    learning_rate=0.02,
    ema_decay=0.0,
  )
  config = dataclasses.replace(opened.config, learner=learner)
  opened = dataclasses.replace(opened, config=config)
  lines = compare_labels.draw_lines(opened, trees[:16], 8)
  labelled = list(
    compare_labels.ask_oracle(opened, [x for own in lines for x in own])
  )
  rows = compare_labels.to_rows(opened, labelled)
  pupils = compare_labels.Pupils(opened, 40)
  truth = np.mean([y for x in labelled for y in x.label if y >= 0])
  scored = compare_labels.score_lines(
    opened.loaded.graphdef,
    pupils.train(rows, 0),
    opened.loaded.vocabulary,
    labelled,
    text=opened.config.text,
    batch_size=8,
  )
  mean = np.mean([np.mean(x.prm) for _, x in scored if x is not None])
  # From 1/2, where it began.
  assert abs(mean - truth) < 0.5 * abs(0.5 - truth)


def test_it_goes_on_where_it_was_cut(micro_run, tmp_path, capsys, monkeypatch):
  # The devices of this process are as they are.
  monkeypatch.setattr(compare_labels.runtime, "start_runtime", lambda _: None)
  argv = [str(micro_run.directory), "--out", str(tmp_path), "--num-trees", "48"]
  argv += ["--lines-per-tree", "64", "--steps", "3", "--seeds", "0"]
  argv += ["--labels.num-rollouts", "2", "--labels.judge.teach-steps", "2"]
  argv += ["--labels.judge.teach-share", "1.0"]
  results = tmp_path / "results.jsonl"
  compare_labels.main([*argv, "--sources", "checked", "judge"])
  before = results.read_text()
  compare_labels.main(argv)
  after = results.read_text()
  assert after.startswith(before)
  rows = [json.loads(line) for line in after.splitlines()]
  assert sorted(row["source"] for row in rows) == sorted(SOURCES)
  assert len({row["test"]["steps"] for row in rows}) == 1
  told = {row["source"]: row for row in rows}
  assert told["oracle"]["agreement"] == 1.0
  assert told["rollouts_soft"]["labels"] == told["oracle"]["labels"]
  assert told["checked"]["tokens"] == 0 < told["judge"]["tokens"]
  compare_labels.main(argv)
  assert results.read_text() == after
  table = (tmp_path / "labels.md").read_text()
  assert capsys.readouterr().out.endswith(table)
  names = [line.split()[1] for line in table.splitlines()[2:]]
  assert names == list(SOURCES)
  assert (tmp_path / "labels.png").read_bytes()[1:4] == b"PNG"


def _row(source, seed, auroc, low, high, labels, tokens):
  figure = {"value": auroc, "ci95": [low, high]}
  return {
    "source": source,
    "seed": seed,
    "labels": labels,
    "tokens": tokens,
    "mean_label": 0.5,
    "agreement": 0.75,
    "test": {"auroc": figure, "ece": figure},
  }


def test_table_by_hand():
  rows = [
    _row("judge", 0, 0.5, 0.4, 0.6, 10, 100),
    _row("oracle", 0, 0.9, 0.8, 1.0, 10, 0),
    _row("judge", 1, 0.7, 0.6, 0.9, 30, 500),
  ]
  *_, oracle, judge = compare_labels.table(rows).splitlines()
  assert oracle.startswith("| oracle | 90.0 [80.0, 100.0] | 90.0 to 90.0 |")
  cells = "60.0 [50.0, 75.0] | 50.0 to 70.0"
  assert judge == f"| judge | {cells} | {cells} | 20 | 50.0 | 75.0 | 15.0 |"
