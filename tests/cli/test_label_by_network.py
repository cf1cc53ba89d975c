"""`qstar label` with sources that ask the run's network."""

import json
import signal

import numpy as np
import pytest

from qstar_jax import checkpoint
from qstar_jax.cli.main import main
from qstar_jax.domains.countdown import Countdown
from qstar_jax.domains.splits import held_out
from qstar_jax.labels.codec import LINES
from qstar_jax.labels.step_tree import read_steps
from qstar_jax.replay import ReplayReader
from qstar_jax.store.reader import StoreReader
from tests.store.instants import contents

pytest_plugins = ["tests.training.micro_run"]

DOMAIN = Countdown(min_number=1, max_number=9, max_target=60)
# Few, since a label is dear.
CHEAP = ("--labels.num-rollouts", 2, "--labels.budget", 3)
CHEAP += ("--labels.judge.teach-steps", 3, "--labels.judge.teach-share", 1.0)


def label(qstar, micro_run, source, out, *options, **kwargs):
  return qstar(
    *("label", micro_run.directory, "--source", source, "--out", out),
    *("--shard-lines", 4, *CHEAP, *options),
    **kwargs,
  )


def test_every_step_of_the_trees_has_a_label_once(qstar, micro_run, tmp_path):
  meta = checkpoint.latest_meta(micro_run.directory)
  vocabulary = checkpoint.vocabulary_from_json(meta["vocabulary"])
  trees = ReplayReader(micro_run.directory / "replay")
  expected = sorted(
    (f"actor 0, tree {tree.sequence}", step.text)
    for tree in (trees[i] for i in range(18))
    for step in read_steps(tree, vocabulary)
  )
  assert len(expected) > 10
  for source in ("rollouts_hard", "judge"):
    out = tmp_path / source
    finished = label(
      *(qstar, micro_run, source, out, "--lines", "all", "--limit", 18),
    )
    assert (finished.code, finished.err) == (0, "")
    lines = list(StoreReader(out, LINES))
    found = sorted(
      (line.origin, line.steps[i])
      for line in lines
      for i in np.flatnonzero(line.label >= 0)
    )
    assert found == expected
    tokens = sum(line.tokens for line in lines)
    assert tokens > 0
    assert finished.out == (
      f"{out}: {len(lines)} lines with {len(found)} labelled steps, of 3 of 3 "
      f"batches of 8 trees, for {tokens} tokens, {tokens / len(found):.1f} a "
      "label\n"
    )
    assert {line.source for line in lines} == {source}
    assert {line.params_version for line in lines} == {meta["step"]}
  lessons = json.loads((out / "judge" / "lessons.json").read_text())
  assert lessons["steps"] == 3
  assert lessons["labels"] > 0


@pytest.mark.parametrize(
  ("source", "options", "at"),
  [
    ("rollouts_soft", ("--lines", "all", "--limit", 24), 30),
    ("binary_search", ("--problems", "train", "--limit", 20), 30),
    ("judge", ("--problems", "train", "--limit", 20), 12),
    ("judge", ("--problems", "train", "--limit", 20), 45),
  ],
)
def test_killed_and_run_again(qstar, micro_run, tmp_path, source, options, at):
  out, other = tmp_path / "out", tmp_path / "other"
  fault = {
    **{"folder": str(out), "at": at, "delay": 0.0},
    "signal": signal.SIGKILL,
  }
  assert label(qstar, micro_run, source, out, *options, fault=fault).code == -9
  assert label(qstar, micro_run, source, out, *options).code == 0
  assert label(qstar, micro_run, source, other, *options).code == 0
  assert contents(out) == contents(other)
  assert len(StoreReader(out, LINES)) > 3


def test_samples_of_problems(qstar, micro_run, tmp_path):
  options = ("--search.num-lines", 3, "--limit", 12)
  out, train = tmp_path / "held_out", tmp_path / "train"
  finished = label(
    *(qstar, micro_run, "rollouts_soft", out, *options),
    *("--problems", "held_out"),
  )
  assert (finished.code, finished.err) == (0, "")
  assert "of 1 of 1 batches of 8 problems" in finished.out
  kept = held_out(
    DOMAIN, min_difficulty=2, max_difficulty=2, num_problems=16, seed=0
  )
  for line in StoreReader(out, LINES):
    number = int(line.origin.removeprefix("held_out, problem "))
    assert line.problem_key == kept[number].key
  label(
    *(qstar, micro_run, "rollouts_soft", train, *options),
    *("--problems", "train", "--limit", 24),
  )
  keys = {line.problem_key for line in StoreReader(train, LINES)}
  assert len(keys) > 3
  assert not keys & {problem.key for problem in kept}
  file = tmp_path / "problems.txt"
  file.write_text("".join(f"{problem.key}\n" for problem in kept[:8]))
  named = tmp_path / "named"
  asked = (qstar, micro_run, "rollouts_soft", named, *options)
  assert label(*asked, "--problems", file).code == 0
  labels = [
    [(line.steps, line.label.tolist()) for line in StoreReader(path, LINES)]
    for path in (out, named)
  ]
  assert labels[0] == labels[1]
  file.write_text(f"{kept[9].key}\n")
  refused = label(*asked, "--problems", file)
  assert refused.code == 2
  assert "problem_keys is" in refused.err


def test_the_checkpoint_of_the_first_process_is_asked(
  qstar, micro_run, tmp_path
):
  steps = sorted(
    int(path.name)
    for path in (micro_run.directory / "checkpoints").iterdir()
    if path.name.isdigit()
  )
  out = tmp_path / "out"
  older = micro_run.directory / "checkpoints" / str(steps[0])
  options = ("--source", "judge", "--out", out, "--limit", 8, *CHEAP)
  options += ("--num-processes", 2, "--lines", "all")
  assert qstar("label", older, *options, "--process", 0).code == 0
  assert qstar("label", micro_run.directory, *options, "--process", 1).code == 0
  versions = {line.params_version for line in StoreReader(out, LINES)}
  assert versions == {steps[0]} != {steps[-1]}


@pytest.mark.parametrize(
  ("options", "parts"),
  [
    (
      ["--source", "checked", "--lines", "all"],
      ["--lines all", "has its own", "rollouts_soft"],
    ),
    (
      ["--source", "tree_q", "--problems", "held_out"],
      ["--problems held_out", "has its own"],
    ),
    (["--source", "judge", "--problems", "train"], ["how many?", "--limit"]),
    (["--source", "judge", "--rows", "1:2"], ["name a file with --problems"]),
    (["--source", "judge", "--labels.budget", "0"], ["labels.budget", "1 or"]),
    (
      ["--source", "judge", "--model.model-dim", "32"],
      ["model.model_dim is 32", "fixed"],
    ),
  ],
)
def test_refused(micro_run, tmp_path, capsys, options, parts):
  out = tmp_path / "out"
  argv = ["label", str(micro_run.directory), "--out", str(out), *options]
  assert main(argv) == 2
  printed = capsys.readouterr()
  assert printed.out == ""
  assert printed.err.count("\n") == 1, printed.err
  for part in ["qstar label: ", *parts]:
    assert part in printed.err
  assert not out.exists()


def test_consensus_of_two_sources(qstar, micro_run, tmp_path):
  for source in ("rollouts_soft", "judge"):
    assert label(qstar, micro_run, source, tmp_path / source).code == 0
  of = ("--of", tmp_path / "rollouts_soft", tmp_path / "judge")
  out = tmp_path / "both"
  tolerance = ("--labels.tolerance", 0.5)
  finished = label(qstar, micro_run, "consensus", out, *of, *tolerance)
  assert (finished.code, finished.err) == (0, "")
  one, other, both = (
    {line.origin: line for line in StoreReader(path, LINES)}
    for path in (*of[1:], out)
  )
  assert both
  for origin, line in both.items():
    parts = np.stack([one[origin].label, other[origin].label])
    agree = (parts >= 0).all(axis=0) & (np.ptp(parts, axis=0) <= 0.5)
    np.testing.assert_array_equal(line.label >= 0, agree)
    np.testing.assert_allclose(line.label[agree], parts.mean(axis=0)[agree])
  again = label(qstar, micro_run, "consensus", out, *of, *tolerance)
  assert again.out.startswith(f"{out}: process 0 had nothing left to do")
  for wrong in (("consensus",), ("judge", *of)):
    source, *options = wrong
    refused = label(qstar, micro_run, source, tmp_path / "new", *options)
    assert refused.code == 2
    assert "--of names the two datasets of --source consensus" in refused.err
