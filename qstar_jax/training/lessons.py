"""An iteration's batches: lines of stored trees, and lines that have labels."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from qstar_jax.config import ExperimentConfig
from qstar_jax.learner import lines as lines_lib
from qstar_jax.learner import phase
from qstar_jax.learner.labelled import labelled_to_lines
from qstar_jax.records import TrainBatch
from qstar_jax.replay import ReplayWindow
from qstar_jax.text.vocabulary import Vocabulary
from qstar_jax.training.labelled_data import LabelledData


def make_batches(
  config: ExperimentConfig,
  window: ReplayWindow,
  labelled: LabelledData | None,
  first_line: int,
  vocabulary: Vocabulary,
  rng: np.random.Generator,
) -> tuple[Iterator[TrainBatch], dict[str, int]]:
  """An iteration's batches, and what to log of the labelled lines in them.

  Args:
    config: of the run.
    window: trees to draw lines from.
    labelled: lines to draw from besides, or alone where there are no trees.
    first_line: number of the next of them, in the order they are drawn in.
    vocabulary: of the network.
    rng: draws lines of trees; consumed.
  """
  batch_size, num_labelled = config.learner.batch_size, 0
  has_trees = config.self_play.problems_per_iteration > 0 or config.data.trees
  if labelled is not None:
    num_labelled = batch_size
    if has_trees:
      num_labelled = round(config.data.label_share * batch_size)
      num_labelled = min(max(num_labelled, 1), batch_size - 1)
  parts, drawn = [], {}
  if num_labelled < batch_size:
    learner = dataclasses.replace(
      config.learner, batch_size=batch_size - num_labelled
    )
    parts.append(
      phase.sample_batches(
        window, rng, dataclasses.replace(config, learner=learner)
      )
    )
  if num_labelled:
    rows, drawn = _draw(config, labelled, first_line, vocabulary, num_labelled)
    parts.append(rows)
  return map(lines_lib.join, zip(*parts, strict=False)), drawn


def _draw(
  config: ExperimentConfig,
  labelled: LabelledData,
  first_line: int,
  vocabulary: Vocabulary,
  num_rows: int,
) -> tuple[Iterator[TrainBatch], dict[str, int]]:
  """An iteration's labelled rows, so many a batch, and what to log."""
  drawn = labelled.draw(
    first_line,
    config.learner.steps_per_iteration * num_rows,
    vocabulary,
    config.text,
  )
  batches = (
    labelled_to_lines(
      drawn.rows[start : start + num_rows], config.text.max_line_tokens
    )
    for start in range(0, len(drawn.rows), num_rows)
  )
  return batches, {
    "labelled_rows": len(drawn.rows),
    "labelled_lines": first_line + drawn.num_lines,
    "labels_too_long": drawn.num_too_long,
  }
