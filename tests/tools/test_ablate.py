"""The comparison of a study's arms: a small one, and its table by hand."""

import json
import os
import shlex
import signal
import sys

import numpy as np
import pytest
import yaml

from qstar_jax import configuration
from tools import ablate

pytest_plugins = ["tests.training.micro_run"]


@pytest.fixture
def study(tmp_path, micro_yaml):
  path = tmp_path / "study.yaml"
  content = {
    "config": str(micro_yaml),
    "options": "--num-iterations 1 --evaluation.num-problems 0",
    "seeds": [0, 1],
    "evaluate": "--searcher greedy,gumbel --evaluation.num-problems 4",
    "arms": {"reference": None, "no PRM!": "--learner.losses.prm 0"},
  }
  path.write_text(yaml.safe_dump(content, sort_keys=False))
  return path


def test_every_arm_is_trained_and_evaluated_once(
  study, qstar, tmp_path, monkeypatch, capsys
):
  commands = []

  def run(command):
    commands.append(command[0])
    return qstar(*command).code

  monkeypatch.setattr(ablate, "qstar", run)
  out = tmp_path / "out"
  ablate.main([str(study), "--out", str(out), "--arms", "no PRM!"])
  assert commands == ["train", "evaluate"] * 2
  assert not (out / "ablation.md").exists()
  commands.clear()
  ablate.main([str(study), "--out", str(out)])
  # What is there is looked at again, and not evaluated.
  assert commands == ["train", "evaluate", "train"] * 2
  rows = json.loads((out / "ablation.json").read_text())
  assert [(row["arm"], row["searcher"]) for row in rows] == [
    (arm, searcher)
    for arm in ("reference", "no PRM!")
    for searcher in ("greedy", "gumbel")
  ]
  assert all(row["iterations"] == 1 and row["tokens"] > 0 for row in rows)
  assert rows[0]["lead_ci95"] == [0.0, 0.0]
  metrics = (out / "no_prm__1/metrics.jsonl").read_text()
  assert "loss" in metrics
  assert (out / "ablation.png").read_bytes().startswith(b"\x89PNG")
  assert (out / "ablation.md").read_text() in capsys.readouterr().out


def test_a_failed_command_ends_it(study, tmp_path, monkeypatch):
  monkeypatch.setattr(ablate, "qstar", lambda command: 75)
  with pytest.raises(SystemExit) as stopped:
    ablate.main([str(study), "--out", str(tmp_path / "out")])
  assert stopped.value.code == 75


@pytest.mark.parametrize("cut", ["train", "evaluate"])
def test_cut_anywhere_it_goes_on(study, qstar, tmp_path, monkeypatch, cut):
  """Also where the evaluation is another one, and then as it was again."""
  out = str(tmp_path / "out")
  arguments = [str(study), "--out", out, "--arms", "reference"]
  is_cut, commands = False, []

  def run(command):
    commands.append(command[0])
    return 75 if is_cut and command[0] == cut else qstar(*command).code

  monkeypatch.setattr(ablate, "qstar", run)
  ablate.main(arguments)
  text = study.read_text()
  study.write_text(text.replace("greedy,gumbel", "greedy"))
  is_cut = True
  with pytest.raises(SystemExit):
    ablate.main(arguments)
  is_cut = False
  study.write_text(text)
  commands.clear()
  ablate.main(arguments)
  # An evaluation that was begun may have written over the one before it.
  again = ["train", "evaluate"] if cut == "evaluate" else ["train"]
  assert commands == [*again, "train"]


def test_a_signal_is_the_command_s_to_answer(tmp_path, monkeypatch):
  """So that a run saves what it has, and no process is left behind."""
  program = tmp_path / "qstar"
  program.write_text(
    "#!/bin/sh\n"
    "trap 'exit 75' TERM\n"
    f"kill -TERM {os.getpid()}\n"
    "sleep 9 & wait\n"
  )
  program.chmod(0o755)
  monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
  before = signal.getsignal(signal.SIGTERM)
  assert ablate.qstar([]) == 75
  assert signal.getsignal(signal.SIGTERM) == before


def _write(run_dir, scores):
  """Three plays of each problem with a searcher, one of the policy alone."""
  (run_dir / "evaluation").mkdir(parents=True)
  plays = [
    {"searcher": "greedy", "budget": None, "problem": i, "score": score}
    for i, score in enumerate(scores)
  ] + [
    {"searcher": "beam", "budget": 64, "problem": i, "score": play < 2}
    for play in range(3)
    for i in range(len(scores))
  ]
  text = "".join(json.dumps(play) + "\n" for play in plays)
  (run_dir / "evaluation/problems.jsonl").write_text(text)
  record = {"kind": "iteration", "minutes": 2.0, "iteration": 3, "tokens": 5e6}
  (run_dir / "metrics.jsonl").write_text(json.dumps(record) + "\n")


def test_the_table_by_hand(tmp_path):
  for arm, seed, scores in (
    ("a", 0, [1, 0, 0, 0]),
    ("a", 1, [1, 1, 0, 0]),
    ("b", 0, [1, 1, 0, 0]),
    ("b", 1, [1, 1, 1, 0]),
  ):
    _write(ablate.run_dir_of(tmp_path, arm, seed), scores)
  rows = ablate.summarise(tmp_path, ["a", "b"], [0, 1])
  by_key = {(row["arm"], row["searcher"]): row for row in rows}
  assert by_key["a", "greedy"]["top1"] == 3 / 8
  assert by_key["b", "greedy"]["by_seed"] == [0.5, 0.75]
  assert by_key["b", "greedy"]["lead"] == 0.25
  low, high = by_key["b", "greedy"]["lead_ci95"]
  assert 0 <= low < 0.25 < high
  assert by_key["b", "beam, 64 tokens"]["lead"] == 0
  # Alike for all problems: plays are no problems.
  assert np.allclose(by_key["b", "beam, 64 tokens"]["ci95"], 2 / 3)
  assert np.isclose(by_key["b", "greedy"]["tokens"], 5e6)
  line = ablate.table(rows).splitlines()[4]
  assert line.startswith("| b | greedy | 62.5 [")
  assert line.endswith("| 50.0, 75.0 | +25.0 [+0, +62] | 3 | 5.0 M | 2.0 |")


@pytest.mark.parametrize(
  ("content", "part"),
  [
    ("arms: [", "no study"),
    ("arm: {}", "unexpected"),
    ("", "no study"),
    ("{config: a, options: '', seeds: [0], evaluate: '', arms: [a]}", "items"),
    (
      "{config: a, options: '', seeds: [], evaluate: '', arms: {a: }}",
      "a seed",
    ),
  ],
)
def test_a_file_that_is_no_study(tmp_path, content, part):
  path = tmp_path / "study.yaml"
  path.write_text(content)
  with pytest.raises(SystemExit, match=part):
    ablate.main([str(path)])


def test_an_unknown_arm(study):
  with pytest.raises(SystemExit, match="no arm 'x'; the study has reference"):
    ablate.main([str(study), "--arms", "x"])


STUDIES = sorted(configuration.configs_dir().glob("ablations/*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_run_of_a_study_has_a_config(path):
  study = ablate.read_study(path)
  for options in study.arms.values():
    words = shlex.split(f"{study.options} {options} --seed 1")
    assert configuration.load(study.config, words).seed == 1
