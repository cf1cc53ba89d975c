"""The picture of a run."""

import pytest

from qstar_jax.errors import UserError
from qstar_jax.training.learning_curve import (
  draw,
  draw_ladder,
  ladder,
  learning_curve,
)
from qstar_jax.training.metrics_log import MetricsLog


def evaluation(minutes, searcher, top1, **fields):
  record = {"kind": "evaluation", "step": 0, "time": 0, "minutes": minutes}
  record |= {"phase": "random", "searcher": searcher, "top1": top1}
  return record | {"ci95": [top1, top1], **fields}


def learner(kind, minutes, **fields):
  record = {"kind": kind, "step": 0, "time": 0, "minutes": minutes}
  return record | {"iteration": 1, **fields}


def curves(axes):
  """Points of every labelled or unlabelled line that has any, by label."""
  return {
    line.get_label(): list(zip(*line.get_data(), strict=True))
    for line in axes.get_lines()
    if len(line.get_xdata())
  }


def test_the_picture_has_what_was_reported():
  figure = draw(
    [
      evaluation(0.5, "greedy", 0.1, tokens_per_problem=24.0),
      learner("warm_start", 1.0, policy=2.0),
      learner("warm_start", 2.0, policy=1.0),
      evaluation(2.5, "greedy", 0.3, tokens_per_problem=25.0),
      evaluation(
        2.5, "gumbel", 0.6, tokens_per_problem=1210.0, terminal_value="value"
      ),
      learner("iteration", 3.0, solve_rate=0.5, policy=0.5, value=None),
    ],
    "tiny",
  )
  accuracy, losses = figure.axes
  assert figure.get_suptitle() == "tiny"
  assert curves(accuracy) | {
    "greedy (25 tokens/problem, terminal value: -)": [(0.5, 10), (2.5, 30)],
    "gumbel (1210 tokens/problem, terminal value: value)": [(2.5, 60)],
    "solved in self-play (training problems)": [(3, 50)],
  } == curves(accuracy)
  assert curves(losses)["policy"] == [(3, 0.5)]
  assert [(1, 2), (2, 1)] in curves(losses).values()
  assert "value" not in curves(losses)
  (mark,) = accuracy.texts
  assert (mark.get_text(), mark.xy[0]) == ("end of warm start", 2.0)


def test_tokens_stand_above_their_minutes():
  records = [
    learner("iteration", minutes, solve_rate=0.5, tokens=tokens)
    for minutes, tokens in ((2.0, 1e6), (4.0, 2e6), (10.0, 5e6))
  ]
  accuracy, _, above = draw(records, "tiny").axes
  assert above.get_xlim() == accuracy.get_xlim()
  texts = [tick.get_text() for tick in above.get_xticklabels()]
  assert texts == ["1", "2", "3", "4", "5"]
  assert above.get_xticks().tolist() == pytest.approx([2, 4, 6, 8, 10])


def test_intervals_are_drawn():
  records = [evaluation(m, "greedy", 0.5, ci95=[0.4, 0.6]) for m in (0, 1)]
  accuracy, _ = draw(records, "tiny").axes
  bars = accuracy.collections[0].get_segments()
  assert [bar.tolist() for bar in bars] == (
    [[[m, 40], [m, 60]] for m in (0.0, 1.0)]
  )


@pytest.mark.parametrize(
  "records",
  [
    [{"kind": "other", "step": 0}],
    [{"kind": "warm_start", "step": 0, "policy": 0.0}],
    [
      {
        "kind": "evaluation",
        "step": 0,
        "phase": "random",
        "searcher": "$^^$",
        "top1": top1,
        "ci95": [float("nan"), 0.0],
      }
      for top1 in (float("nan"), 0.5)
    ],
    [
      {"kind": "iteration", "step": 1, "iteration": 1, "policy": float("nan")},
      {"kind": "iteration", "step": 2, "iteration": 2, "policy": "text"},
    ],
  ],
)
def test_few_points_and_odd_ones_make_a_picture(tmp_path, records):
  run_dir = tmp_path / "run $^^$"
  run_dir.mkdir()
  log = MetricsLog(run_dir)
  for record in records:
    log.append(record)
  path = learning_curve(run_dir)
  assert path == run_dir / "learning_curve.png"
  assert path.read_bytes().startswith(b"\x89PNG")
  assert sorted(p.name for p in run_dir.iterdir()) == (
    ["learning_curve.png", "metrics.jsonl"]
  )


def test_a_run_without_metrics_has_no_picture(tmp_path):
  with pytest.raises(UserError, match=r"no record in metrics\.jsonl"):
    learning_curve(tmp_path)


def test_garbage_is_named(tmp_path):
  (tmp_path / "metrics.jsonl").write_text("garbage\n")
  with pytest.raises(UserError, match=r"metrics\.jsonl, line 1"):
    learning_curve(tmp_path)


def test_the_ladder_has_a_line_for_every_evaluation(tmp_path):
  rungs = [
    learner("ladder", 0.0, budget=budget, top1=top1) | {"step": step}
    for step, budget, top1 in (
      (0, 64, 0.1),
      (0, 256, None),
      (9, 64, 0.5),
      (9, 256, 0.75),
    )
  ]
  (axes,) = draw_ladder(rungs, "tiny").axes
  assert curves(axes) == {
    "step 0": [(64, 10)],
    "step 9": [(64, 50), (256, 75)],
  }
  log = MetricsLog(tmp_path)
  log.append({"kind": "warm_start", "step": 1})
  assert ladder(tmp_path) is None
  log.append(
    {"kind": "ladder", "step": 2, "budget": 8, "top1": 0.5, "ci95": [0, 1]}
  )
  assert ladder(tmp_path).read_bytes().startswith(b"\x89PNG")


def test_a_gate_has_a_panel_of_its_own():
  trials = [
    learner("trial", minutes, decision=decision, rating=rating)
    for minutes, decision, rating in (
      (1.0, "open", 0.0),
      (2.0, "accepted", 80.0),
      (3.0, "refused", 80.0),
    )
  ]
  _, _, rating = draw([evaluation(0.5, "greedy", 0.1), *trials], "gated").axes
  (steps,) = rating.get_lines()
  assert list(steps.get_ydata()) == [0, 80, 80]
  points = {
    dots.get_label(): dots.get_offsets().tolist() for dots in rating.collections
  }
  assert points == {
    "accepted": [[2, 80]],
    "refused, or no result": [[1, 0], [3, 80]],
  }
