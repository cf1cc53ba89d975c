"""Runs that play nothing: they learn from stored trees and labelled lines."""

import json
import re
import signal

import pytest
import yaml

from qstar_jax import checkpoint as checkpoint_lib
from qstar_jax import configuration
from qstar_jax.data.fields import problem_key
from qstar_jax.domains import make_domain
from qstar_jax.domains.splits import held_out_by
from qstar_jax.replay import ReplayReader
from qstar_jax.training.labelled_data import is_held_out
from tests.training.test_resume import (
  _assert_same_runs,
  _final_checkpoint,
  _metrics,
)

pytest_plugins = ["tests.training.micro_run"]

_OFFLINE = {
  "--self-play.problems-per-iteration": 0,
  "--warm-start.steps": 0,
  "--num-iterations": 3,
  "--replay.max-reuse": 50,
}
_TEXT = {
  "--evaluation.num-problems": 0,
  "--text.vocabulary": "sentencepiece",
  "--text.vocabulary-size": 350,
  "--data.held-out-share": 0.3,
  "--data.on-error": "skip",
}


def _arguments(options):
  return [str(part) for option in options.items() for part in option]


@pytest.fixture
def train(qstar, micro_yaml):
  """Trains in a directory, with options, until a signal if one is to come."""

  def run(run_dir, options, number=None, part="", at=0, config=micro_yaml):
    fault = number and {
      "folder": str(run_dir / part),
      "at": at,
      "delay": 0.0,
      "signal": number,
    }
    arguments = _arguments(_OFFLINE | options)
    return qstar(
      *("train", config, "--run-dir", run_dir, "--json", *arguments),
      fault=fault,
    )

  return run


@pytest.fixture
def train_text(train, micro_config, tmp_path):
  """The same on the domain without rules."""
  path = tmp_path / "text.yaml"
  data = configuration.to_json(micro_config)
  data["domain"] = {"name": "text", "held_out_problems": 0}
  path.write_text(yaml.safe_dump(data))
  return lambda run_dir, options, *fault: train(
    run_dir, _TEXT | options, *fault, config=path
  )


@pytest.fixture(scope="module")
def rated_file(tmp_path_factory):
  """Rated completions of 24 problems: a step is right if it adds well."""
  path = tmp_path_factory.mktemp("data") / "rated.jsonl"
  records = [
    {
      "instruction": f"What is {a} + 1 + 1?",
      "responses": [f"{a} + 1 = {a + 1}"] if is_second else [],
      "next_response": f"{a + is_second} + 1 = {a + is_second + right}",
      "answer": None,
      "rating": 1 if right else -1,
    }
    for a in range(24)
    for is_second in (0, 1)
    for right in (0, 1)
  ]
  records.append({**records[0], "rating": 5})
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  return path


def test_trees_alone(train, micro_run, micro_config, tmp_path):
  """It holds out other problems than the run that made them: not learned."""
  whole, cut = tmp_path / "whole", tmp_path / "cut"
  options = {
    "--data.trees": micro_run.directory,
    "--domain.held-out-problems": 400,
    "--seed": 3,
  }
  finished = train(whole, options)
  assert (finished.code, finished.err) == (0, "")
  stored = ReplayReader(micro_run.directory / "replay")
  domain = make_domain("countdown", micro_config.domain.options)
  config = checkpoint_lib.load(whole).config
  held_out = {p.key for p in held_out_by(config, domain).evaluation}
  first = len(stored) - micro_config.replay.window_trees
  expected = [
    [0, stored[i].sequence]
    for i in range(first, len(stored))
    if stored[i].problem_key not in held_out
  ]
  assert 0 < len(expected) < micro_config.replay.window_trees
  meta = _final_checkpoint(whole)[1]
  assert [tree[:2] for tree in meta["window"]["trees"]] == expected
  assert meta["progress"]["num_trees"] == 0
  records = _metrics(whole)
  (data,) = (r for r in records if r["kind"] == "data")
  assert data["trees"] == len(expected)
  iterations = [r for r in records if r["kind"] == "iteration"]
  assert [r["step"] for r in iterations] == [6, 12, 18]
  assert iterations[2]["replay_mean_reuse"] > iterations[0]["replay_mean_reuse"]
  assert "replay_mean_staleness" not in iterations[0]
  phases = [r["phase"] for r in records if r["kind"] == "evaluation"]
  assert set(phases) == {"random", "offline"}
  for at in (60, 130):
    killed = train(cut, options, signal.SIGKILL, "checkpoints", at)
    assert killed.code == -signal.SIGKILL, killed.err
  assert train(cut, options).code == 0
  _assert_same_runs(cut, whole)


def test_labels_alone(train_text, rated_file, tmp_path):
  whole, cut = tmp_path / "whole", tmp_path / "cut"
  options = {"--data.labels": f"prm800k:{rated_file}"}
  finished = train_text(whole, options)
  assert (finished.code, finished.err) == (0, "")
  records = _metrics(whole)
  (data,) = (r for r in records if r["kind"] == "data")
  # The right first step of a problem is part of its right second line.
  assert data["labelled_lines"] == 3 * 24
  assert (data["records"], data["refused"]) == (96, 1)
  (warning,) = (r for r in records if r["kind"] == "warning")
  assert "1 label outside its values" in warning["message"]
  steps = [r for r in records if r["kind"] == "step_evaluation"]
  assert [r["phase"] for r in steps] == ["random", "offline", "offline"]
  assert all(r["steps"] * 3 == data["held_out_lines"] * 4 for r in steps)
  assert not any(r["kind"] == "evaluation" for r in records)
  iterations = [r for r in records if r["kind"] == "iteration"]
  assert [r["labelled_rows"] for r in iterations] == [48, 48, 48]
  assert iterations[-1]["value"] == 0 and iterations[-1]["prm"] > 0
  for part, at in (("labels", 20), ("checkpoints", 60), ("checkpoints", 130)):
    killed = train_text(cut, options, signal.SIGKILL, part, at)
    assert killed.code == -signal.SIGKILL, killed.err
  assert train_text(cut, options).code == 0
  _assert_same_runs(cut, whole)


def test_trees_and_a_labelled_dataset(
  qstar, train, micro_run, micro_config, tmp_path
):
  """Labelled lines lack the rewards that losses of token-Q read."""
  labels, run_dir = tmp_path / "labels", tmp_path / "run"
  config = tmp_path / "token_q.yaml"
  data = configuration.to_json(micro_config)
  data["model"]["token_q"] = True
  data["learner"]["losses"] |= dict.fromkeys(
    ("token_q", "token_value", "cql"), 1.0
  )
  config.write_text(yaml.safe_dump(data))
  run = micro_run.directory
  label = ["label", run, "--source", "tree_q", "--out", labels]
  assert qstar(*label, "--limit", 24).code == 0
  options = {
    "--data.trees": run / "replay",
    "--data.labels": labels,
    "--data.label-share": 0.4,
  }
  killed = train(
    run_dir, options, signal.SIGKILL, "checkpoints", 60, config=config
  )
  assert killed.code == -signal.SIGKILL, killed.err
  assert train(run_dir, options, config=config).code == 0
  iterations = [r for r in _metrics(run_dir) if r["kind"] == "iteration"]
  # 3 of 8 rows, in 6 steps.
  assert [r["labelled_rows"] for r in iterations] == [18, 18, 18]
  # Labelled lines have no value targets: these are the trees'.
  assert all(r["value"] > 0 and r["cql"] > 0 for r in iterations)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"--data.trees": "no/run"}, "no/run has no checkpoint with the vocab"),
    ({"--data.labels": "no/labels"}, "no/labels"),
    ({"--data.labels": "prm800k:no.jsonl"}, "no file .*no.jsonl; check the"),
    ({"--data.labels": "prm900k:a"}, "no format 'prm900k'; known ones are"),
    ({}, "problems_per_iteration is 0: must be 1 or more, or there is"),
  ],
)
def test_wrong_paths_are_told_in_a_line(train, tmp_path, options, message):
  finished = train(tmp_path / "run", options)
  assert finished.code == 2
  (line,) = finished.err.splitlines()
  assert re.search(message, line), line


def test_a_run_is_judged_by_labels(qstar, train_text, rated_file, tmp_path):
  run_dir = tmp_path / "run"
  options = {"--data.labels": f"prm800k:{rated_file}"}
  assert train_text(run_dir, options).code == 0
  judge = "calibrate", run_dir, "--labels", f"prm800k:{rated_file}", "--json"
  finished = qstar(*judge)
  assert finished.code == 0, finished.err
  assert "lines left out, of problems that the run has" in finished.err
  assert "record 97: label outside its values" in finished.err
  assert "96 records read, 1 refused" in finished.err
  # Three of each problem.
  num_held_out = 3 * sum(
    is_held_out(problem_key(f"What is {a} + 1 + 1?"), 0.3) for a in range(24)
  )
  prm = json.loads(finished.out)["prm"]
  assert (prm["against"], prm["too_long_steps"]) == ("labels", 0)
  assert 0 < prm["lines"] == num_held_out == 72 - prm["learned_lines"]
  finished = qstar(*judge, "--data.held-out-share", 0)
  assert finished.code == 2
  assert "72 lines are of problems that the run has learned" in finished.err
