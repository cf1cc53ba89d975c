"""The learner's side of the mode `files`: each tree is counted once."""

import dataclasses
import shutil
import types

import numpy as np
import pytest
from etils import epath

from qstar_jax.config import ExperimentConfig, ReplayConfig, SelfPlayConfig
from qstar_jax.errors import UserError
from qstar_jax.replay import ReplayReader, ReplayWindow, ReplayWriter
from qstar_jax.replay.codec import TREES
from qstar_jax.store import manifest as manifest_lib
from qstar_jax.training import waiting
from qstar_jax.training.actor_job import trees_ahead
from qstar_jax.training.files_mode import StoredTrees
from qstar_jax.training.preemption import Preempted, PreemptionFlag
from qstar_jax.training.progress import Progress
from tests.replay.conftest import random_tree
from tests.training.recorder import Recorder

_CONFIG = ExperimentConfig(
  run_mode="files",
  self_play=SelfPlayConfig(problems_per_iteration=8),
  replay=ReplayConfig(window_trees=100, shard_trees=4),
)


@pytest.fixture
def trainer(tmp_path, monkeypatch):
  """What the mode needs of one."""
  monkeypatch.setattr(waiting, "_LOCAL", 0.001)
  return types.SimpleNamespace(
    config=_CONFIG,
    replay_dir=epath.Path(tmp_path) / "replay",
    window=ReplayWindow(_CONFIG.replay, seed=0),
    reporter=Recorder(),
    flag=PreemptionFlag(),
  )


@pytest.fixture
def store(trainer):
  """Has an actor store so many trees, and say so many tokens in all."""

  def store_trees(actor_id, num_trees, num_tokens=0, params_version=0):
    with ReplayWriter(trainer.replay_dir, actor_id, shard_trees=4) as writer:
      first = writer.next_sequence
      trees = [
        random_tree(first + i, actor_id=actor_id, params_version=params_version)
        for i in range(num_trees)
      ]
      writer.extend(trees, {"num_tokens": num_tokens})
    return writer.folder, trees

  return store_trees


def _ahead(trainer, counted, oldest):
  manifests = manifest_lib.read_all(trainer.replay_dir, TREES)
  return trees_ahead(manifests, counted, oldest)


def _bring(trainer, progress):
  with StoredTrees(trainer) as source:
    metrics = source.bring(progress, 5)
  progress.iteration += 1
  return metrics


def test_trees_of_all_actors_are_counted(trainer, store):
  _, trees = store(3, 7, 70)
  _, others = store(0, 4, 20)
  progress = Progress()
  metrics = _bring(trainer, progress)
  assert (metrics["actors"], metrics["actor_trees"]) == ([0, 3], [4, 7])
  assert (metrics["new_trees"], metrics["trees"]) == (11, 11)
  assert metrics["tokens"] == progress.num_tokens == 90
  scores = [tree.final_score for tree in trees + others]
  assert metrics["solve_rate"] == pytest.approx(np.mean(scores))
  # Five more make the second iteration.
  store(3, 5, 100)
  metrics = _bring(trainer, progress)
  assert metrics["actor_trees"] == [4, 12]
  assert (metrics["new_trees"], progress.num_trees) == (5, 16)
  assert progress.num_tokens == 120


def test_it_waits_for_enough_of_them(trainer, store, capsys):
  store(0, 7)
  late = iter([1])
  trainer.flag.check = lambda: [store(1, num_trees) for num_trees in late]
  metrics = _bring(trainer, Progress())
  assert metrics["actor_trees"] == [7, 1]
  err = capsys.readouterr().err
  assert err == f"waiting for trees of the actors in {trainer.replay_dir}\n"


def test_it_waits_where_all_are_too_old(trainer, store):
  """From step 5, ten steps: trees of version 0 are 14 steps old at the last."""
  replay = dataclasses.replace(_CONFIG.replay, max_staleness=12)
  learner = dataclasses.replace(_CONFIG.learner, steps_per_iteration=10)
  trainer.config = dataclasses.replace(_CONFIG, replay=replay, learner=learner)
  trainer.window = ReplayWindow(replay, seed=0)
  store(0, 16)
  late = iter([2])
  trainer.flag.check = lambda: [
    store(1, num_trees, params_version=2) for num_trees in late
  ]
  metrics = _bring(trainer, Progress())
  # All are counted, and the newest are what there is to learn from.
  assert (metrics["new_trees"], metrics["actor_trees"]) == (18, [16, 2])
  assert {tree.actor_id for tree in trainer.window.sample(100)} == {1}


def test_trees_that_are_too_old_take_no_room(trainer, store):
  store(0, 7)
  store(0, 2, params_version=3)
  store(0, 5, params_version=6)
  ahead = [_ahead(trainer, {0: 1}, v) for v in (0, 1, 4, 7)]
  assert ahead == [13, 7, 5, 0]


def test_it_can_be_stopped_while_it_waits(trainer, store):
  store(0, 7)
  trainer.flag.set()
  with pytest.raises(Preempted):
    _bring(trainer, Progress())
  assert trainer.window.next_sequence == {}


def test_nothing_is_counted_again_after_a_kill(trainer, store):
  store(0, 9)
  progress = Progress()
  _bring(trainer, progress)
  saved = trainer.window.state_dict()
  saved_progress = dataclasses.replace(progress)
  store(1, 8)
  _bring(trainer, progress)
  # Killed: the second iteration is brought again, and nothing else.
  trainer.window = ReplayWindow(_CONFIG.replay, seed=0)
  trainer.window.load_state_dict(saved, ReplayReader(trainer.replay_dir))
  metrics = _bring(trainer, saved_progress)
  assert (metrics["new_trees"], metrics["trees"]) == (8, 17)
  assert saved_progress == progress
  keys = [(r.actor_id, r.sequence) for r in trainer.window.newest(100)]
  assert len(set(keys)) == len(keys) == 17


def _warnings(trainer):
  return [record["message"] for record in trainer.reporter.records]


def test_what_waited_for_the_learner_and_is_lost_is_told(trainer, store):
  """Twenty trees came while it was down, and the window holds eight."""
  replay = dataclasses.replace(_CONFIG.replay, window_trees=8)
  trainer.window = ReplayWindow(replay, seed=0)
  store(0, 8)
  progress = Progress()
  _bring(trainer, progress)
  assert _warnings(trainer) == []
  store(0, 8)
  store(1, 12)
  _bring(trainer, progress)
  (message,) = _warnings(trainer)
  assert message.startswith("12 of 20 trees that waited for this learner")
  assert "replay.window_trees" in message


def test_what_waited_and_is_too_old_is_told(trainer, store):
  replay = dataclasses.replace(_CONFIG.replay, max_staleness=12)
  learner = dataclasses.replace(_CONFIG.learner, steps_per_iteration=10)
  trainer.config = dataclasses.replace(_CONFIG, replay=replay, learner=learner)
  trainer.window = ReplayWindow(replay, seed=0)
  # At step 14, the last one that learns, those below 2 are too old.
  store(0, 5)
  store(1, 3, params_version=2)
  _bring(trainer, Progress())
  (message,) = _warnings(trainer)
  assert message.startswith("5 of 8 trees that waited for this learner")


def test_what_comes_while_it_runs_is_no_such_loss(trainer, store):
  replay = dataclasses.replace(_CONFIG.replay, window_trees=8)
  trainer.window = ReplayWindow(replay, seed=0)
  progress = Progress()
  store(0, 7)
  with StoredTrees(trainer) as source:
    for num_trees in (20, 20):
      store(0, num_trees)
      source.bring(progress, 5)
      progress.iteration += 1
  # The seven that waited were pushed out by those that came then.
  (message,) = _warnings(trainer)
  assert message.startswith("7 of 7 trees")


def test_what_is_damaged_is_counted_and_left_out(trainer, store):
  folder, _ = store(0, 4)
  store(0, 4)
  (folder / "qstar_trees-train.array_record-00000").write_bytes(b"torn")
  metrics = _bring(trainer, Progress())
  assert metrics["new_trees"] == 8
  sequences = [r.sequence for r in trainer.window.newest(100)]
  assert sequences == [4, 5, 6, 7]
  (record,) = trainer.reporter.records
  assert (record["kind"], record["step"]) == ("warning", 5)
  assert record["message"].startswith("4 trees cannot be read")


def test_an_actor_that_is_taken_away(trainer, store):
  folder, _ = store(0, 5)
  store(1, 5)
  progress = Progress()
  _bring(trainer, progress)
  saved = trainer.window.state_dict()
  shutil.rmtree(folder)
  store(1, 6)
  assert _bring(trainer, progress)["actor_trees"] == [5, 11]
  # A learner that starts again does without its trees.
  window = ReplayWindow(_CONFIG.replay, seed=0)
  reader = ReplayReader(trainer.replay_dir, skip_damaged=True)
  window.load_state_dict(saved, reader)
  assert {record.actor_id for record in window.newest(100)} == {1}
  with pytest.raises(UserError, match="lacks tree 0 of actor 0"):
    window.load_state_dict(saved, ReplayReader(trainer.replay_dir))


def test_how_far_the_actors_are_ahead(trainer, store):
  folder, _ = store(0, 5)
  store(1, 7)
  ahead = _ahead(trainer, {}, 0)
  assert ahead == 12
  assert _ahead(trainer, {0: 5, 1: 3}, 0) == 4
  # What was counted of an actor that is gone makes no room.
  shutil.rmtree(folder)
  assert _ahead(trainer, {0: 5, 1: 3}, 0) == 4
