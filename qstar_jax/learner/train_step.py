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

from qstar_jax.config import LearnerConfig
from qstar_jax.distributed import rules
from qstar_jax.learner import objective, regularizers
from qstar_jax.model import partitioning
from qstar_jax.records import TrainBatch

# The learning rate decays to this share of its peak, along a half cosine.
_FINAL_LEARNING_RATE = 0.1
# Name of the token-Q heads among the parameters.
_TOKEN_Q_HEADS = "token_q_heads"
# Root mean square of Muon's steps, as that of AdamW's.
_MUON_RMS = 0.2


class TrainState(NamedTuple):
  """What the learner carries from step to step.

  Attributes:
    step: int32 scalar, gradient steps taken; also the params' version.
    params: of the network, float32, that the gradient is taken at.
    opt_state: of the optimizer.
    average: exponential moving average of params; None if none is kept.
    reference: params that KL is measured to; None if it is not.
    target_heads: moving average of the token-Q heads' params; None if no loss
      learns them.
    kl_coefficient: float32 scalar, weight of the KL loss; None if it is fixed.
  """

  step: chex.Array
  params: nnx.State
  opt_state: optax.OptState
  average: nnx.State | None = None
  reference: nnx.State | None = None
  target_heads: nnx.State | None = None
  kl_coefficient: chex.Array | None = None

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


def _new_state(
  params: nnx.State,
  optimizer: optax.GradientTransformation,
  config: LearnerConfig,
) -> TrainState:
  def copy(params):
    # The step consumes all of them.
    return jax.tree.map(jnp.copy, params)

  extra = {}
  if config.ema_decay > 0:
    extra["average"] = copy(params)
  if "kl" in config.losses:
    extra["reference"] = copy(params)
  if "token_value" in config.losses:
    extra["target_heads"] = copy(params[_TOKEN_Q_HEADS])
  if config.kl_target > 0:
    extra["kl_coefficient"] = jnp.float32(config.losses["kl"])
  params = copy(params)
  return TrainState(jnp.int32(0), params, optimizer.init(params), **extra)


def abstract_state(
  params: nnx.State,
  optimizer: optax.GradientTransformation,
  config: LearnerConfig,
  mesh: Mesh,
) -> TrainState:
  """What `init_state` gives, as `jax.ShapeDtypeStruct`s with shardings.

  Args:
    params: of the network, or their shapes.
    optimizer: see `make_optimizer`.
    config: of the learner.
    mesh: its devices need not be there.

  Raises:
    UserError: the mesh does not divide the parameters.
  """
  state = jax.eval_shape(lambda x: _new_state(x, optimizer, config), params)
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding
    ),
    state,
    state_shardings(state, mesh),
  )


def init_state(
  params: nnx.State,
  optimizer: optax.GradientTransformation,
  config: LearnerConfig,
  mesh: Mesh,
) -> TrainState:
  """The state before the first step, in the learner's layout; copies params."""
  params = partitioning.params_in(rules.LEARNER, params, mesh)
  abstract = abstract_state(params, optimizer, config, mesh)
  make = jax.jit(
    lambda x: _new_state(x, optimizer, config),
    out_shardings=jax.tree.map(lambda x: x.sharding, abstract),
  )
  return make(params)


def state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
  """How a state, or its shapes, lies on a mesh: the learner's layout."""
  params = partitioning.shardings(state.params, rules.LEARNER, mesh)
  others = partitioning.optimizer_shardings(
    state._replace(params=None, target_heads=None), rules.LEARNER, mesh
  )
  if state.target_heads is None:
    return others._replace(params=params)
  # Their paths say no more whose heads they are.
  return others._replace(params=params, target_heads=params[_TOKEN_Q_HEADS])


def loss_fn(
  params: nnx.State,
  state: TrainState,
  graphdef: nnx.GraphDef,
  batch: TrainBatch,
  config: LearnerConfig,
) -> tuple[chex.Array, dict[str, chex.Array]]:
  """`objective.total_loss` of params, all else in the state held constant."""
  weights = dict(config.losses)
  others = {}
  if state.reference is not None:
    others["reference"] = nnx.merge(graphdef, state.reference)
  if state.target_heads is not None:
    heads = {_TOKEN_Q_HEADS: state.target_heads}
    others["target"] = nnx.merge(graphdef, nnx.State({**params, **heads}))
  if state.kl_coefficient is not None:
    weights["kl"] = state.kl_coefficient
  x = objective.Pass(nnx.merge(graphdef, params), batch, config, **others)
  return objective.total_loss(x, weights)


def _follow(
  state: TrainState,
  params: nnx.State,
  metrics: dict[str, chex.Array],
  config: LearnerConfig,
  reference_step: int,
) -> TrainState:
  """What the state holds beside the parameters, after they have moved."""
  extra = {}
  if state.average is not None:
    extra["average"] = optax.incremental_update(
      params, state.average, 1 - config.ema_decay
    )
  if state.target_heads is not None:
    extra["target_heads"] = optax.incremental_update(
      params[_TOKEN_Q_HEADS], state.target_heads, 1 - config.target_decay
    )
  is_frozen = state.step >= reference_step
  if state.reference is not None:
    extra["reference"] = jax.tree.map(
      lambda old, new: jnp.where(is_frozen, old, new), state.reference, params
    )
  if state.kl_coefficient is not None:
    coefficient = regularizers.adapted_coefficient(
      state.kl_coefficient, metrics["kl"], config.kl_target
    )
    extra["kl_coefficient"] = jnp.where(
      is_frozen, coefficient, state.kl_coefficient
    )
  return state._replace(**extra)


def make_train_steps(
  graphdef: nnx.GraphDef,
  optimizer: optax.GradientTransformation,
  config: LearnerConfig,
  mesh: Mesh,
  *,
  reference_step: int = 0,
) -> Callable[[TrainState, TrainBatch], tuple[TrainState, dict]]:
  """Compiled gradient steps, in the learner's layout.

  Args:
    graphdef: structure of the network.
    optimizer: see `make_optimizer`.
    config: of the learner.
    mesh: that the state is on.
    reference_step: step after which the reference of the KL loss stays what it
      is; up to there it is the newest params, and KL 0.

  Returns:
    (state, batches) -> (state, metrics): takes a step for each of S batches
    stacked on a leading axis, in order, and consumes the state; metrics are
    float32 [S] `loss`, the losses of the config by name, `grad_norm` (before
    clipping), `param_norm` (after the step) and, if it is adapted,
    `kl_coefficient` (of the step).
  """

  def train_step(state, batch):
    grads, metrics = jax.grad(loss_fn, has_aux=True)(
      state.params, state, graphdef, batch, config
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics["grad_norm"] = optax.tree.norm(grads)
    # Tells of a step that broke the parameters before they are saved.
    metrics["param_norm"] = optax.tree.norm(params)
    if state.kl_coefficient is not None:
      metrics["kl_coefficient"] = state.kl_coefficient
    state = _follow(state, params, metrics, config, reference_step)
    return state._replace(
      step=state.step + 1, params=params, opt_state=opt_state
    ), metrics

  def train_steps(state, batches):
    lies = state_shardings(state, mesh)

    def body(state, batch):
      state, metrics = train_step(state, batch)
      return jax.lax.with_sharding_constraint(state, lies), metrics

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      state, metrics = jax.lax.scan(body, state, batches)
    # The loop's result is not bound by what its body gives.
    return jax.lax.with_sharding_constraint(state, lies), metrics

  return jax.jit(
    train_steps, in_shardings=(None, _by_line(mesh)), donate_argnums=0
  )


def put_batches(batches: Sequence[TrainBatch], mesh: Mesh) -> TrainBatch:
  """Batches stacked, on the devices of the mesh, each split by line."""
  sharding = _by_line(mesh)

  def put(*fields):
    stacked = np.stack(fields)
    # Every process has all lines, and hands on those of its devices.
    return jax.make_array_from_callback(
      stacked.shape, sharding, lambda rows: stacked[rows]
    )

  return jax.tree.map(put, *batches)


def _by_line(mesh: Mesh) -> NamedSharding:
  """Of stacked batches [S, B, ...]."""
  return rules.sharding((None, "lines"), rules.LEARNER, mesh)
