"""The comparison of curricula: one small one, and its table by hand."""

import dataclasses
import json

import pytest

from qstar_jax import configuration
from qstar_jax.validation import find_errors
from tools import compare_curriculum

pytest_plugins = ["tests.training.micro_run"]


@pytest.fixture
def ladder(micro_config):
  return dataclasses.replace(
    micro_config,
    domain=dataclasses.replace(micro_config.domain, min_difficulty=1),
    self_play=dataclasses.replace(
      micro_config.self_play, problems_per_iteration=8
    ),
    warm_start=dataclasses.replace(micro_config.warm_start, steps=4),
    num_iterations=2,
  )


def test_runs_end_at_equal_tokens_and_are_not_run_again(
  ladder, tmp_path, monkeypatch
):
  proposer = dataclasses.replace(
    compare_curriculum.CURRICULA["proposer"], proposer_problems=4
  )
  monkeypatch.setitem(compare_curriculum.CURRICULA, "proposer", proposer)

  def compare(curricula):
    return compare_curriculum.compare(
      ladder,
      tmp_path,
      curricula=curricula,
      seeds=[0],
      tokens=4000,
      points=2,
    )

  rows = compare(["proposer"])
  assert [row["point"] for row in rows] == [0, 1, 2]
  assert rows[0]["tokens"] == rows[0]["trees"] == 0
  # Eight problems take some 1,500 tokens, and are played whole.
  assert 2000 <= rows[1]["tokens"] < 4000
  assert 4000 <= rows[2]["tokens"] < 7000
  assert rows[2]["trees"] > rows[1]["trees"] > 0
  # The learner takes its steps once for each part of the tokens.
  steps = ladder.learner.steps_per_iteration
  assert [row["steps"] for row in rows] == [4, 4 + steps, 4 + 2 * steps]
  assert set(rows[2]["scores"]) == {"1", "2"}
  before = (tmp_path / "results.jsonl").read_text()
  assert [json.loads(line) for line in before.splitlines()] == rows
  assert compare(["proposer"]) == rows
  assert (tmp_path / "results.jsonl").read_text() == before
  compare_curriculum.draw(rows, tmp_path / "curriculum.png")
  assert (tmp_path / "curriculum.png").stat().st_size > 5000


def _row(name, seed, point, scores, tokens, steps):
  return {
    "curriculum": name,
    "seed": seed,
    "ladder": {"tokens": 10, "points": 1},
    "point": point,
    "tokens": tokens,
    "steps": steps,
    "trees": 1000 * seed,
    "scores": scores,
  }


def test_table_by_hand():
  ones, zeros = [1.0] * 40, [0.0] * 40
  rows = [
    _row("uniform", 0, 0, {"1": ones, "2": ones}, 0, 0),
    _row("uniform", 0, 1, {"1": ones, "2": zeros}, 1_000_000, 100),
    _row("uniform", 1, 1, {"1": ones, "2": ones}, 2_000_000, 300),
    _row("table", 0, 1, {"1": zeros, "2": ones}, 1_000_000, 150),
  ]
  *_, uniform, table = compare_curriculum.table(rows).splitlines()
  cells = [cell.strip() for cell in uniform.split("|")[1:-1]]
  assert cells[:2] == ["uniform", "100.0 [100, 100]"]
  # 40 of 80: half, give or take 1.96 * sqrt(0.25 / 80) = 11 points.
  assert cells[2] == "50.0 [39, 60]"
  assert cells[3].startswith("75.0 [")
  assert cells[4:] == ["50.0 to 100.0", "1.5", "500", "200"]
  assert table.startswith("| table | 0.0 [0, 0] | 100.0 [100, 100] | 50.0 [")


def test_every_curriculum_is_valid():
  ladder = [str(p) for o in compare_curriculum.LADDER.items() for p in o]
  config = configuration.load("tiny_cpu", ladder)
  for curriculum in compare_curriculum.CURRICULA.values():
    both = dataclasses.replace(config, curriculum=curriculum)
    assert not find_errors(both)
