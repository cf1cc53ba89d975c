"""Gradient steps: from batches of lines to new parameters."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qstar_jax.config import LearnerConfig
from qstar_jax.learner import objective
from qstar_jax.records import TrainBatch

# The learning rate decays to this share of its peak, along a half cosine.
_FINAL_LEARNING_RATE = 0.1
# Root mean square of Muon's steps, as that of AdamW's.
_MUON_RMS = 0.2

# The records know nothing of JAX; the learner makes its own one a pytree.
jax.tree_util.register_dataclass(TrainBatch)


class TrainState(NamedTuple):
  """What the learner carries from step to step.

  Attributes:
    step: int32 scalar, gradient steps taken; also the params' version.
    params: of the network, float32, that the gradient is taken at.
    opt_state: of the optimizer.
    average: exponential moving average of params; None if none is kept.
  """

  step: chex.Array
  params: nnx.State
  opt_state: optax.OptState
  average: nnx.State | None = None

  @property
  def played(self) -> nnx.State:
    """The params that play and are evaluated: the average where one is kept."""
    return self.params if self.average is None else self.average


def make_optimizer(
  config: LearnerConfig, total_steps: int
) -> optax.GradientTransformation:
  """Clipping, then AdamW or Muon, with linear warm-up and cosine decay.

  Muon (Jordan et al. 2024) makes the step of a matrix orthogonal. It takes the
  matrices of the layers, scaled so that its steps are as long as AdamW's (Liu
  et al. 2025, arXiv:2502.16982), and Adam the rest: one learning rate fits
  both. Weight decay is on the layers' matrices alone.

  Args:
    config: of the learner.
    total_steps: of the whole run; the schedule ends there.
  """
  schedule = optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=config.learning_rate,
    warmup_steps=config.warmup_steps,
    decay_steps=max(total_steps, config.warmup_steps + 1),
    end_value=_FINAL_LEARNING_RATE * config.learning_rate,
  )
  if config.optimizer == "muon":
    optimizer = optax.contrib.muon(
      schedule,
      weight_decay=config.weight_decay,
      consistent_rms=_MUON_RMS,
      muon_weight_dimension_numbers=_muon_dimensions,
    )
  else:
    optimizer = optax.adamw(
      schedule,
      weight_decay=config.weight_decay,
      mask=lambda params: jax.tree.map_with_path(_is_layer_matrix, params),
    )
  return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optimizer)


def _is_layer_matrix(path, value) -> bool:
  """Whether a parameter holds a matrix for each layer: [L, fan in, fan out]."""
  is_stacked = any(getattr(key, "key", None) == "layers" for key in path)
  return is_stacked and value.ndim == 3


def _muon_dimensions(params: nnx.State) -> nnx.State:
  """Which axes of a parameter are a matrix's; None for Adam's parameters."""
  matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
  return jax.tree.map_with_path(
    lambda path, value: matrix if _is_layer_matrix(path, value) else None,
    params,
  )


def init_state(
  params: nnx.State,
  optimizer: optax.GradientTransformation,
  config: LearnerConfig,
  mesh: Mesh,
) -> TrainState:
  """The state before the first step, replicated over the mesh."""
  # A copy: the step consumes both.
  average = jax.tree.map(jnp.copy, params) if config.ema_decay > 0 else None
  state = TrainState(jnp.int32(0), params, optimizer.init(params), average)
  return jax.device_put(state, NamedSharding(mesh, P()))


def make_train_steps(
  graphdef: nnx.GraphDef,
  optimizer: optax.GradientTransformation,
  config: LearnerConfig,
  mesh: Mesh,
) -> Callable[[TrainState, TrainBatch], tuple[TrainState, dict]]:
  """Compiled gradient steps; lines are split over the mesh's data axis.

  Returns:
    (state, batches) -> (state, metrics): takes a step for each of S batches
    stacked on a leading axis, in order, and consumes the state; metrics are
    float32 [S] `loss`, the losses of the config by name (nats), `grad_norm`
    (before clipping) and `param_norm` (after the step).
  """

  def train_step(state, batch):
    grads, metrics = jax.grad(objective.loss_fn, has_aux=True)(
      state.params, graphdef, batch, config
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics["grad_norm"] = optax.tree.norm(grads)
    # Tells of a step that broke the parameters before they are saved.
    metrics["param_norm"] = optax.tree.norm(params)
    average = state.average
    if average is not None:
      average = optax.incremental_update(params, average, 1 - config.ema_decay)
    return TrainState(state.step + 1, params, opt_state, average), metrics

  replicated = NamedSharding(mesh, P())
  return jax.jit(
    lambda state, batches: jax.lax.scan(train_step, state, batches),
    in_shardings=(replicated, _by_line(mesh)),
    out_shardings=(replicated, replicated),
    donate_argnums=0,
  )


def put_batches(batches: Sequence[TrainBatch], mesh: Mesh) -> TrainBatch:
  """Batches stacked, on the devices of the mesh, each split by line."""
  stacked = jax.tree.map(lambda *fields: np.stack(fields), *batches)
  return jax.device_put(stacked, _by_line(mesh))


def _by_line(mesh: Mesh) -> NamedSharding:
  """Of stacked batches [S, B, ...]."""
  return NamedSharding(mesh, P(None, "data"))
