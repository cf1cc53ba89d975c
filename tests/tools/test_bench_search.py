"""The engines that the search benchmark compares do the same search."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from qstar_jax.config import ModelConfig
from tools import bench_search, mctx_engines, search_engines, search_parts

ROOT = pathlib.Path(__file__).resolve().parents[2]
CASE = search_engines.Case(
  prompt_tokens=5,
  step_tokens=3,
  max_steps=3,
  num_trees=2,
  num_nodes=7,
  num_candidates=3,
  vocabulary_size=50,
  model=ModelConfig(
    num_layers=1,
    model_dim=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_dim=24,
  ),
)


def run(engine):
  return jax.tree.map(np.asarray, engine.full())


@pytest.fixture(scope="module")
def step_tree():
  return run(search_engines.step_tree(CASE))


def test_reprefilling_finds_the_same_tree(step_tree):
  reprefill = run(search_engines.reprefill(CASE))
  np.testing.assert_array_equal(reprefill.tokens, step_tree.tokens)
  np.testing.assert_allclose(reprefill.log_prob, step_tree.log_prob, atol=1e-4)
  np.testing.assert_array_equal(reprefill.visits, step_tree.visits)
  np.testing.assert_array_equal(step_tree.num_expansions, CASE.num_nodes)


def test_two_devices_find_what_one_finds(step_tree):
  case = dataclasses.replace(CASE, num_devices=2)
  split = run(search_engines.step_tree(case))
  np.testing.assert_array_equal(split.tokens, step_tree.tokens)
  np.testing.assert_array_equal(split.visits, step_tree.visits)
  np.testing.assert_allclose(split.log_prob, step_tree.log_prob, atol=1e-5)


def test_mctx_starts_from_the_same_root_and_does_as_much(step_tree):
  engines = [
    run(mctx_engines.mctx_engine(CASE, keeps_candidates=keeps_candidates))
    for keeps_candidates in (False, True)
  ]
  for mctx in engines:
    np.testing.assert_array_equal(mctx.tokens, step_tree.tokens)
    np.testing.assert_allclose(mctx.log_prob, step_tree.log_prob, atol=1e-4)
    np.testing.assert_array_equal(mctx.num_expansions, CASE.num_nodes)
    assert np.all(mctx.visits.sum(axis=-1) == CASE.num_nodes - 1)
  # A cache that keeps the candidates and one that runs them again agree.
  np.testing.assert_array_equal(engines[0].visits, engines[1].visits)


@pytest.mark.slow
def test_profile_names_the_stages_and_the_parts():
  stages = search_parts.profile_round(CASE)
  parts = search_parts.profile_decoding(CASE)
  assert list(stages) == [
    "selection",
    "run of the chosen step",
    "decoding",
    "insertion and backup",
  ]
  assert len(parts) == 4
  assert min([*stages.values(), *parts.values()]) > 0


@pytest.mark.parametrize(
  ("num_nodes", "depth"), [(1, 3), (64, 3), (73, 3), (74, 4), (256, 4)]
)
def test_depth_has_room_for_the_nodes(num_nodes, depth):
  assert bench_search.steps_with_room(3, num_nodes) == depth


def test_ratios_are_of_paired_runs():
  at = bench_search.Place("a", 2, 3)
  runs = {
    "step_tree": [{"first_s": 1.0, "full_s": s} for s in (2.0, 4.0, 8.0)],
    "mctx": [{"first_s": 1.0, "full_s": s} for s in (6.0, 4.0, 16.0)],
  }
  row = bench_search._row(at, "mctx", {"program_mb": 5.0}, runs)
  assert row["ratio"] == 2.0
  assert row["full_s"] == 6.0
  assert row["round_ms"] == 2500.0
  assert row["expansions_per_s"] == 1.0
  assert row["tokens_per_s"] == 80.0
  assert "| 2.00 | - | 2500 |" in bench_search.table([row])


def test_command_runs_engines_in_processes():
  command = [sys.executable, "tools/bench_search.py", "--json"]
  command += ["--shapes", "a", "--nodes", "1", "--trees", "2"]
  command += ["--devices", "2"]
  command += ["--engines", "decode,products", "--repeats", "1"]
  done = subprocess.run(
    command,
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=True,
  )
  decode, products = json.loads(done.stdout)
  assert (decode["engine"], products["engine"]) == ("decode", "products")
  assert decode["ratio"] == 1.0
  assert products["full_s"] > 0
