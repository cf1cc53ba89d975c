"""`qstar label` as its users see it."""

import json
import signal
import subprocess
import sys

import pytest

from qstar_jax.cli.main import main
from qstar_jax.domains.countdown import Countdown
from qstar_jax.labels.codec import LINES
from qstar_jax.replay import ReplayReader
from qstar_jax.store.reader import StoreReader
from tests.store.instants import contents

pytest_plugins = ["tests.training.micro_run"]

NUM_TREES = 48


@pytest.fixture
def out(tmp_path):
  return tmp_path / "labels"


def test_checked_steps_of_a_run(qstar, micro_run, out):
  finished = qstar(
    "label", micro_run.directory, "--source", "checked", "--out", out
  )
  assert (finished.code, finished.err) == (0, "")
  lines = list(StoreReader(out, LINES))
  counts = json.loads((out / "counts.json").read_text())
  assert counts["items"] == NUM_TREES
  assert counts["lines"] == len(lines) > 10
  assert finished.out == (
    f"{out}: {len(lines)} lines with {counts['labelled_steps']} labelled "
    f"steps, of {NUM_TREES} of {NUM_TREES} trees\n"
  )
  domain = Countdown()
  for line in lines:
    *before, last = line.steps
    check = domain.check_step(domain.parse(line.prompt), tuple(before), last)
    # So young a network solves nothing, and each line ends with its mistake.
    assert line.label[-1] == 0
    assert not check.is_legal or check.is_terminal or line.is_finished
  before = contents(out)
  again = qstar(
    "label", micro_run.directory, "--source", "checked", "--out", out
  )
  assert (again.code, again.err) == (0, "")
  said = f"{out}: process 0 had nothing left to do"
  assert again.out.splitlines() == [said, finished.out.rstrip()]
  assert contents(out) == before


def test_tree_q_of_a_store(qstar, micro_run, out):
  finished = qstar(
    *("label", micro_run.directory / "replay", "--source", "tree_q"),
    *("--out", out, "--limit", 20),
  )
  assert (finished.code, finished.err) == (0, "")
  assert finished.out.endswith("of 20 of 20 trees\n")
  trees = ReplayReader(micro_run.directory / "replay")
  versions = {f"actor 0, tree {t.sequence}": t.params_version for t in trees}
  lines = list(StoreReader(out, LINES))
  assert len(lines) > 3
  for line in lines:
    assert line.params_version == versions[line.origin]
    assert int(line.origin.split()[-1]) < 20


def _label(micro_run, out, process=0, num_processes=1):
  return [
    *("label", micro_run.directory, "--source", "checked", "--out", out),
    *("--shard-lines", 5, "--num-processes", num_processes),
    *("--process", process),
  ]


def test_processes_side_by_side(qstar, micro_run, out, tmp_path):
  """As many as begin at once agree on the job, and end with one dataset."""
  code = "import sys; from qstar_jax.cli.main import main; sys.exit(main())"
  running = [
    subprocess.Popen(
      [
        *(sys.executable, "-c", code),
        *map(str, _label(micro_run, out, process, 2)),
      ],
      stderr=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      text=True,
    )
    for process in range(2)
  ]
  for process in running:
    _, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
  one = tmp_path / "one"
  assert qstar(*_label(micro_run, one)).code == 0
  counts = [(path / "counts.json").read_text() for path in (out, one)]
  assert counts[0] == counts[1]
  texts = [
    sorted((line.origin, line.steps) for line in StoreReader(path, LINES))
    for path in (out, one)
  ]
  assert texts[0] == texts[1]


@pytest.mark.parametrize(
  ("number", "code"),
  [(signal.SIGTERM, 75), (signal.SIGINT, 75), (signal.SIGKILL, -9)],
)
@pytest.mark.parametrize("at", [20, 50])
def test_stopped_and_run_again(
  qstar, micro_run, out, tmp_path, number, code, at
):
  fault = {"folder": str(out), "at": at, "delay": 0.0, "signal": number}
  stopped = qstar(*_label(micro_run, out), fault=fault)
  assert stopped.code == code
  if code == 75:
    assert stopped.err.endswith("The same command goes on from there.\n")
    assert stopped.err.count("\n") == 1
  assert qstar(*_label(micro_run, out)).code == 0
  assert qstar(*_label(micro_run, tmp_path / "other")).code == 0
  assert contents(out) == contents(tmp_path / "other")


@pytest.mark.parametrize(
  ("options", "parts"),
  [
    (["--source", "prayer"], ["'prayer'", "checked, tree_q, rollouts_soft"]),
    (["--process", "2", "--num-processes", "2"], ["--process 2", "0 to 1"]),
    (["--process", "-1"], ["--process -1", "0 to 0"]),
    (["--num-processes", "0"], ["--num-processes 0", "1 or more"]),
    (["--limit", "0"], ["--limit 0", "1 or more"]),
    (["--shard-lines", "-5"], ["--shard-lines -5", "1 or more"]),
    (["--out", "RUN"], ["but no job.json", "empty directory"]),
  ],
)
def test_refused(micro_run, out, capsys, options, parts):
  options = [o.replace("RUN", str(micro_run.directory)) for o in options]
  argv = ["label", str(micro_run.directory), "--source", "checked"]
  assert main([*argv, "--out", str(out), *options]) == 2
  printed = capsys.readouterr()
  assert printed.out == ""
  assert printed.err.count("\n") == 1, printed.err
  for part in ["qstar label: ", *parts]:
    assert part in printed.err
  assert not out.exists()


def test_another_job_in_the_directory(qstar, micro_run, out):
  assert qstar(*_label(micro_run, out)).code == 0
  before = contents(out)
  refused = qstar(*_label(micro_run, out, num_processes=2))
  assert refused.code == 2
  assert "num_processes is 2, was 1" in refused.err
  assert refused.err.count("\n") == 1
  assert contents(out) == before


def test_no_run_and_no_trees(micro_run, out, tmp_path, capsys):
  (tmp_path / "young" / "replay").mkdir(parents=True)
  config = (micro_run.directory / "config.json").read_text()
  (tmp_path / "young" / "config.json").write_text(config)
  for name, part in (("nowhere", "qstar train"), ("young", "no trees yet")):
    argv = ["label", str(tmp_path / name), "--source", "checked"]
    assert main([*argv, "--out", str(out)]) == 2
    printed = capsys.readouterr()
    assert part in printed.err
    assert printed.err.count("\n") == 1
  assert not out.exists()
