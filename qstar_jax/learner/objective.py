"""What is minimised: losses by name, weighed by the config."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from qstar_jax.config import LearnerConfig
from qstar_jax.learner import losses, offline, regularizers
from qstar_jax.model.transformer import HeadOutput, Transformer
from qstar_jax.records import TrainBatch

# The records know nothing of JAX; the learner makes its own one a pytree.
jax.tree_util.register_dataclass(TrainBatch)


@dataclasses.dataclass(frozen=True)
class Pass:
  """What the network says of a batch, computed when a loss asks for it.

  Attributes:
    model: the network.
    batch: [B, T].
    config: of the learner.
    reference: the network that KL is measured to; None if it is not.
    target: the network with its target heads for token-Q; None if it has none.
  """

  model: Transformer
  batch: TrainBatch
  config: LearnerConfig
  reference: Transformer | None = None
  target: Transformer | None = None

  def _hidden(self, model: Transformer) -> chex.Array:
    batch = self.batch
    return model.forward(
      batch.tokens, position_BT=batch.position, last_BT=batch.last
    )

  def _before(self, after_BTX: chex.Array) -> chex.Array:
    """What stands at the token before each one in its line."""
    if self.batch.previous is None:
      first_B1X = jnp.zeros_like(after_BTX[:, :1])
      return jnp.concatenate([first_B1X, after_BTX[:, :-1]], axis=1)
    extra = (1,) * (after_BTX.ndim - 2)
    index = jnp.reshape(self.batch.previous, (*after_BTX.shape[:2], *extra))
    return jnp.take_along_axis(after_BTX, index, axis=1)

  @functools.cached_property
  def hidden_BTM(self) -> chex.Array:
    """Final hidden states after the tokens."""
    return self._hidden(self.model)

  @functools.cached_property
  def before_BTM(self) -> chex.Array:
    """Final hidden states before the tokens, which predict them."""
    return self._before(self.hidden_BTM)

  @functools.cached_property
  def logits_BTV(self) -> chex.Array:
    """Policy logits of the tokens."""
    return self.model.logits(self.before_BTM)

  @functools.cached_property
  def reference_BTV(self) -> chex.Array:
    """Logits of the tokens by the reference."""
    return self.reference.logits(self._before(self._hidden(self.reference)))

  @functools.cached_property
  def heads_BT(self) -> HeadOutput:
    """Value and PRM logits."""
    return self.model.heads(self.hidden_BTM)

  def _q(self, model: Transformer) -> chex.Array:
    return model.token_q(self.before_BTM, self.batch.tokens[..., None])[..., 0]

  @functools.cached_property
  def token_q_ZBT(self) -> chex.Array:
    """Q of the tokens, by twin heads."""
    return self._q(self.model)

  @functools.cached_property
  def target_q_BT(self) -> chex.Array:
    """The smaller Q of the target heads, a constant."""
    return jax.lax.stop_gradient(jnp.min(self._q(self.target), axis=0))

  @functools.cached_property
  def token_value_BT(self) -> chex.Array:
    """V that belongs to token-Q, after the tokens."""
    return self.model.token_value(self.hidden_BTM)

  @functools.cached_property
  def token_value_before_BT(self) -> chex.Array:
    """The same before the tokens."""
    return self._before(self.token_value_BT)


def _value(x: Pass) -> chex.Array:
  return losses.value_loss(
    x.heads_BT.value_logit, x.batch.value_target, x.batch.value_weight
  )


def _prm(x: Pass) -> chex.Array:
  return losses.prm_loss(
    x.heads_BT.prm_logit, x.batch.prm_target, x.batch.prm_weight
  )


def _policy(x: Pass) -> chex.Array:
  tokens_BT, weight_BT = x.batch.tokens, x.batch.policy_weight
  if x.model.config.recompute:
    nll_BT = x.model.token_nll(x.before_BTM, tokens_BT)
    return losses.weighted_mean(nll_BT, weight_BT)
  return losses.policy_loss(x.logits_BTV, tokens_BT, weight_BT)


def _prm_ranking(x: Pass) -> chex.Array:
  prm_BT = x.heads_BT.prm_logit
  rival_BT = jnp.take_along_axis(prm_BT, x.batch.rival, axis=1)
  return losses.prm_ranking_loss(rival_BT, prm_BT, x.batch.rival_weight)


def _token_q(x: Pass) -> chex.Array:
  batch = x.batch
  return offline.q_loss(
    x.token_q_ZBT,
    x.token_value_BT,
    batch.reward,
    batch.discount,
    batch.action_weight,
  )


def _token_value(x: Pass) -> chex.Array:
  return offline.expectile_loss(
    x.token_value_before_BT,
    x.target_q_BT,
    x.batch.action_weight,
    expectile=x.config.expectile,
  )


def _cql(x: Pass) -> chex.Array:
  return offline.cql_loss(
    x.model.token_q_log_sum(x.before_BTM), x.token_q_ZBT, x.batch.action_weight
  )


def _awac(x: Pass) -> chex.Array:
  return offline.awac_loss(
    x.logits_BTV,
    x.batch.tokens,
    x.batch.action_weight,
    x.target_q_BT - x.token_value_before_BT,
    temperature=x.config.advantage_temperature,
    max_weight=x.config.max_advantage_weight,
  )


def _kl(x: Pass) -> chex.Array:
  return regularizers.kl_loss(
    x.logits_BTV, x.reference_BTV, x.batch.policy_weight
  )


def _entropy(x: Pass) -> chex.Array:
  return regularizers.entropy_loss(x.logits_BTV, x.batch.policy_weight)


class Loss(NamedTuple):
  """A loss by name.

  Attributes:
    fn: of a pass; a scalar.
    field: of the batch, without which there is nothing to learn.
  """

  fn: Callable[[Pass], chex.Array]
  field: str = "tokens"


# By the names of `LearnerConfig.losses`.
LOSSES: Mapping[str, Loss] = {
  "value": Loss(_value),
  "prm": Loss(_prm),
  "policy": Loss(_policy),
  "prm_ranking": Loss(_prm_ranking, "rival"),
  "token_q": Loss(_token_q, "reward"),
  "token_value": Loss(_token_value, "reward"),
  "cql": Loss(_cql, "reward"),
  "awac": Loss(_awac, "reward"),
  "kl": Loss(_kl),
  "entropy": Loss(_entropy),
}


def reads(config: LearnerConfig, field: str) -> bool:
  """Whether one of the config's losses needs this field of the batch."""
  return any(LOSSES[name].field == field for name in config.losses)


def total_loss(
  x: Pass, weights: Mapping[str, chex.Numeric]
) -> tuple[chex.Array, dict[str, chex.Array]]:
  """The weighted sum of losses; it, as `loss`, and each of them by name.

  Losses without a weight are not computed, nor those whose field the batch
  lacks: the warm start's lines have no rewards and no rivals.

  Args:
    x: the pass.
    weights: by the names of `LOSSES`.
  """
  # In one order, whatever that of the config is: sums of floats depend on it,
  # those of gradients as well.
  by_name = {
    name: loss.fn(x)
    for name, loss in LOSSES.items()
    if name in weights and getattr(x.batch, loss.field) is not None
  }
  total = sum(
    (weights[name] * loss for name, loss in by_name.items()), jnp.float32(0)
  )
  return total, by_name | {"loss": total}
