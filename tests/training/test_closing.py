"""The end of a run as its user sees it."""

import io
import json
import re
import types

from rich.console import Console

from qstar_jax.domains import splits
from qstar_jax.domains.countdown import Countdown
from qstar_jax.evaluation.opened import Solved
from qstar_jax.records import Outcome, Verdict
from qstar_jax.replay import ReplayReader
from qstar_jax.selfplay import plays
from qstar_jax.text.vocabulary import ByteVocabulary
from qstar_jax.training import closing

pytest_plugins = ["tests.training.micro_run"]

_ROWS = {
  "random weights": "random",
  "after the warm start": "warm_start",
  "after self-play": "self_play",
}


def _last_evaluations(run_dir):
  lines = (run_dir / "metrics.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  return {
    (record["phase"], record["searcher"]): record
    for record in records
    if record["kind"] == "evaluation"
  }


def test_the_table_has_the_last_evaluation_of_every_phase(micro_run):
  evaluations = _last_evaluations(micro_run.directory)
  printed = micro_run.finished.out
  for title, phase in _ROWS.items():
    (row,) = re.findall(rf"│ {title} .*│", printed)
    numbers = re.findall(r"[\d.]+", row.replace("%", " "))
    expected = []
    for searcher in ("greedy", "gumbel"):
      record = evaluations[phase, searcher]
      low, high = record["ci95"]
      expected += [
        f"{100 * record['top1']:.1f}",
        f"{100 * low:.0f}",
        f"{100 * high:.0f}",
        f"{record['tokens_per_problem']:.0f}",
      ]
    assert numbers == expected
  assert len(row) <= 80


def test_it_says_what_to_do_next(micro_run):
  printed = micro_run.finished.out
  assert f"learning curve: {micro_run.directory}/learning_curve.png" in printed
  assert f'qstar solve {micro_run.directory} "PROBLEM"' in printed
  picture = micro_run.directory / "learning_curve.png"
  assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_first_solved_problem_is_the_example(
  micro_run, micro_config, monkeypatch
):
  reader = ReplayReader(micro_run.directory / "replay")
  domain = Countdown(**micro_config.domain.options)
  problems = [domain.parse(reader[i].prompt.strip()) for i in range(3)]

  def solve(problems, searcher, seed):
    for i, outcome in enumerate([Outcome.WRONG, Outcome.CORRECT]):
      verdict = Verdict(outcome, float(outcome == Outcome.CORRECT), "no")
      steps = ("6 * 7 = 42",)
      result = plays.PlayResult(steps, verdict, 1.0, 1.0, 1, 1)
      yield Solved(result, reader[i], None)
    raise AssertionError("One example is enough.")

  opened = types.SimpleNamespace(
    config=micro_config,
    domain=domain,
    loaded=types.SimpleNamespace(vocabulary=ByteVocabulary()),
    solve=solve,
  )
  monkeypatch.setattr(closing, "open_checkpoint", lambda *_: opened)
  held_out = splits.HeldOut(problems, [], [])
  monkeypatch.setattr(splits, "held_out_by", lambda *_: held_out)
  stream = io.StringIO()
  console = Console(file=stream, width=80)
  closing.show(micro_config, micro_run.directory, console)
  printed = stream.getvalue()
  prompt = re.escape(problems[1].prompt.strip())
  assert re.search(rf"\* committed, N .*\n{prompt}  V=0\.\d\d\n", printed)
  assert re.search(r"\n6 \* 7 = 42\nAnswer: .*\nsolved\n", printed)


def test_no_example_is_solved(micro_run):
  # Nothing can be learnt in so few steps.
  printed = micro_run.finished.out
  assert "none of 8 held-out problems was solved" in printed
