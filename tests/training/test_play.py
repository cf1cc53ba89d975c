"""What an iteration's plays leave behind: curriculum, counters, metrics."""

import dataclasses
import types

import numpy as np
import pytest
from etils import epath

from qstar_jax.records import Outcome, Problem, Verdict
from qstar_jax.replay import ReplayWriter
from qstar_jax.selfplay import actor
from qstar_jax.selfplay.plays import PlayResult
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
def trainer(micro_config, tmp_path, monkeypatch):
  """A trainer whose plays are `PLAYS`, and which counts its proposals."""
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
  trainer = Trainer(config, epath.Path(tmp_path), reporter, PreemptionFlag())
  trainer.proposals = []

  def propose(params, problems, curriculum, rng, check_stop):
    trainer.proposals.append(rng.random())
    return {"proposer_tokens": PROPOSER_TOKENS}

  monkeypatch.setattr(trainer.proposer, "propose", propose)
  monkeypatch.setattr(
    trainer.drift_alarm, "measure", lambda *_, **__: {"logprob_drift": 0.0}
  )
  monkeypatch.setattr(actor, "play_iteration", lambda *_, **__: iter(PLAYS))
  return trainer


def _play(trainer):
  with ReplayWriter(trainer.replay_dir, shard_trees=64) as writer:
    return trainer.play(writer)


def test_the_curriculum_learns_from_the_plays(trainer):
  _play(trainer)
  # The table from all of them, from what was expected on: 1.45 / 1.9 = 0.76316
  # and 1.225 / 1.9 = 0.64474; difficulties from new problems alone.
  assert trainer.curriculum.table.weights() == pytest.approx(
    {"#0": 0.76316 * 0.23684, "#1": 0.64474 * 0.35526, "#3": 0.25}, abs=1e-5
  )
  assert trainer.curriculum.solve_rates() == {2: 0.25}


def test_without_a_share_there_is_no_table(trainer, monkeypatch):
  curriculum = dataclasses.replace(trainer.config.curriculum, replay_share=0.0)
  config = dataclasses.replace(trainer.config, curriculum=curriculum)
  monkeypatch.setattr(trainer, "config", config)
  assert _play(trainer)["table_problems"] == 0


def test_tokens_and_rates(trainer):
  metrics = _play(trainer)
  assert metrics["tokens"] == trainer.progress.num_tokens
  assert metrics["tokens"] == 4 * 7 + PROPOSER_TOKENS
  assert metrics["solve_rate"] == 0.25
  assert metrics["reanalysed_solve_rate"] == 1.0
  assert metrics["table_problems"] == 3
  assert metrics["trees"] == 4


def test_the_proposer_has_its_period(trainer):
  counts = []
  for iteration in range(5):
    trainer.progress.iteration = iteration
    trainer._propose()
    counts.append(len(trainer.proposals))
  assert counts == [1, 1, 2, 2, 3]
  # Each with random numbers of its own.
  assert len(set(trainer.proposals)) == 3
