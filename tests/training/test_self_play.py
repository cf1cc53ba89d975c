"""What an iteration's plays leave behind: curriculum, counters, metrics."""

import dataclasses
import types

import numpy as np
import pytest
from etils import epath

from qstar_jax.records import Outcome, Problem, Verdict
from qstar_jax.replay import ReplayReader
from qstar_jax.selfplay import actor
from qstar_jax.selfplay.plays import PlayResult
from qstar_jax.training.alternate import Alternate
from qstar_jax.training.preemption import PreemptionFlag
from qstar_jax.training.trainer import Trainer
from tests.replay.conftest import random_tree

pytest_plugins = ["tests.training.micro_run"]

PROPOSER_TOKENS = 1000


def _recorded(sequence, origin, score, any_score, prior):
  problem = Problem("countdown", f"{sequence}\n", f"#{sequence}", {}, 2)
  verdict = Verdict(Outcome.WRONG, score)
  result = PlayResult((), verdict, any_score, 0.0, tokens=7, expansions=3)
  tree = dataclasses.replace(
    random_tree(sequence), node_value=np.array([prior, 0, 0], np.float32)
  )
  return actor.RecordedPlay(tree, result, problem, origin)


PLAYS = [
  _recorded(0, "reanalysed", 1.0, 1.0, 0.5),
  _recorded(1, "repeated", 1.0, 1.0, 0.25),
  _recorded(2, "new", 0.0, 0.0, 0.5),
  _recorded(3, "new", 0.5, 1.0, 0.5),
]


@pytest.fixture
def trainer(micro_config, tmp_path):
  config = dataclasses.replace(
    micro_config,
    curriculum=dataclasses.replace(
      micro_config.curriculum,
      replay_share=0.25,
      proposer_problems=4,
      proposer_every_iterations=2,
    ),
  )
  reporter = types.SimpleNamespace(progress=lambda *_: None)
  return Trainer(config, epath.Path(tmp_path), reporter, PreemptionFlag())


@pytest.fixture
def proposals():
  """A random number of each proposal."""
  return []


@pytest.fixture
def source(trainer, proposals, monkeypatch):
  """Whose plays are `PLAYS`, and which notes its proposals."""

  def propose(params, problems, curriculum, rng, check_stop):
    proposals.append(rng.random())
    return {"proposer_tokens": PROPOSER_TOKENS}

  monkeypatch.setattr(actor, "play_iteration", lambda *_, **__: iter(PLAYS))
  with Alternate(trainer) as source:
    self_play = source.self_play
    monkeypatch.setattr(self_play.proposer, "propose", propose)
    monkeypatch.setattr(
      self_play.drift_alarm, "measure", lambda *_, **__: {"logprob_drift": 0.0}
    )
    yield source


def test_the_curriculum_learns_from_the_plays(trainer, source):
  source.bring(trainer.progress, 0)
  curriculum = source.self_play.curriculum
  # The table from all of them, from what was expected on: 1.45 / 1.9 = 0.76316
  # and 1.225 / 1.9 = 0.64474; difficulties from new problems alone.
  assert curriculum.table.weights() == pytest.approx(
    {"#0": 0.76316 * 0.23684, "#1": 0.64474 * 0.35526, "#3": 0.25}, abs=1e-5
  )
  assert curriculum.solve_rates() == {2: 0.25}


def test_without_a_share_there_is_no_table(trainer, source, monkeypatch):
  curriculum = dataclasses.replace(trainer.config.curriculum, replay_share=0.0)
  config = dataclasses.replace(trainer.config, curriculum=curriculum)
  setup = dataclasses.replace(trainer.setup, config=config)
  monkeypatch.setattr(source.self_play, "_setup", setup)
  assert source.bring(trainer.progress, 0)["table_problems"] == 0


def test_tokens_and_rates(trainer, source):
  metrics = source.bring(trainer.progress, 0)
  assert metrics["tokens"] == trainer.progress.num_tokens
  assert metrics["tokens"] == 4 * 7 + PROPOSER_TOKENS
  assert metrics["solve_rate"] == 0.25
  assert metrics["reanalysed_solve_rate"] == 1.0
  assert metrics["table_problems"] == 3
  assert metrics["trees"] == 4
  # In the store, and in the window that the learner samples.
  assert len(ReplayReader(trainer.replay_dir)) == 4
  assert trainer.window.metrics(0)["size"] == 4


def test_the_proposer_has_its_period(source, proposals):
  counts = []
  for iteration in range(5):
    source.self_play._propose({}, iteration)
    counts.append(len(proposals))
  assert counts == [1, 1, 2, 2, 3]
  # Each with random numbers of its own.
  assert len(set(proposals)) == 3
