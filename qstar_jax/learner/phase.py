"""A learner phase: gradient steps on lines sampled from the replay window."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from qstar_jax.config import ExperimentConfig
from qstar_jax.errors import UserError
from qstar_jax.learner import lines as lines_lib
from qstar_jax.learner import targets
from qstar_jax.learner.train_step import TrainState, put_batch
from qstar_jax.records import TrainBatch
from qstar_jax.replay.window import ReplayWindow

# Trees sampled and turned into lines at once.
_TREES_PER_DRAW = 64


def sample_batches(
  window: ReplayWindow, rng: np.random.Generator, config: ExperimentConfig
) -> Iterator[TrainBatch]:
  """The batches of one phase: lines of sampled trees, shuffled together.

  Trees are sampled until they give as many lines as the phase needs, or the
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
  num_lines = 0
  while num_lines < wanted and (trees := window.sample(_TREES_PER_DRAW)):
    part = targets.trees_to_lines(
      trees, learner, config.search, config.text.max_line_tokens
    )
    parts.append(part)
    num_lines += len(part.tokens)
  if num_lines == 0:
    return
  every = jax.tree.map(lambda *fields: np.concatenate(fields), *parts)
  order = rng.permutation(num_lines)[:wanted]
  for start in range(0, len(order), learner.batch_size):
    rows = order[start : start + learner.batch_size]
    yield lines_lib.batch_lines(every, rows, learner.batch_size)


def run_steps(
  train_step: Callable[[TrainState, TrainBatch], tuple[TrainState, Any]],
  state: TrainState,
  batches: Iterator[TrainBatch],
  mesh: Mesh,
  *,
  check_stop: Callable[[], None] = lambda: None,
) -> tuple[TrainState, dict[str, float]]:
  """Takes a gradient step per batch.

  Metrics stay on the device until the end: no step waits for the one before.

  Args:
    train_step: compiled, see `train_step.make_train_step`.
    state: consumed.
    batches: host arrays.
    mesh: that they go to.
    check_stop: called before each step; may raise to stop.

  Returns:
    The state after the last batch, and the mean of every metric; no metrics if
    there was no batch.

  Raises:
    UserError: a loss or gradient was not finite.
  """
  first_step = int(state.step)
  history = []
  for batch in batches:
    check_stop()
    state, metrics = train_step(state, put_batch(batch, mesh))
    history.append(metrics)
  if not history:
    return state, {}
  history = jax.device_get(history)
  for i, metrics in enumerate(history):
    bad = [name for name, value in metrics.items() if not np.isfinite(value)]
    if bad:
      raise UserError(
        f"{', '.join(bad)} of gradient step {first_step + i + 1} is not finite; "
        "the last checkpoint is from before: lower learner.learning_rate or "
        "learner.max_grad_norm and run again"
      )
  return state, {
    name: float(np.mean([metrics[name] for metrics in history]))
    for name in history[0]
  }
