"""The comparison of offline methods: one small one, and its table by hand."""

import dataclasses
import json

import pytest

from qstar_jax import configuration, validation
from qstar_jax.errors import UserError
from tools import compare_offline

pytest_plugins = ["tests.training.micro_run"]


def compare(config, run_dir, out, methods):
  return compare_offline.compare(
    config,
    out,
    trees=str(run_dir),
    methods=methods,
    seeds=[0],
    steps=6,
    budget=200,
  )


def test_methods_learn_from_the_trees_and_are_not_run_again(
  micro_run, micro_config, tmp_path, monkeypatch
):
  monkeypatch.setattr(compare_offline, "_BY_VALUE", ("greedy",))
  rows = compare(micro_config, micro_run.directory, tmp_path, ["awr", "ilql"])
  assert [(row["method"], row["searcher"]) for row in rows] == [
    ("awr", "greedy"),
    ("ilql", "greedy"),
    ("ilql", "token_astar[heuristic=token_q]"),
    ("ilql", "best_first[heuristic=token_q]"),
  ]
  for row in rows:
    assert len(row["scores"]) == micro_config.domain.held_out_problems
  before = (tmp_path / "results.jsonl").read_text()
  assert [json.loads(line) for line in before.splitlines()] == rows
  again = compare(micro_config, micro_run.directory, tmp_path, ["awr", "ilql"])
  assert again == rows
  assert (tmp_path / "results.jsonl").read_text() == before
  compare_offline.draw(rows, tmp_path / "offline.png")
  assert (tmp_path / "offline.png").stat().st_size > 5000


@pytest.mark.parametrize("method", compare_offline.METHODS)
def test_configs_are_valid(method):
  tiny = configuration.load("tiny_cpu")
  config = compare_offline.method_config(tiny, method, 1, "runs/a", 300)
  assert not validation.find_errors(config)
  assert config.num_iterations * config.learner.steps_per_iteration == 300
  assert (config.model.token_q, "cql" in config.learner.losses) == (
    (method == "ilql",) * 2
  )


def test_steps_that_are_no_iterations_are_refused():
  tiny = configuration.load("tiny_cpu")
  with pytest.raises(UserError, match="--steps 100: must be a multiple of"):
    compare_offline.method_config(tiny, "awr", 0, "runs/a", 100)


def test_table_by_hand():
  row = {"method": "awr", "searcher": "greedy", "tokens": 8.0, "seed": 0}
  rows = [
    {**row, "scores": [1, 1]},
    {**row, "scores": [1, 1], "seed": 1},
    {**row, "method": "ilql", "scores": [0, 1]},
    {**row, "method": "ilql", "searcher": "value_guided", "scores": [0, 0]},
  ]
  assert compare_offline.table(rows) == (
    "| searcher | awr, % | ilql, % |\n"
    "|---|---|---|\n"
    "| greedy | 100.0 [100.0, 100.0] | 50.0 [0.0, 100.0] |\n"
    "| value_guided |  | 0.0 [0.0, 0.0] |\n"
  )
  (first, *_) = compare_offline.summary(rows)
  assert (first["seeds"], first["tokens"]) == (2, 8.0)


def test_configs_keep_what_the_run_has():
  tiny = configuration.load("tiny_cpu")
  config = compare_offline.method_config(tiny, "awr", 0, "runs/a", 150)
  assert config.text == tiny.text and config.search == tiny.search
  same = dataclasses.replace(config.learner, policy_target="improved")
  assert same == tiny.learner
