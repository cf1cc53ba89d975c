"""What a batch is made of."""

import itertools
import types

import numpy as np
import pytest

from qstar_jax.config import (
  DataConfig,
  ExperimentConfig,
  LearnerConfig,
  SelfPlayConfig,
  TextConfig,
  WarmStartConfig,
)
from qstar_jax.learner import phase
from qstar_jax.learner.labelled import LabelledTokens
from qstar_jax.learner.plays import Play, plays_to_rows
from qstar_jax.training import hindsight, labelled_data, lessons
from qstar_jax.training.trainer import Trainer

_TREE, _LABEL, _RANDOM = 3, 4, 5  # The first token says where a row is from.


def _lines(kind, num_rows):
  line = Play([kind], [[6, 7]])
  return plays_to_rows([line] * num_rows, TextConfig().max_line_tokens)


@pytest.mark.parametrize(
  ("later", "label", "has_trees", "counts"),
  [
    (0.0, None, True, (8, 0, 0)),
    (0.25, None, True, (6, 0, 2)),
    (0.01, None, True, (7, 0, 1)),
    (0.99, None, True, (1, 0, 7)),
    (0.0, 0.5, True, (4, 4, 0)),
    (0.25, 0.5, True, (3, 3, 2)),
    (0.25, 0.5, False, (0, 6, 2)),
    (0.0, 0.5, False, (0, 8, 0)),
  ],
)
def test_rows_of_a_batch(monkeypatch, later, label, has_trees, counts):
  config = ExperimentConfig(
    learner=LearnerConfig(steps_per_iteration=3, batch_size=8),
    self_play=SelfPlayConfig(problems_per_iteration=4 * has_trees),
    data=DataConfig(label_share=label or 0.5),
    warm_start=WarmStartConfig(later_share=later),
  )

  def sample_batches(window, rng, config):
    del window, rng
    for _ in range(config.learner.steps_per_iteration):
      yield _lines(_TREE, config.learner.batch_size)

  monkeypatch.setattr(phase, "sample_batches", sample_batches)
  labelled = types.SimpleNamespace(
    draw=lambda first, num_rows, *_: labelled_data.Drawn(
      [LabelledTokens([_LABEL], [[6, 7]], [1.0])] * num_rows, num_rows, 0
    )
  )

  def random_play(num_rows):
    while True:
      yield _lines(_RANDOM, num_rows)

  batches, _ = lessons.make_batches(
    config,
    window=None,
    labelled=None if label is None else labelled,
    first_line=0,
    vocabulary=None,
    rng=None,
    random_play=random_play,
  )
  batches = list(batches)
  assert len(batches) == 3
  for batch in batches:
    kinds = np.bincount(batch.tokens[:, 0], minlength=6)[3:]
    assert tuple(kinds) == counts


def test_random_play_is_numbered_by_the_step(monkeypatch):
  """No two steps of a run draw the same lines."""
  monkeypatch.setattr(hindsight, "make_batch", lambda *args, **_: args[2])
  setup = types.SimpleNamespace(
    problems=None, vocabulary=None, rng=lambda stream, step: step
  )
  trainer = types.SimpleNamespace(
    config=ExperimentConfig(),
    setup=setup,
    state=types.SimpleNamespace(step=7),
  )
  batches = Trainer._random_play(trainer, 2, has_player=True)
  assert list(itertools.islice(batches, 3)) == [7, 8, 9]
