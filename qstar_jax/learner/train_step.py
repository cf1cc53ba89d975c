"""One gradient step: from a batch of lines to new parameters."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qstar_jax.config import LearnerConfig
from qstar_jax.learner import losses
from qstar_jax.records import TrainBatch

# The learning rate decays to this share of its peak, along a half cosine.
_FINAL_LEARNING_RATE = 0.1

# The records know nothing of JAX; the learner makes its own one a pytree.
jax.tree_util.register_dataclass(TrainBatch)


class TrainState(NamedTuple):
  """What the learner carries from step to step.

  Attributes:
    step: int32 scalar, gradient steps taken; also the params' version.
    params: of the network, float32.
    opt_state: of the optimizer.
  """

  step: chex.Array
  params: nnx.State
  opt_state: optax.OptState


def make_optimizer(
  config: LearnerConfig, total_steps: int
) -> optax.GradientTransformation:
  """AdamW with clipping, linear warm-up and cosine decay.

  Args:
    config: of the learner.
    total_steps: of the whole run; the schedule ends there.

  Returns:
    The optimizer. Weight decay is on matrices only: norms and biases have none.
  """
  schedule = optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=config.learning_rate,
    warmup_steps=config.warmup_steps,
    decay_steps=max(total_steps, config.warmup_steps + 1),
    end_value=_FINAL_LEARNING_RATE * config.learning_rate,
  )
  return optax.chain(
    optax.clip_by_global_norm(config.max_grad_norm),
    optax.adamw(
      schedule,
      weight_decay=config.weight_decay,
      mask=lambda params: jax.tree.map_with_path(_is_matrix, params),
    ),
  )


def _is_matrix(path, value) -> bool:
  """Whether a parameter is a matrix, the stacked layer axis not counted."""
  is_stacked = any(getattr(key, "key", None) == "layers" for key in path)
  return value.ndim - is_stacked >= 2


def init_state(
  params: nnx.State, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
  """The state before the first step, replicated over the mesh."""
  state = TrainState(jnp.int32(0), params, optimizer.init(params))
  return jax.device_put(state, NamedSharding(mesh, P()))


def loss_fn(
  params: nnx.State,
  graphdef: nnx.GraphDef,
  batch: TrainBatch,
  config: LearnerConfig,
) -> tuple[chex.Array, dict[str, chex.Array]]:
  """The weighted sum of policy, value and PRM loss, and each by name."""
  model = nnx.merge(graphdef, params)
  hidden_BTM = model.forward(batch.tokens)
  heads = model.heads(hidden_BTM)
  policy = losses.policy_loss(
    model.logits(hidden_BTM), batch.tokens, batch.policy_weight
  )
  value = losses.value_loss(
    heads.value_logit, batch.value_target, batch.value_weight
  )
  prm = losses.prm_loss(heads.prm_logit, batch.prm_target, batch.prm_weight)
  total = (
    config.policy_weight * policy
    + config.value_weight * value
    + config.prm_weight * prm
  )
  return total, {"policy": policy, "value": value, "prm": prm, "loss": total}


def make_train_step(
  graphdef: nnx.GraphDef,
  optimizer: optax.GradientTransformation,
  config: LearnerConfig,
  mesh: Mesh,
) -> Callable[[TrainState, TrainBatch], tuple[TrainState, dict]]:
  """The compiled gradient step; lines are split over the mesh's data axis.

  Returns:
    (state, batch) -> (state, metrics): consumes the state; metrics are float32
    scalars `loss`, `policy`, `value`, `prm` (nats), `grad_norm` (before
    clipping) and `param_norm` (after the step).
  """
  replicated = NamedSharding(mesh, P())
  by_line = NamedSharding(mesh, P("data"))

  def train_step(state, batch):
    grads, metrics = jax.grad(loss_fn, has_aux=True)(
      state.params, graphdef, batch, config
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics["grad_norm"] = optax.tree.norm(grads)
    # Tells of a step that broke the parameters before they are saved.
    metrics["param_norm"] = optax.tree.norm(params)
    return TrainState(state.step + 1, params, opt_state), metrics

  return jax.jit(
    train_step,
    in_shardings=(replicated, by_line),
    out_shardings=(replicated, replicated),
    donate_argnums=0,
  )


def put_batch(batch: TrainBatch, mesh: Mesh) -> TrainBatch:
  """The batch on the devices of the mesh, split by line."""
  return jax.device_put(batch, NamedSharding(mesh, P("data")))
