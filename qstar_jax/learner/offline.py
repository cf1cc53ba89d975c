"""Losses of offline reinforcement learning over tokens: ILQL, AWR, AWAC.

The action at t is the token there; it goes from the state before it, the line
up to the token that it follows, to the state after it.

Implicit language Q-learning (Snell et al. 2022, arXiv:2206.11871) is the sum of
`q_loss`, `expectile_loss` and `cql_loss`. Deviations: the squared
errors are means over weights, and Q of the twin heads adds up.
"""

import math

import chex
import jax
import jax.numpy as jnp

from qstar_jax.learner.losses import token_nll, weighted_mean


def advantage_weight(
  advantage: chex.Array, *, temperature: float, max_weight: float
) -> chex.Array:
  """exp(A / temperature), at most `max_weight`.

  Advantage-weighted regression (Peng et al. 2019, arXiv:1910.00177).

  Args:
    advantage: any shape, in the unit of rewards.
    temperature: above 0; a small one imitates the best alone.
    max_weight: above 0.
  """
  # Clipped first: the exponential of a large advantage is infinite.
  return jnp.exp(jnp.minimum(advantage / temperature, math.log(max_weight)))


def awac_loss(
  logits_BTV: chex.Array,
  tokens_BT: chex.Array,
  weight_BT: chex.Array,
  advantage_BT: chex.Array,
  *,
  temperature: float,
  max_weight: float,
) -> chex.Array:
  """`policy_loss` in which a token weighs `advantage_weight` times as much.

  AWAC (Nair et al. 2020, arXiv:2006.09359): the advantage comes from a critic,
  which learns nothing here.

  Args:
    logits_BTV: of the token at t, from the state before it.
    tokens_BT: int.
    weight_BT: of the token at t, >= 0.
    advantage_BT: Q of the token at t less V of the state before it.
    temperature: see `advantage_weight`.
    max_weight: see `advantage_weight`.

  Returns:
    A scalar, nats per token; 0, with zero gradient, if all weights are 0.

  Raises:
    AssertionError: the shapes do not match.
  """
  chex.assert_equal_shape([tokens_BT, weight_BT, advantage_BT])
  factor_BT = advantage_weight(
    jax.lax.stop_gradient(advantage_BT),
    temperature=temperature,
    max_weight=max_weight,
  )
  nll_BT = token_nll(logits_BTV, tokens_BT)
  return weighted_mean(nll_BT, weight_BT * factor_BT)


def q_loss(
  q_ZBT: chex.Array,
  value_BT: chex.Array,
  reward_BT: chex.Array,
  discount_BT: chex.Array,
  weight_BT: chex.Array,
) -> chex.Array:
  """Squared error of Q to reward + discount · V(next state), over Z heads.

  Args:
    q_ZBT: of the token at t.
    value_BT: V of the state after the token at t, constant here.
    reward_BT: of the token at t.
    discount_BT: in [0, 1], of what comes after the token at t.
    weight_BT: of the token at t, >= 0.

  Returns:
    A scalar; 0, with zero gradient, if all weights are 0.

  Raises:
    AssertionError: the shapes do not match.
  """
  chex.assert_equal_shape([value_BT, reward_BT, discount_BT, weight_BT])
  chex.assert_shape(q_ZBT, (None, *value_BT.shape))
  target_BT = reward_BT + discount_BT * jax.lax.stop_gradient(value_BT)
  error_ZBT = q_ZBT - target_BT[None]
  return weighted_mean(jnp.sum(error_ZBT**2, axis=0), weight_BT)


def expectile_loss(
  value_BT: chex.Array,
  q_BT: chex.Array,
  weight_BT: chex.Array,
  *,
  expectile: float,
) -> chex.Array:
  """Asymmetric squared error of V to Q of the tokens that were taken.

  |expectile - 1(Q < V)| (Q - V)^2 (Kostrikov et al. 2021, arXiv:2110.06169): at
  1/2 V is the mean of Q over the data, towards 1 its maximum.

  Args:
    value_BT: V of the state before the token at t.
    q_BT: of the token at t; constant here.
    weight_BT: of the token at t, >= 0.
    expectile: in (0, 1).

  Returns:
    A scalar; 0, with zero gradient, if all weights are 0.

  Raises:
    AssertionError: the shapes do not match.
  """
  chex.assert_equal_shape([value_BT, q_BT, weight_BT])
  above_BT = jax.lax.stop_gradient(q_BT) - value_BT
  side_BT = jnp.where(above_BT < 0, 1 - expectile, expectile)
  return weighted_mean(side_BT * above_BT**2, weight_BT)


def cql_loss(
  log_sum_ZBT: chex.Array, q_ZBT: chex.Array, weight_BT: chex.Array
) -> chex.Array:
  """log sum exp Q over the vocabulary, less Q of the token that was taken.

  CQL (Kumar et al. 2020, arXiv:2006.04779): tokens that nobody took are worth
  no more than those that somebody did.

  Args:
    log_sum_ZBT: over Q of all tokens that might stand at t.
    q_ZBT: of the token at t.
    weight_BT: of the token at t, >= 0.

  Returns:
    A scalar, nats over Z heads; 0, with zero gradient, if all weights are 0.

  Raises:
    AssertionError: the shapes do not match.
  """
  chex.assert_equal_shape([log_sum_ZBT, q_ZBT])
  chex.assert_shape(q_ZBT, (None, *weight_BT.shape))
  gap_BT = jnp.sum(log_sum_ZBT - q_ZBT, axis=0)
  return weighted_mean(gap_BT, weight_BT)
