"""`qstar evaluate` and `qstar solve` as their users see them."""

import json
import re

import pytest

from qstar_jax.cli.main import main

pytest_plugins = ["tests.training.micro_run"]

_KEYS = [
  *("searcher", "problems", "top1", "any", "mean", "ci95"),
  *("tokens_per_problem", "terminal_value", "seed", "checkpoint_step"),
  "failures",
]
# Accepts every line, as `tests.training.generous` says.
_GENEROUS = "tests.training.generous:Generous"


@pytest.fixture
def assert_refused(capsys):
  """Asserts that a command, in this process, fails with one line."""

  def check(command, *arguments, parts):
    assert main([command, *map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.startswith(f"qstar {command}: ")
    for part in parts:
      assert part in printed.err

  return check


def _last_evaluation(run_dir, searcher):
  lines = (run_dir / "metrics.jsonl").read_text().splitlines()
  records = map(json.loads, lines)
  return [r for r in records if r.get("searcher") == searcher][-1]


def test_evaluate_prints_one_json_object(qstar, micro_run):
  finished = qstar("evaluate", micro_run.directory, "--json")
  assert finished.code == 0
  assert finished.err == ""
  assert finished.out.count("\n") == 1
  summary = json.loads(finished.out)
  assert list(summary)[: len(_KEYS)] == _KEYS
  assert summary["searcher"] == "gumbel"
  assert summary["terminal_value"] == "value"
  assert set(summary["failures"]) == {"wrong", "unparseable", "timeout"}
  num_failures = sum(summary["failures"].values())
  assert num_failures == summary["problems"] * (1 - summary["top1"])
  # The same checkpoint, problems and seed as at the end of the run.
  record = _last_evaluation(micro_run.directory, "gumbel")
  for name in set(_KEYS) - {"seed", "checkpoint_step", "failures"}:
    assert summary[name] == record[name]
  assert summary["checkpoint_step"] == record["step"]


def test_evaluate_an_older_checkpoint_with_another_searcher(qstar, micro_run):
  steps = sorted(
    int(path.name) for path in (micro_run.directory / "checkpoints").iterdir()
  )
  finished = qstar(
    *("evaluate", micro_run.directory / "checkpoints" / str(steps[0])),
    *("--searcher", "greedy", "--seed", 7, "--json"),
  )
  assert finished.code == 0, finished.err
  summary = json.loads(finished.out)
  assert summary["checkpoint_step"] == steps[0]
  assert (summary["searcher"], summary["seed"]) == ("greedy", 7)


def test_evaluate_shows_a_table(qstar, micro_run):
  finished = qstar(
    *("evaluate", micro_run.directory, "--searcher", "greedy"),
    *("--terminal-value", "outcome"),
  )
  assert finished.code == 0
  assert finished.err == ""
  names = re.findall(r"^│ (\w+) ", finished.out, re.MULTILINE)
  assert names[: len(_KEYS)] == _KEYS
  assert re.search(r"│ terminal_value +│ outcome ", finished.out)


def test_evaluate_real_puzzles(qstar, micro_run, data_dir):
  finished = qstar(
    *("evaluate", micro_run.directory, "--domain", "game24"),
    *("--problems", data_dir / "game24" / "24.csv", "--rows", "900:908"),
    *("--searcher", "gumbel", "--json"),
  )
  assert finished.code == 0, finished.err
  summary = json.loads(finished.out)
  assert list(summary)[: len(_KEYS)] == _KEYS
  assert summary["problems"] == 8


@pytest.fixture
def problem_file(tmp_path):
  path = tmp_path / "problems.txt"
  path.write_text("1 2 3 -> 6\n" * 7 + "\n4 5 6 -> 7\n2 2 x -> 4\n")
  return path


@pytest.mark.parametrize(
  ("options", "parts"),
  [
    (["--searcher", "foo"], ["'foo'", "known", "gumbel, puct, greedy"]),
    (["--domain", "chess"], ["'chess'", "arithmetic, countdown, game24"]),
    (["--domain", "game24"], ["game24", "--problems"]),
    (["--rows", "1:3"], ["1:3", "--problems"]),
    (["--problems", "FILE", "--rows", "5:19"], ["'5:19'", "rows 0 to 8"]),
    (["--problems", "FILE", "--rows", "one"], ["'one'", "start:end"]),
    (["--problems", "FILE"], ["line 10", "'x'"]),
    (["--problems", "FILE.csv"], ["FILE.csv", "there is no file"]),
    (["--search.num-simulation", "3"], ["num-simulation"]),
    (["--model.num-layers", "3"], ["model.num_layers is 3", "has 1"]),
    (["--mesh.data", "2"], ["(2, 1, 1)", "8 devices"]),
  ],
)
def test_evaluate_refuses(
  assert_refused, micro_run, problem_file, options, parts
):
  options, parts = (
    [text.replace("FILE", str(problem_file)) for text in texts]
    for texts in (options, parts)
  )
  assert_refused(
    "evaluate", micro_run.directory, "--json", *options, parts=parts
  )


def test_evaluate_rows_before_a_bad_one(qstar, micro_run, problem_file):
  finished = qstar(
    *("evaluate", micro_run.directory, "--searcher", "greedy", "--json"),
    *("--problems", problem_file, "--rows", ":8"),
  )
  assert finished.code == 0, finished.err
  assert json.loads(finished.out)["problems"] == 8


def test_calibrate_writes_what_it_prints(qstar, micro_run, tmp_path):
  arguments = ("calibrate", micro_run.directory, "--num-plays", 2)
  finished = qstar(
    *(*arguments, "--player", "policy", "--search.num-lines", 3),
    *("--out", tmp_path / "out", "--json"),
  )
  assert finished.code == 0, finished.err
  assert finished.err == ""
  summary = json.loads(finished.out)
  written = (tmp_path / "out" / "calibration.json").read_text()
  assert json.loads(written) == summary
  prm, value = summary["prm"], summary["value"]
  # Three lines of each held-out problem; the problem itself, and steps of them.
  assert (prm["problems"], prm["lines"]) == (8, 24)
  assert value["problems"] == 8 <= value["steps"]
  assert value["against"] == "2 plays by policy"
  records = (tmp_path / "out" / "steps.jsonl").read_text().splitlines()
  assert len(records) == prm["steps"] + value["steps"]
  assert {json.loads(record)["of"] for record in records} == {"prm", "value"}


def test_calibrate_shows_a_table(qstar, micro_run):
  finished = qstar(
    *("calibrate", micro_run.directory, "--num-plays", 1),
    *("--evaluation.num-problems", 2, "--search.num-lines", 2),
  )
  assert finished.code == 0, finished.err
  assert finished.err == ""
  assert re.search(r"^  PRM +(all|1) ", finished.out, re.MULTILINE)
  assert re.search(r"^  V +0 +2 ", finished.out, re.MULTILINE)
  assert "V against 1 plays by self_play" in finished.out


@pytest.mark.parametrize(
  ("options", "parts"),
  [
    (["--num-plays", "0"], ["--num-plays 0", "1 or more"]),
    (["--num-states", "0"], ["--num-states 0", "1 or more"]),
    (["--rows", "1:3"], ["1:3", "--problems"]),
    (["--search.num-line", "3"], ["num-line"]),
    (["--out", "FILE/out"], ["FILE"]),
  ],
)
def test_calibrate_refuses(
  assert_refused, micro_run, problem_file, options, parts
):
  problem_file.write_text("1 2 3 -> 6\n")
  options, parts = (
    [text.replace("FILE", str(problem_file)) for text in texts]
    for texts in (options, parts)
  )
  assert_refused("calibrate", micro_run.directory, *options, parts=parts)


@pytest.mark.parametrize("command", ["evaluate", "solve", "calibrate"])
def test_no_run(assert_refused, tmp_path, command):
  argument = ["1 2 3 -> 6"] if command == "solve" else []
  parts = [f"{tmp_path}/run", "qstar train"]
  assert_refused(command, tmp_path / "run", *argument, parts=parts)


def test_solve_says_if_it_fails(qstar, micro_run):
  """Nothing can be learnt in so few steps."""
  finished = qstar("solve", micro_run.directory, "1 2 3 -> 6")
  assert finished.code == 1
  assert finished.err == ""
  *_, answer, end = finished.out.splitlines()
  assert answer.startswith("Answer: ")
  assert end.startswith("not solved: ")


def test_solve_shows_steps_answer_and_tree(qstar, micro_run):
  finished = qstar(
    *("solve", micro_run.directory, "1 2 3 -> 6", "--show-tree"),
    *("--domain", _GENEROUS, "--seed", 3, "--searcher", "gumbel"),
  )
  assert finished.code == 0, finished.err
  assert finished.err == ""
  legend, root, *_, answer, end = finished.out.splitlines()
  assert legend.startswith("* committed, N visits")
  assert root.startswith("1 2 3 -> 6  V=")
  assert answer.startswith("Answer: ")
  assert end == "solved"


def test_solve_writes_its_tree(qstar, micro_run, tmp_path):
  page, data = tmp_path / "tree.html", tmp_path / "tree.json"
  page.write_text("an older page")
  finished = qstar(
    *("solve", micro_run.directory, "1 2 3 -> 6", "--searcher", "astar"),
    *("--seed", 5, "--show-tree", "--tree", page, "--save-tree", data),
  )
  assert finished.code == 1
  assert finished.err == ""
  lines = finished.out.splitlines()
  assert lines[0].startswith("* committed, N visits")
  tree = json.loads(data.read_text())
  assert (tree["problem"], tree["searcher"], tree["seed"]) == (
    *("1 2 3 -> 6", "astar", 5),
  )
  assert lines[-1] == f"not solved: {tree['solution']['reason']}"
  assert sum(candidate["committed"] for candidate in tree["candidates"]) == (
    len(tree["solution"]["steps"])
  )
  assert json.dumps(tree).replace("<", r"\u003c") in page.read_text()
  assert sorted(tmp_path.iterdir()) == [page, data]


@pytest.mark.parametrize("option", ["--tree", "--save-tree"])
def test_solve_refuses_a_file_before_it_searches(
  assert_refused, micro_run, tmp_path, option
):
  """It has not even read the problem."""
  arguments = ("solve", micro_run.directory, "no problem", option)
  assert_refused(*arguments, tmp_path, parts=[str(tmp_path), "a directory"])
  missing = tmp_path / "missing"
  assert_refused(*arguments, missing / "tree", parts=[f"{missing} is no"])


def test_solve_says_if_its_tree_cannot_be_written(qstar, micro_run, tmp_path):
  page = tmp_path / "tree.html"
  finished = qstar(
    *("solve", micro_run.directory, "1 2 3 -> 6", "--tree", page),
    max_file_bytes=1000,
  )
  assert finished.code == 2
  assert finished.err.startswith(f"qstar solve: {tmp_path} cannot be written")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("problem", "options", "parts"),
  [
    ("1 2 three -> 6", [], ["'three'", "integer", "3 5 9 -> 42"]),
    ("4 9 10 13", [], ["target", "3 5 9 -> 42"]),
    ("", [], ["3 5 9 -> 42"]),
    ("1 2 3 -> 6", ["--searcher", "foo"], ["'foo'", "gumbel, puct, greedy"]),
    ("100 200 300 400 -> 600", [], ["text.max_prompt_tokens = 18"]),
  ],
)
def test_solve_refuses(assert_refused, micro_run, problem, options, parts):
  assert_refused("solve", micro_run.directory, problem, *options, parts=parts)


@pytest.mark.parametrize(
  ("config", "parts"),
  [
    ("tiny", ["'tiny'", "did you mean tiny_cpu?", "game24_smoke"]),
    ("nowhere.yaml", ["nowhere.yaml", "no such file"]),
  ],
)
def test_train_refuses(assert_refused, config, parts):
  assert_refused("train", config, parts=parts)
