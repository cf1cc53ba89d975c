"""An iteration's batches: rows of trees, with labels, and of random play."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from qstar_jax.config import ExperimentConfig
from qstar_jax.learner import phase
from qstar_jax.learner import rows as rows_lib
from qstar_jax.learner.labelled import labelled_to_rows
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
  random_play: Callable[[int], Iterator[TrainBatch]],
) -> tuple[Iterator[TrainBatch], dict[str, int]]:
  """An iteration's batches, and what to log of the labelled lines in them.

  Args:
    config: of the run.
    window: trees to draw from.
    labelled: lines to draw from besides, or alone where there are no trees.
    first_line: number of the next of them, in the order they are drawn in.
    vocabulary: of the network.
    rng: draws rows of trees; consumed.
    random_play: batches of so many rows; called if the config wants any.
  """
  has_trees = config.self_play.problems_per_iteration > 0 or config.data.trees
  num_trees, num_labelled, num_random = _num_rows(
    config, bool(has_trees), labelled is not None
  )
  parts, drawn = [], {}
  if num_trees:
    learner = dataclasses.replace(config.learner, batch_size=num_trees)
    parts.append(
      phase.sample_batches(
        window, rng, dataclasses.replace(config, learner=learner)
      )
    )
  if num_labelled:
    rows, drawn = _draw(config, labelled, first_line, vocabulary, num_labelled)
    parts.append(rows)
  if num_random:
    parts.append(random_play(num_random))
  return map(rows_lib.join, zip(*parts, strict=False)), drawn


def _num_rows(
  config: ExperimentConfig, has_trees: bool, has_labels: bool
) -> tuple[int, int, int]:
  """Rows of a batch that are of trees, labelled, and of random play."""
  batch_size = config.learner.batch_size
  num_random = _part(config.warm_start.later_share, batch_size)
  rest = batch_size - num_random
  num_labelled = 0
  if has_labels:
    num_labelled = _part(config.data.label_share, rest) if has_trees else rest
  return rest - num_labelled, num_labelled, num_random


def _part(share: float, whole: int) -> int:
  """A share of the rows: some if it is above 0, but never all."""
  return min(max(round(share * whole), share > 0), whole - 1)


def _draw(
  config: ExperimentConfig,
  labelled: LabelledData,
  first_line: int,
  vocabulary: Vocabulary,
  num_rows: int,
) -> tuple[Iterator[TrainBatch], dict[str, int]]:
  """An iteration's labelled rows, so many a batch, and what to log."""
  lines_per_row = config.learner.lines_per_row
  num_lines = num_rows * lines_per_row
  drawn = labelled.draw(
    first_line,
    config.learner.steps_per_iteration * num_lines,
    vocabulary,
    config.text,
  )
  batches = (
    labelled_to_rows(
      drawn.rows[start : start + num_lines],
      config.text.max_line_tokens,
      lines_per_row=lines_per_row,
    )
    for start in range(0, len(drawn.rows), num_lines)
  )
  return batches, {
    "labelled_rows": len(drawn.rows),
    "labelled_lines": first_line + drawn.num_lines,
    "labels_too_long": drawn.num_too_long,
  }
