"""The report over scored lines: what is counted, grouped, split and drawn."""

import dataclasses
import io
import json
import types

import numpy as np
import pytest
from etils import epath
from rich.console import Console

from qstar_jax import step_metrics
from qstar_jax.checkpoint import Loaded
from qstar_jax.config import EvaluationConfig, ExperimentConfig
from qstar_jax.domains import make_domain
from qstar_jax.domains.countdown import Countdown
from qstar_jax.domains.splits import held_out
from qstar_jax.errors import UserError
from qstar_jax.evaluation import (
  calibration,
  calibration_job,
  calibration_results,
)
from qstar_jax.evaluation.opened import Opened, open_checkpoint
from qstar_jax.evaluation.scored_lines import ScoredLine, open_states
from qstar_jax.records import LabelledLine, Outcome, Verdict
from qstar_jax.search.searchers import for_evaluation
from qstar_jax.selfplay.player import Job
from tests.selfplay import conftest as tiny

pytest_plugins = ["tests.training.micro_run"]


def _line(key, scores, labels, group="", first_depth=1):
  depth = np.arange(len(scores)) + first_depth
  return ScoredLine(
    key, group, depth, np.array(scores, float), np.array(labels, float)
  )


_LINES = [
  _line("a", [0.9, 0.2], [1, 0], "x"),
  _line("a", [0.7, 0.6, 0.5], [1, -1, 1], "y"),
  _line("b", [0.95, 0.1], [1, 0], "x"),
  _line("b", [0.3], [0], "x"),
  _line("c", [0.8, 0.75], [1, 1], "y"),
  _line("d", [0.4, 0.3], [-1, 0], "y"),
  _line("d", [0.85, 0.15], [1, 1], "y"),
]


def test_the_report_is_of_judged_steps_by_depth():
  found = calibration.report(_LINES, seed=0)
  assert (found["problems"], found["lines"], found["steps"]) == (4, 7, 12)
  rows = {row["depth"]: row for row in found["by_depth"]}
  assert {depth: row["steps"] for depth, row in rows.items()} == {
    **{1: 6, 2: 5, 3: 1},
  }
  score = np.array([0.2, 0.1, 0.75, 0.3, 0.15])
  label = np.array([0, 0, 1, 0, 1])
  second = rows[2]
  assert second["mean_score"] == pytest.approx(0.3)
  assert second["mean_label"] == pytest.approx(0.4)
  for name in ("auroc", "brier", "ece"):
    expected = getattr(step_metrics, name)(score, label)
    assert second[name]["value"] == pytest.approx(expected)
    low, high = second[name]["ci95"]
    assert low <= high
  assert second["bins"]["weight"] == [0, 2, 1, 1, 0, 0, 0, 1, 0, 0]
  assert second["bins"]["label"][1] == 0.5
  # One class alone cannot be ranked.
  assert rows[3]["auroc"] == {"value": None, "ci95": [None, None]}
  json.dumps(found, allow_nan=False)


def test_the_threshold_is_of_other_problems_than_are_judged():
  found = calibration.first_error_report(_LINES, seed=0)
  # Of problems a and c: step 2 of the first line, nothing in the third; the
  # second is not judged throughout. Of b and d: two errors, found both, and one
  # that is not there; the line of d that opens unjudged is left out.
  assert found["threshold"] == pytest.approx(0.75)
  counts = ("wrong_lines", "right_lines", "left_out_lines")
  assert [found[name] for name in counts] == [2, 1, 1]
  assert found["wrong"]["value"] == 1.0
  assert found["right"]["value"] == 0.0
  assert found["f1"]["value"] == 0.0


def test_without_two_problems_no_first_error_is_judged():
  found = calibration.first_error_report(_LINES[:2], seed=0)
  assert found["wrong_lines"] == found["right_lines"] == 0
  assert found["wrong"] == {"value": None, "ci95": [None, None]}


def test_groups_are_judged_apart_and_together():
  found = calibration.group_report(_LINES, seed=0)
  assert list(found) == ["x", "y", "all"]
  steps = [(row["steps"], row["wrong_steps"]) for row in found.values()]
  assert steps == [(5, 3), (7, 1), (12, 4)]
  assert found["x"]["score"]["value"] == 1.0
  # Of y: 5 of 6 right steps are called so, and the wrong one too is found.
  assert found["y"]["f1"]["value"] == pytest.approx(10 / 11)
  assert found["y"]["negative_f1"]["value"] == pytest.approx(2 / 3)
  assert found["y"]["score"]["value"] == pytest.approx((10 / 11 + 2 / 3) / 2)


def _calibration():
  rng = np.random.default_rng(0)
  prm = []
  for i in range(60):
    scores = rng.random(3)
    prm.append(_line(str(i // 3), scores, rng.random(3) < scores))
  value = [
    _line(str(i), rng.random(1), rng.integers(9, size=1) / 8, first_depth=0)
    for i in range(20)
  ]
  summary = {
    "domain": "countdown",
    "prm": {
      "against": "oracle",
      **calibration.report(prm, 0),
      "first_error": calibration.first_error_report(prm, 0),
    },
    "value": {"against": "8 plays", **calibration.report(value, 0)},
  }
  return calibration_job.Calibration(summary, {"prm": prm, "value": value})


def test_files_hold_the_summary_and_every_step(tmp_path):
  found = _calibration()
  out = tmp_path / "out"
  out.mkdir()
  calibration_results.write(epath.Path(out), found)
  assert json.loads((out / "calibration.json").read_text()) == found.summary
  lines = (out / "steps.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert len(records) == 200
  of_prm = [record for record in records if record["of"] == "prm"]
  area = step_metrics.auroc(
    np.array([record["score"] for record in of_prm]),
    np.array([record["label"] for record in of_prm]),
  )
  assert area == pytest.approx(found.summary["prm"]["auroc"]["value"])
  assert (out / "calibration.png").read_bytes()[1:4] == b"PNG"
  assert sorted(path.name for path in out.iterdir()) == [
    *("calibration.json", "calibration.png", "steps.jsonl"),
  ]


def test_steps_that_nobody_judged_are_not_written():
  records = list(calibration_results._step_records("prm", _LINES))
  assert len(records) == 12
  assert records[3] == {
    **{"of": "prm", "problem": "a", "group": "y", "line": 1},
    **{"depth": 3, "score": 0.5, "label": 1.0},
  }


def test_the_table_fits_a_terminal():
  console = Console(width=80, file=io.StringIO())
  console.print(calibration_results.table(_calibration()))
  shown = console.file.getvalue().splitlines()
  rows = [line.split() for line in shown if line.startswith("  PRM  ")]
  assert [row[1:3] for row in rows] == [
    *(["all", "180"], ["1", "60"], ["2", "60"], ["3", "60"]),
  ]


def test_the_picture_has_a_line_for_every_depth():
  figure = calibration_results.draw(_calibration())
  diagram, value, *_ = figure.axes
  labels = [text.get_text() for text in diagram.get_legend().get_texts()]
  assert [label.split(":")[0] for label in labels] == [
    *("step 1", "step 2", "step 3"),
  ]
  (label,) = value.get_legend().get_texts()
  assert label.get_text().startswith("problem: ECE ")


def test_a_domain_without_oracle_is_refused():
  opened = types.SimpleNamespace(domain=types.SimpleNamespace(name="talk"))
  with pytest.raises(UserError, match=r"^domain talk has no .* solvable"):
    calibration_job.against_play(
      opened, [], player="policy", num_states=1, num_plays=1, seed=0
    )


@pytest.fixture(scope="module")
def opened(micro_run, micro_config):
  return open_checkpoint(micro_run.directory, micro_config)


def _labelled(opened, num_lines):
  """Random play, every second line with a mistake at its end."""
  rng = np.random.default_rng(0)
  for i in range(num_lines):
    problem, steps = opened.domain.random_play(rng, 2)
    label = np.ones(len(steps), np.float32)
    if i % 2:
      steps, bad = opened.domain.corrupt(rng, problem, steps)
      label = (np.arange(len(steps)) != bad).astype(np.float32)
    yield LabelledLine(
      domain=("slips", "plays")[i % 3 == 0],
      problem_key=problem.key,
      prompt=problem.prompt,
      steps=steps,
      is_finished=not i % 2,
      label=label,
      kind="hard",
      source="checked",
      params_version=-1,
      tokens=0,
      origin=str(i),
    )


def test_stored_labels_judge_the_prm(opened):
  lines = list(_labelled(opened, 20))
  long = dataclasses.replace(
    lines[0], steps=("1 + 1 = 2 (left: 2)",) * 9, label=np.ones(9, np.float32)
  )
  found = calibration_job.against_labels(opened, [*lines, long], seed=0)
  prm = found.summary["prm"]
  # Of the long line three steps fit at once; the others are read in windows.
  assert (prm["lines"], prm["too_long_steps"]) == (21, 0)
  assert set(found.lines) == {"prm"}
  assert list(prm["groups"]) == ["plays", "slips", "all"]
  score, label = (
    np.concatenate([getattr(line, name) for line in found.lines["prm"]])
    for name in ("score", "label")
  )
  np.testing.assert_array_equal(
    label, np.concatenate([line.label for line in (*lines, long)])
  )
  assert prm["steps"] == len(label)
  area = step_metrics.auroc(score, label)
  assert prm["auroc"]["value"] == pytest.approx(area)
  assert prm["groups"]["all"]["wrong_steps"] == 10


def test_lines_without_a_label_judge_nothing(opened):
  lines = [
    dataclasses.replace(line, label=np.full(len(line.steps), -1, np.float32))
    for line in _labelled(opened, 2)
  ]
  with pytest.raises(UserError, match="no labelled step to judge the PRM by"):
    calibration_job.against_labels(opened, lines, seed=0)


def test_v_is_judged_by_the_plays_of_a_player(opened):
  """A verifier that accepts every line: whoever plays, all is solved."""
  domain = make_domain(
    "tests.training.generous:Generous", opened.config.domain.options
  )
  generous = dataclasses.replace(opened, domain=domain)
  problems = held_out(
    domain, min_difficulty=2, max_difficulty=2, num_problems=4, seed=0
  )
  done = []
  for of, is_solved in ((opened, 0.0), (generous, 1.0)):
    found = calibration_job.against_play(
      of,
      problems,
      player="policy",
      num_states=1,
      num_plays=3,
      seed=0,
      on_progress=lambda *progress: done.append(progress),
    )
    value = found.summary["value"]
    assert value["mean_label"] == is_solved
    assert value["steps"] == 4
    assert value["mean_score"] == pytest.approx(
      np.mean([line.score[0] for line in found.lines["value"]])
    )
    # A number for each problem, from the network.
    assert len({float(line.score[0]) for line in found.lines["value"]}) > 1
  assert ("best_of_n", 4, 4) in done
  assert ("sample", 12, 12) in done


@dataclasses.dataclass(frozen=True)
class EvenStart(Countdown):
  """Solved are the lines whose first step has an even sum of letters."""

  def verify(self, problem, steps):
    is_even = sum(map(ord, steps[0])) % 2 == 0
    return Verdict(Outcome(int(not is_even)), float(is_even))


def test_v_in_mid_line_is_judged_from_there():
  """By a verifier that makes up its mind at the first step."""
  graphdef, params = tiny.network()
  config = ExperimentConfig(
    text=tiny.TEXT,
    model=tiny.MODEL,
    search=dataclasses.replace(tiny.SEARCH, num_lines=6, beam_width=2),
    evaluation=EvaluationConfig(batch_size=8),
  )
  loaded = Loaded(config, tiny.VOCABULARY, graphdef, params, step=0, meta={})
  opened = Opened(loaded, config, EvenStart(max_number=1))
  problems = tiny.PROBLEMS[:2]
  found = calibration_job.against_play(
    opened, problems, player="policy", num_states=20, num_plays=8, seed=0
  ).lines["value"]
  player = opened.player(for_evaluation(config.search, "best_of_n"), 8)
  jobs = [Job(problem, i) for i, problem in enumerate(problems)]
  expected = {
    (state.problem.key, state.value): sum(map(ord, state.steps[0])) % 2 == 0
    for played in player.play(params, jobs)
    for state in open_states(played)
    if state.steps
    # What was said in odd tokens may not fit in the usual ones.
    and len(tiny.VOCABULARY.encode("\n".join((*state.steps, ""))))
    + len(state.problem.prompt)
    <= 12 + 2 * 2
  }
  assert set(expected.values()) == {False, True}
  roots = [line for line in found if line.depth == 0]
  assert len(roots) == 2
  others = {
    (line.problem_key, line.score.item()): line.label.item()
    for line in found
    if line.depth > 0
  }
  assert others == expected
  assert {line.depth.item() for line in found} == {0, 1, 2}
  few = calibration_job.against_play(
    opened, problems, player="policy", num_states=2, num_plays=1, seed=0
  ).lines["value"]
  assert [line.depth.item() > 0 for line in few] == [False, True] * 2
  assert all(
    line.score.item() in {x for _, x in expected} for line in few[1::2]
  )


def test_few_states_of_each_problem_are_asked_for(opened):
  with pytest.raises(UserError, match=r"^--num-states 0: must be 1 or more$"):
    calibration_job.against_play(
      opened, [], player="policy", num_states=0, num_plays=1, seed=0
    )
