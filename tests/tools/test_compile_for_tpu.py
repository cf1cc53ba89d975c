"""Does it fit? The tool's figures, words and exit codes."""

import importlib.util
import json
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from qstar_jax import configuration
from qstar_jax.distributed import chips
from qstar_jax.errors import UserError
from tools import aot_memory, aot_programs, aot_report, compile_for_tpu
from tools.aot_memory import SELF_PLAY

CONFIG = "qwen3_0p6b_v5e16"
GIB = chips.GIB


def test_a_topology_that_does_not_exist_is_refused(capsys):
  assert compile_for_tpu.main([CONFIG, "--topology", "v9:4x4"]) == 2
  out, err = capsys.readouterr()
  assert not out
  assert err.startswith("compile_for_tpu.py: topology 'v9:4x4': must be")


def _raise(message):
  def get_topology_desc(**kwargs):
    raise RuntimeError(message)

  return get_topology_desc


def test_without_libtpu_it_says_how_to_install_it(capsys, monkeypatch):
  monkeypatch.setattr(
    "jax.experimental.topologies.get_topology_desc",
    _raise("JAX TPU support not installed; cannot generate TPU topology."),
  )
  assert compile_for_tpu.main([CONFIG, "--topology", "v5e:4x4"]) == 2
  _, err = capsys.readouterr()
  (line,) = err.splitlines()
  assert 'pip install "jax[tpu]"' in line


def test_what_libtpu_refuses_is_told(monkeypatch):
  monkeypatch.setattr(
    "jax.experimental.topologies.get_topology_desc",
    _raise("INVALID_ARGUMENT: not divisible\nand a trace"),
  )
  with pytest.raises(UserError, match=r"v5e:3x5: libtpu refuses .*divisible\)"):
    aot_programs.topology_devices(chips.parse_topology("v5e:3x5"))


def test_a_second_compiler_is_told_to_wait(monkeypatch):
  monkeypatch.setattr(
    "jax.experimental.topologies.get_topology_desc",
    _raise('ABORTED: libtpu multi-process lockfile. Run "$ sudo rm ..."'),
  )
  with pytest.raises(UserError, match="one process at a time"):
    aot_programs.topology_devices(chips.parse_topology("v5e:4x4"))


def test_batches_are_described_as_they_are_made():
  from qstar_jax.domains import make_domain, splits
  from qstar_jax.text.vocabulary import ByteVocabulary
  from qstar_jax.training import hindsight, inputs

  config = configuration.load(
    CONFIG,
    [
      *("--text.max-prompt-tokens=64", "--text.max-step-tokens=64"),
      *("--domain.options.max-number=20", "--learner.batch-size=16"),
    ],
  )
  domain = make_domain(config.domain.name, config.domain.options)
  made = hindsight.make_batch(
    splits.TrainingProblems.without(domain, []),
    ByteVocabulary(),
    np.random.default_rng(0),
    config=config.warm_start,
    text=config.text,
    difficulties=inputs.difficulties(config),
    num_rows=config.learner.batch_size,
    lines_per_row=config.learner.lines_per_row,
  )
  described = aot_programs.abstract_batches(config)
  shapes = jax.tree.map(lambda x: (x.shape[1:], x.dtype), described)
  assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), made)


def test_losses_bring_the_fields_that_they_read():
  config = configuration.load(CONFIG, ["--learner.losses.prm-ranking=1.0"])
  batches = aot_programs.abstract_batches(config)
  assert batches.rival.shape == batches.rival_weight.shape
  assert batches.rival.shape == batches.tokens.shape
  assert batches.reward is None


def test_a_play_takes_a_search_for_each_step():
  config = configuration.load(CONFIG)
  simulations = config.search.num_simulations
  rounds = (1 + simulations) * config.text.max_steps
  assert aot_report.rounds_per_play(config) == rounds


def _run():
  config = configuration.load(CONFIG)
  return types.SimpleNamespace(
    config=config,
    mesh=types.SimpleNamespace(shape={"data": 1, "fsdp": 16, "model": 1}),
    num_shards=16,
  )


def _memory(self_play_gib):
  parts = {
    "parameters (learner)": 1 * GIB,
    SELF_PLAY: self_play_gib * GIB,
    "temporaries and results (learn)": 2 * GIB,
  }
  return aot_memory.Memory(parts, "learn", 15.75 * GIB)


def test_the_shortfall_is_what_is_over_the_limit():
  assert _memory(12).shortfall == 0
  assert _memory(16).shortfall == pytest.approx(3.25 * GIB)


@pytest.mark.parametrize("self_play_gib", [13, 14.5, 16, 24, 100])
def test_the_trees_that_are_advised_fit(self_play_gib):
  memory = _memory(self_play_gib)
  run = _run()
  first = aot_memory.advice(memory, run)[0]
  words = "lower self_play.batch_size from 256 to "
  assert first.startswith(words) and first.endswith("which is enough")
  advised = int(first.removeprefix(words).split(",")[0])
  assert 0 < advised < 256 and advised % 16 == 0
  smaller = memory.parts[SELF_PLAY] * advised / 256
  assert smaller <= memory.parts[SELF_PLAY] - memory.shortfall


def test_advice_that_is_not_enough_does_not_say_so():
  memory = _memory(14)
  parts = memory.parts | {"optimizer": 40 * GIB}
  advice = aot_memory.advice(memory._replace(parts=parts), _run())
  assert "keeps more: mesh.fsdp is 16" in advice[0]
  assert not any("enough" in line for line in advice)


REPORT = {
  "config": "tiny",
  "topology": "v5e:4x4",
  "chips": 16,
  "mesh": {"data": 1, "fsdp": 16, "model": 1},
  "parameters": 596_000_000,
  "memory": {
    "gib": {"optimizer": 10.0, SELF_PLAY: 7.0},
    "total_gib": 17.0,
    "limit_gib": 15.75,
    "shortfall_gib": 1.25,
    "advice": ["lower self_play.batch_size from 256 to 208, which is enough"],
  },
  "programs": {
    "learn": {
      "flops": 1e13,
      "hbm_bytes": 2e10,
      "compute_seconds": 0.05,
      "memory_seconds": 0.02,
      "operation_seconds": 0.06,
      "collective_seconds": 0.02,
      "seconds": 0.08,
      "binding": "compute",
      "collective_share": 0.25,
      "unbounded_loops": ["jit(f)/while"],
      "traffic": [
        {
          "kind": "all-gather",
          "axes": "fsdp",
          "times": 56,
          "num_bytes": 2e9,
          "wire_bytes": 1.9e9,
          "seconds": 0.02,
        }
      ],
    }
  },
  "too_large": ["expand"],
  "publication": {"missing_bytes": 2 * GIB, "received_bytes": 2 * GIB},
  "run": None,
}


def test_a_report_tells_what_is_missing_and_what_to_change():
  text = aot_report.render(REPORT)
  assert "It does not fit: 1.25 GiB are missing." in text
  assert "- lower self_play.batch_size from 256 to 208" in text
  assert "Too large for the compiler, and not in what follows: expand" in text
  assert "| learn | 10.000 | 20.00 | 50.00 | 20.00 | 20.00 | 80.00 |" in text
  assert "| learn | all-gather | fsdp | 56 |" in text
  assert "counted once, of no known length: jit(f)/while" in text
  assert "brings each device 2.000 GiB; it lacks 2.000 GiB" in text


@pytest.mark.parametrize(("shortfall", "code"), [(1.25, 1), (0.0, 0)])
def test_the_exit_code_says_whether_it_fits(
  monkeypatch, capsys, shortfall, code
):
  memory = REPORT["memory"] | {"shortfall_gib": shortfall}
  report = REPORT | {"memory": memory}
  monkeypatch.setattr(compile_for_tpu, "_report", lambda args, rest: report)
  argv = [CONFIG, "--topology", "v5e:4x4", "--json"]
  assert compile_for_tpu.main(argv) == code
  assert json.loads(capsys.readouterr().out) == report


# With the real compiler. Small, and larger than a chip.
_SMALL = (
  *("--model.num-layers=2", "--model.model-dim=256", "--model.ffn-dim=256"),
  *("--text.vocabulary-size=1024", "--mesh.fsdp=4"),
)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
@pytest.mark.parametrize(
  ("overrides", "code"), [((), 0), (("--self-play.batch-size=65536",), 1)]
)
def test_the_tpu_compiler_reports(overrides, code):
  command = [sys.executable, "tools/compile_for_tpu.py", CONFIG, "--json"]
  done = subprocess.run(
    [*command, "--topology", "v5e:2x2", *_SMALL, *overrides],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == code, done.stderr[-2000:]
  report = json.loads(done.stdout)
  assert (report["memory"]["shortfall_gib"] > 0) == bool(code)
  assert bool(report["memory"]["advice"]) == bool(code)
  publication = report["publication"]
  received = publication["received_bytes"]
  assert received == pytest.approx(publication["missing_bytes"], rel=0.01)
  if code == 0:
    assert {*report["programs"]} == {
      *("seat", "expand", "insert", "learn", "publish")
    }
    expand = report["programs"]["expand"]
    assert not [x for x in expand["traffic"] if x["wire_bytes"]]
    assert report["run"]["chip_hours"] > 0
