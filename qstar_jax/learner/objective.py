"""What is minimised: losses by name, weighed by the config."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import chex
from flax import nnx

from qstar_jax.config import LearnerConfig
from qstar_jax.learner import losses
from qstar_jax.model.transformer import HeadOutput, Transformer
from qstar_jax.records import TrainBatch


@dataclasses.dataclass(frozen=True)
class Pass:
  """What the network says of a batch, computed when a loss asks for it.

  Attributes:
    model: the network.
    batch: [B, T].
    config: of the learner.
  """

  model: Transformer
  batch: TrainBatch
  config: LearnerConfig

  @functools.cached_property
  def hidden_BTM(self) -> chex.Array:
    """Final hidden states of the lines."""
    return self.model.forward(self.batch.tokens)

  @functools.cached_property
  def logits_BTV(self) -> chex.Array:
    """Policy logits: at position t, of the token at t + 1."""
    return self.model.logits(self.hidden_BTM)

  @functools.cached_property
  def heads_BT(self) -> HeadOutput:
    """Value and PRM logits."""
    return self.model.heads(self.hidden_BTM)


def _policy(x: Pass) -> chex.Array:
  return losses.policy_loss(x.logits_BTV, x.batch.tokens, x.batch.policy_weight)


def _value(x: Pass) -> chex.Array:
  return losses.value_loss(
    x.heads_BT.value_logit, x.batch.value_target, x.batch.value_weight
  )


def _prm(x: Pass) -> chex.Array:
  return losses.prm_loss(
    x.heads_BT.prm_logit, x.batch.prm_target, x.batch.prm_weight
  )


# By the names of `LearnerConfig.losses`: the loss of a pass, a scalar.
LOSSES: Mapping[str, Callable[[Pass], chex.Array]] = {
  "value": _value,
  "prm": _prm,
  "policy": _policy,
}


def loss_fn(
  params: nnx.State,
  graphdef: nnx.GraphDef,
  batch: TrainBatch,
  config: LearnerConfig,
) -> tuple[chex.Array, dict[str, chex.Array]]:
  """The weighted sum of the config's losses; it, as `loss`, and each by name.

  Losses that the config does not name are not computed.
  """
  x = Pass(nnx.merge(graphdef, params), batch, config)
  # In one order, whatever that of the config is: sums of floats depend on it,
  # those of gradients as well.
  by_name = {
    name: loss(x) for name, loss in LOSSES.items() if name in config.losses
  }
  total = sum(config.losses[name] * loss for name, loss in by_name.items())
  return total, by_name | {"loss": total}
