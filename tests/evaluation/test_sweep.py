"""Searchers compared, on a tiny run: what is reported, and what is refused."""

import csv
import json

import numpy as np
import pytest

from qstar_jax.config import ExperimentConfig
from qstar_jax.errors import UserError
from qstar_jax.evaluation import job, results
from qstar_jax.evaluation.opened import open_checkpoint
from qstar_jax.evaluation.terminal_tree import tree_view
from qstar_jax.search.searchers import SEARCHERS

pytest_plugins = ["tests.training.micro_run"]

_NAMES = ["sample", "best_of_n", "beam", "gumbel", "rejection"]
_NUM_PROBLEMS, _NUM_SEEDS = 4, 2


@pytest.fixture(scope="module")
def opened(micro_run, micro_config):
  return open_checkpoint(micro_run.directory, micro_config)


@pytest.fixture(scope="module")
def problems(opened):
  return job.select_problems(opened, None, None)[:_NUM_PROBLEMS]


@pytest.fixture(scope="module")
def budgets(micro_config):
  text = micro_config.text
  line = text.max_prompt_tokens + 2 * text.max_steps * text.max_step_tokens
  return [line, 4 * line]


def _run(opened, problems, searchers, budgets, **changes):
  arguments = {
    "terminal_value": "value",
    "seed": 3,
    "num_seeds": 1,
    "out": None,
    **changes,
  }
  return job.run(
    opened, problems=problems, searchers=searchers, budgets=budgets, **arguments
  )


@pytest.fixture(scope="module")
def sweep(opened, problems, budgets, tmp_path_factory):
  """Rows, and the directory that they were written to."""
  out = tmp_path_factory.mktemp("sweep")
  rows = _run(
    opened,
    problems,
    ",".join(_NAMES),
    ",".join(map(str, budgets)),
    num_seeds=_NUM_SEEDS,
    out=str(out),
  )
  return rows, out


def test_every_searcher_at_every_budget_and_the_policy_alone(sweep, budgets):
  rows, _ = sweep
  pairs = [(row["searcher"], row["budget"]) for row in rows]
  assert pairs == [(n, b) for n in ["greedy", *_NAMES] for b in budgets]
  for row in rows:
    asks = row["searcher"] == "rejection"
    assert row["terminal_value"] == ("outcome" if asks else "value")
    assert 0 <= row["mean"] <= row["any"] <= 1
    assert row["ci95"][0] <= row["top1"] <= row["ci95"][1]
    assert 0 < row["lane_utilisation"] <= 1
    assert 0 < row["decode_utilisation"] <= 1
    assert row["kv_sharing"] >= 1
    assert row["pass@1"] <= row["pass@4"] <= row["pass@16"] <= 1


def test_plays_keep_their_budget(sweep, budgets):
  _, out = sweep
  lines = (out / "problems.jsonl").read_text().splitlines()
  plays = [json.loads(line) for line in lines]
  num_plays = _NUM_PROBLEMS * _NUM_SEEDS
  assert len(plays) == (1 + len(_NAMES)) * len(budgets) * num_plays
  assert all(play["tokens"] <= play["budget"] for play in plays)
  # The same problems and seeds for all.
  per_row = {}
  for play in plays:
    row = per_row.setdefault((play["searcher"], play["budget"]), [])
    row.append((play["problem"], play["seed"]))
  (first, *others) = per_row.values()
  assert len(set(first)) == num_plays
  assert all(other == first for other in others)


def test_files_say_what_was_returned(sweep):
  rows, out = sweep
  assert json.loads((out / "results.json").read_text())["results"] == rows
  with (out / "results.csv").open() as file:
    table = list(csv.DictReader(file))
  assert [row["searcher"] for row in table] == [r["searcher"] for r in rows]
  assert [float(row["top1"]) for row in table] == [r["top1"] for r in rows]
  assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")
  assert results.table(rows).row_count == len(rows)


@pytest.mark.parametrize("budgets", ["12,many", "0", "-5", "1.5", ""])
def test_malformed_budgets_are_refused(opened, problems, budgets):
  with pytest.raises(UserError, match="no number of tokens"):
    _run(opened, problems, "greedy", budgets)


def test_a_budget_below_one_line_is_refused(opened, problems):
  with pytest.raises(UserError, match=r"budget 5: .*; give \d+ or more"):
    _run(opened, problems, "greedy", "5")


def test_an_unknown_searcher_lists_the_known(opened, problems):
  with pytest.raises(UserError) as caught:
    _run(opened, problems, "greedy,beem", "100")
  for name in SEARCHERS:
    assert name in str(caught.value)


def test_options_of_one_searcher(opened, problems, budgets):
  """Each entry is a row of its own; options are that entry's alone."""
  entries = [
    "best_of_n",
    "best_of_n[choose_by=majority]",
    "best_of_n[utility=prm,aggregate=min]",
  ]
  rows = _run(opened, problems, ",".join(entries), str(budgets[1]))
  assert [row["searcher"] for row in rows] == ["greedy", *entries]
  # The same lines, whichever is chosen.
  assert len({row["any"] for row in rows[1:]}) == 1
  assert len({row["tokens_per_problem"] for row in rows[1:]}) == 1


def test_an_option_that_is_true_or_false():
  text = "gumbel,gumbel[mctx_mode=true],gumbel[mctx_mode=false,horizon=3]"
  searches = job.read_searchers(text, ExperimentConfig()).values()
  assert [search.mctx_mode for search in searches] == [False, True, False]
  assert [search.horizon for search in searches] == [2, 2, 3]


@pytest.mark.parametrize(
  ("entry", "message"),
  [
    ("beam[beam_width=2", "bracket is not closed"),
    ("beam[beam_width]", "beam_width=VALUE"),
    ("beam[beam_widht=2]", "beam-widht"),
    ("best_of_n[choose_by=luck]", "majority"),
    ("beam[beam_width=0]", "search.beam_width"),
  ],
)
def test_options_that_make_no_sense(opened, problems, entry, message):
  with pytest.raises(UserError, match=message) as caught:
    _run(opened, problems, f"greedy,{entry}", "100")
  assert entry in str(caught.value)


def test_a_beam_wider_than_memory_is_refused(opened, problems):
  with pytest.raises(UserError, match=r"search\.beam_width") as caught:
    _run(opened, problems, "beam[beam_width=1000000]", None)
  assert " GB" in str(caught.value)


def test_lines_sampled_apart_all_stand_below_the_problem(opened, problems):
  (solved,) = opened.solve(problems[:1], "best_of_n", 0)
  record = solved.record
  num_lines = (record.node_parent < 0).sum()
  assert num_lines > 1
  view = tree_view(record, opened.loaded.vocabulary, max_nodes=1000)
  assert len(view.children) == num_lines
  marks = [str(branch.label).startswith("* ") for branch in view.children]
  # By visits, then Q; the committed line is where that puts it.
  roots = [
    (node, int(a))
    for node in np.flatnonzero(record.node_parent < 0)
    for a in np.flatnonzero(record.count[node])
  ]
  roots.sort(key=lambda edge: (-record.visits[edge], -record.q[edge], edge))
  first = (record.committed_node[0], record.committed_candidate[0])
  assert marks == [edge == first for edge in roots]
  assert marks.count(True) == 1


def test_f_of_a_star_is_what_its_record_says(opened, problems):
  """Sum of log R on the way, and log V where the line goes on."""
  (solved,) = opened.solve(problems[:1], "astar", 0)
  record, f = solved.record, solved.priority
  assert f.shape == record.count.shape
  least = np.log(1e-6)
  for node, a in np.argwhere(record.count > 0):
    edge, g = (node, a), 0.0
    while edge[0] >= 0:
      g += np.log(max(record.prm[edge], 1e-6))
      edge = record.node_parent[edge[0]], record.node_candidate[edge[0]]
    h = np.log(max(record.value[node, a], 1e-6))
    # Of a line that failed the score is 0.
    lines = [g] if record.ended[node, a] else [g + h, least + h]
    assert np.abs(np.array(lines) - f[node, a]).min() < 1e-4
  (other,) = opened.solve(problems[:1], "gumbel", 0)
  assert other.priority is None
