"""A learner phase: gradient steps on trees sampled from the replay window."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from qstar_jax.config import ExperimentConfig
from qstar_jax.errors import UserError
from qstar_jax.learner import rows as rows_lib
from qstar_jax.learner import targets
from qstar_jax.learner.train_step import TrainState, put_batches
from qstar_jax.records import TrainBatch
from qstar_jax.replay.window import ReplayWindow

# Trees sampled and turned into rows at once.
_TREES_PER_DRAW = 64


def sample_batches(
  window: ReplayWindow, rng: np.random.Generator, config: ExperimentConfig
) -> Iterator[TrainBatch]:
  """The batches of one phase: rows of sampled trees, shuffled together.

  Trees are sampled until they give as many rows as the phase needs, or the
  window has no more to give: there may be fewer batches than steps.

  Args:
    window: of the newest trees; counts the uses.
    rng: shuffles; consumed.
    config: of the experiment.

  Yields:
    At most `learner.steps_per_iteration` batches.
  """
  learner = config.learner
  wanted = learner.steps_per_iteration * learner.batch_size
  parts: list[TrainBatch] = []
  num_rows = 0
  while num_rows < wanted and (trees := window.sample(_TREES_PER_DRAW)):
    part = targets.trees_to_rows(
      trees, learner, config.search, config.row_tokens, rng
    )
    parts.append(part)
    num_rows += len(part.tokens)
  if num_rows == 0:
    return
  every = rows_lib.join(parts)
  order = rng.permutation(num_rows)[:wanted]
  for start in range(0, len(order), learner.batch_size):
    index = order[start : start + learner.batch_size]
    yield rows_lib.take(every, index, learner.batch_size)


def run_steps(
  train_steps: Callable[[TrainState, TrainBatch], tuple[TrainState, Any]],
  state: TrainState,
  batches: Iterator[TrainBatch],
  mesh: Mesh,
  *,
  steps_per_call: int,
  on_call: Callable[[int], None] = lambda done: None,
) -> tuple[TrainState, dict[str, float]]:
  """Takes a gradient step per batch.

  The host runs one call ahead of the device, and no more: the device does not
  wait for it, and `on_call` is true to what has been done.

  Args:
    train_steps: compiled, see `train_step.make_train_steps`.
    state: consumed.
    batches: host arrays.
    mesh: that they go to.
    steps_per_call: batches handed over at once.
    on_call: called before each call with the number of steps taken; may raise
      to stop.

  Returns:
    The state after the last batch, and the mean of every metric; no metrics if
    there was no batch.

  Raises:
    UserError: a loss, gradient or parameter was not finite.
  """
  first_step = int(state.step)
  num_steps = 0
  history = []
  while group := list(itertools.islice(batches, steps_per_call)):
    on_call(num_steps)
    state, metrics = train_steps(state, put_batches(group, mesh))
    jax.block_until_ready(history[-1:])
    history.append(metrics)
    num_steps += len(group)
  if not history:
    return state, {}
  metrics = jax.tree.map(
    lambda *values: np.concatenate(values), *jax.device_get(history)
  )
  for i in range(num_steps):
    bad = [name for name in metrics if not np.isfinite(metrics[name][i])]
    if bad:
      raise UserError(
        f"{', '.join(bad)} of gradient step {first_step + i + 1} not finite; "
        "lower learner.learning_rate or learner.max_grad_norm and start a new "
        "run directory (this one's checkpoints are from before, and whole)"
      )
  return state, {name: float(np.mean(y)) for name, y in metrics.items()}
