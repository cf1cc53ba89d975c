"""What a run shows: lines, a live view, TensorBoard."""

import contextlib
import io
import json
import os
import re
import threading
import time
import types

import pytest
from rich.console import Console

from qstar_jax.config import ExperimentConfig
from qstar_jax.training import displays
from qstar_jax.training.displays import LiveDisplay, RunStatus, format_duration
from qstar_jax.training.metrics_log import FILE_NAME, read_metrics
from qstar_jax.training.reporting import Reporter

CONFIG = ExperimentConfig(name="[red]tiny[/red]", num_iterations=12)
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


def warm_start(step):
  return {"kind": "warm_start", "step": step, "loss": 2.5, "policy": 2.0}


def iteration(number, **fields):
  return {
    "kind": "iteration",
    "iteration": number,
    "step": 300 + 64 * number,
    "solve_rate": 0.41,
    "loss": 1.2345678,
    "tokens_per_second": 8123.4,
    "seconds_play": 20.0,
    "seconds_learn": 10.0,
    **fields,
  }


def evaluation(step, phase, searcher, top1):
  return {
    "kind": "evaluation",
    "step": step,
    "phase": phase,
    "searcher": searcher,
    "top1": top1,
    "ci95": [top1 - 0.04, top1 + 0.04],
    "any": 0.9,
    "tokens_per_problem": 1210.0,
    "terminal_value": "value",
  }


def report_run(reporter):
  reporter.log(evaluation(0, "random", "greedy", 0.04))
  reporter.progress("warm_start", 100, 300, loss=2.0)
  reporter.log(warm_start(300))
  reporter.log(evaluation(300, "warm_start", "greedy", 0.3))
  for number in range(1, 4):
    reporter.progress("self_play", 128, 256)
    reporter.log(iteration(number))
  reporter.log(evaluation(492, "self_play", "greedy", 0.55))
  reporter.log(evaluation(492, "self_play", "gumbel", 0.86))


def all_records(tmp_path):
  with Reporter(tmp_path, config=CONFIG, stream=io.StringIO()) as reporter:
    report_run(reporter)
  return read_metrics(tmp_path)


@pytest.fixture
def clock(monkeypatch):
  """The displays' clock, in seconds; stands still unless it is moved."""
  now = types.SimpleNamespace(seconds=0.0)
  monkeypatch.setattr(
    displays, "time", types.SimpleNamespace(monotonic=lambda: now.seconds)
  )
  return now


def test_a_line_for_each_record(tmp_path):
  stream = io.StringIO()
  with Reporter(tmp_path, config=CONFIG, stream=stream) as reporter:
    report_run(reporter)
  lines = stream.getvalue().splitlines()
  assert len(lines) == len(read_metrics(tmp_path)) == 8
  assert "\x1b" not in stream.getvalue()
  assert lines[1] == "warm_start step=300 loss=2.5 policy=2 elapsed=0s"
  assert lines[5] == (
    "iteration 3/12 step=492 solve_rate=0.41 loss=1.235 tokens/s=8123 "
    "seconds_play=20 seconds_learn=10 elapsed=0s eta=4m30s"
  )
  assert lines[7] == (
    "evaluation step=492 phase=self_play searcher=gumbel top1=0.86 "
    "ci95=[0.82,0.9] any=0.9 tokens_per_problem=1210 terminal_value=value "
    "elapsed=0s eta=4m30s"
  )


def test_a_long_phase_tells_of_itself_every_thirty_seconds(tmp_path, clock):
  stream = io.StringIO()
  with Reporter(tmp_path, config=CONFIG, stream=stream) as reporter:
    for clock.seconds in range(100):
      reporter.progress("self_play", clock.seconds, 100, loss=0.123456)
      if clock.seconds == 40:
        reporter.log(warm_start(1))
  assert [
    line.partition(" elapsed")[0] for line in stream.getvalue().splitlines()
  ] == [
    "progress self_play 30/100 loss=0.1235",
    "warm_start step=1 loss=2.5 policy=2",
    "progress self_play 70/100 loss=0.1235",
  ]


def test_json_only_shows_the_lines_of_the_file(tmp_path):
  stream = io.StringIO()
  with Reporter(
    tmp_path, config=CONFIG, stream=stream, is_terminal=True, json_only=True
  ) as reporter:
    report_run(reporter)
    reporter.log(iteration(4, loss=float("nan")))
  assert stream.getvalue() == (tmp_path / FILE_NAME).read_text()
  last = json.loads(stream.getvalue().splitlines()[-1])
  assert last["loss"] is None and last["non_finite"] == ["loss"]


@pytest.mark.parametrize("step", [-1, 0, 364, 10_000])
def test_what_was_reported_before_a_kill_is_not_reported_twice(tmp_path, step):
  records = all_records(tmp_path)
  with Reporter(tmp_path, config=CONFIG, stream=io.StringIO()) as reporter:
    reporter.truncate(step)
    kept = read_metrics(tmp_path)
    assert kept == [r for r in records if r["step"] <= step]
    for record in records[len(kept) :]:
      reporter.log(record)
  assert without_time(read_metrics(tmp_path)) == without_time(records)


def without_time(records):
  return [{**r, "time": 0, "minutes": 0} for r in records]


def test_time_left_follows_the_mean_iteration():
  minutes = [0.0]
  status = RunStatus(CONFIG, lambda: minutes[0])
  assert status.seconds_left() is None
  status.add(iteration(1) | {"minutes": 2.0})
  minutes[0] = 2.0
  assert status.seconds_left() == 11 * 30
  status.add(iteration(2, seconds_play=None, seconds_save=80) | {"minutes": 3})
  minutes[0] = 3.5
  assert status.seconds_left() == 10 * 60 - 30
  minutes[0] = 100.0
  assert status.seconds_left() == 0


@pytest.mark.parametrize(
  ("seconds", "text"),
  [
    (0.4, "0s"),
    (59.7, "1m00s"),
    (130, "2m10s"),
    (3599.6, "1h00m"),
    (90061, "25h01m"),
  ],
)
def test_durations(seconds, text):
  assert format_duration(seconds) == text


def live_view(width, records):
  status = RunStatus(CONFIG, lambda: 1.5)
  status.reset(records)
  display = LiveDisplay(io.StringIO(), status)
  display.progress("self_play", 128, 256, {"loss": 0.5})
  console = Console(file=io.StringIO(), width=width)
  console.print(display)
  return console.file.getvalue().splitlines()


def test_the_live_view_tells_all(tmp_path):
  view = "\n".join(live_view(100, all_records(tmp_path)))
  for part in (
    r"\[red\]tiny\[/red\]",
    r"iteration +3/12 +━",
    r"self-play +128/256 +━",
    r"time +1m30s, 3m00s left",
    r"losses +loss=1.235",
    r"41\.0 % solved, 8123 tokens/s",
    r"random +greedy +4\.0 +0\.0 to 8\.0",
    r"warm-start +greedy +30\.0 +26\.0 to 34\.0",
    r"self-play +gumbel +86\.0 +82\.0 to 90\.0 +90\.0 +1210 +value",
  ):
    assert re.search(part, view), part


def test_a_trial_is_seen(tmp_path):
  trial = {"decision": "accepted", "wins": 30, "losses": 11, "ties": 9}
  with Reporter(tmp_path, config=CONFIG, stream=io.StringIO()) as reporter:
    reporter.log({"kind": "trial", "step": 7, "rating": 61.2, **trial})
  view = "\n".join(live_view(80, read_metrics(tmp_path)))
  expected = r"gate +accepted, 30 wins 11 losses 9 ties, rating \+61"
  assert re.search(expected, view)


def test_a_warning_is_seen(tmp_path):
  record = {"kind": "warning", "step": 7, "message": "[b]it[/b] drifts"}
  stream = io.StringIO()
  with Reporter(tmp_path, config=CONFIG, stream=stream) as reporter:
    reporter.log(record)
  (line,) = stream.getvalue().splitlines()
  assert line == "warning step=7 message=[b]it[/b] drifts elapsed=0s"
  view = "\n".join(live_view(60, read_metrics(tmp_path)))
  assert re.search(r"warning +step 7: \[b\]it\[/b\] drifts", view)


@pytest.mark.parametrize("width", [1, 8, 20, 30, 40, 60, 80, 200])
@pytest.mark.parametrize("has_records", [False, True])
def test_the_live_view_fits_narrow_terminals(tmp_path, width, has_records):
  records = all_records(tmp_path) if has_records else []
  lines = live_view(width, records)
  assert max(map(len, lines)) <= width
  assert any("━" in line for line in lines) == (width > 40)
  if width >= 30:
    assert has_records == any(
      re.search(r"gumbel +86\.0", line) for line in lines
    )


@contextlib.contextmanager
def terminal():
  """(what to write to, function that returns all that was written)."""
  master, slave = os.openpty()
  shown = []

  def drain():
    with contextlib.suppress(OSError):
      while part := os.read(master, 65536):
        shown.append(part)

  reader = threading.Thread(target=drain)
  reader.start()

  def read_all():
    stream.close()
    reader.join()
    return b"".join(shown).decode()

  stream = os.fdopen(slave, "w")
  yield stream, read_all
  stream.close()
  reader.join()
  os.close(master)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, None])
def test_the_terminal_gets_its_cursor_back(tmp_path, monkeypatch, error):
  monkeypatch.setenv("TERM", "xterm-256color")
  raises = pytest.raises(error) if error else contextlib.nullcontext()
  with terminal() as (stream, read_all):
    with raises, Reporter(tmp_path, config=CONFIG, stream=stream) as reporter:
      report_run(reporter)
      if error:
        raise error
    shown = read_all()
  assert shown.startswith(HIDE_CURSOR)
  assert shown.rstrip().endswith(SHOW_CURSOR)
  assert shown.count(HIDE_CURSOR) == shown.count(SHOW_CURSOR) == 1
  # What stays is the newest state, and no phase is under way any more.
  last_view = shown.rpartition("\x1b[2K")[2]
  assert re.search(r"gumbel +86\.0", last_view)
  assert "128/256" not in last_view


def test_the_live_view_is_drawn_at_most_four_times_a_second(
  tmp_path, monkeypatch
):
  monkeypatch.setenv("TERM", "xterm-256color")
  start = time.monotonic()
  with terminal() as (stream, read_all):
    with Reporter(tmp_path, config=CONFIG, stream=stream) as reporter:
      while time.monotonic() < start + 0.9:
        reporter.progress("learn", 1, 2)
    seconds = time.monotonic() - start
    num_views = read_all().count("1/2") + 1  # The first has no phase yet.
  assert 2 <= num_views <= 4 * seconds + 2


def test_a_dumb_terminal_gets_lines(tmp_path, monkeypatch):
  monkeypatch.setenv("TERM", "dumb")
  with terminal() as (stream, read_all):
    with Reporter(tmp_path, config=CONFIG, stream=stream) as reporter:
      reporter.log(warm_start(5))
    shown = read_all()
  assert shown.startswith("warm_start step=5") and "\x1b" not in shown


def test_a_resumed_run_shows_its_earlier_evaluations(tmp_path):
  all_records(tmp_path)
  stream = io.StringIO()
  with Reporter(tmp_path, config=CONFIG, stream=stream, is_terminal=True) as (
    reporter
  ):
    reporter.truncate(364)
  view = stream.getvalue().rpartition("\x1b[2K")[2]
  assert re.search(r"iteration.*1/12", view)
  assert re.search(r"greedy +30\.0", view) and "gumbel" not in view


def test_tensorboard_has_the_numbers_and_hides_what_is_run_again(tmp_path):
  # Its summary iterator is the one reader at hand that is not of tensorboardX.
  import tensorflow as tf

  all_records(tmp_path)
  with Reporter(tmp_path, config=CONFIG, stream=io.StringIO()) as reporter:
    reporter.truncate(364)
    reporter.log(iteration(2, loss=float("nan")))
  scalars, restarts = {}, []
  for file in sorted((tmp_path / "tensorboard").iterdir()):
    assert "tfevents" in file.name
    events = tf.compat.v1.train.summary_iterator(str(file))
    for event in events:
      if event.HasField("session_log"):
        restarts.append((event.step, event.session_log.status))
      for value in event.summary.value:
        scalars.setdefault(value.tag, []).append(
          (event.step, round(value.simple_value, 4))
        )
  assert restarts == [(365, 1)]  # START
  assert scalars["iteration/loss"] == [
    (364, 1.2346),
    (428, 1.2346),
    (492, 1.2346),
  ]
  assert scalars["iteration/solve_rate"][-1] == (428, 0.41)
  assert scalars["evaluation_greedy/top1"] == [
    (0, 0.04),
    (300, 0.3),
    (492, 0.55),
  ]
  assert scalars["evaluation_gumbel/top1"] == [(492, 0.86)]
  assert {"iteration/time", "iteration/step"}.isdisjoint(scalars)
