"""Losses on a batch of lines: pure functions of arrays.

Every loss is a weighted mean, so `TrainBatch`'s weights say what counts and by
how much, and the loss does not change when all of them are scaled.
"""

import chex
import jax
import jax.numpy as jnp
import optax


def weighted_mean(values: chex.Array, weights: chex.Array) -> chex.Array:
  """sum(weights * values) / sum(weights); 0, with zero gradient, if all are 0.

  Args:
    values: any shape, finite.
    weights: the same shape, >= 0.

  Returns:
    A scalar.

  Raises:
    AssertionError: the shapes differ.
  """
  chex.assert_equal_shape([values, weights])
  total = jnp.sum(weights)
  return jnp.sum(weights * values) / jnp.where(total > 0, total, 1.0)


def policy_loss(
  logits_BTV: chex.Array, tokens_BT: chex.Array, weight_BT: chex.Array
) -> chex.Array:
  """Weighted mean of -log p(token | before it), in nats per token.

  The loss to distil is the mean over search nodes of
  `-sum_a pi'(a) log pi(a|s)` with log pi(a|s) the sum over the step's tokens,
  so all tokens of candidate a weigh pi'(a). Dividing by the sum of the weights
  makes it nats per token, as language models report it, and not per node. The
  two differ by one factor per batch, the mean length of a step under pi', and
  never in how one candidate, node or token weighs against another.

  Args:
    logits_BTV: of the token at t, from what is before it.
    tokens_BT: int.
    weight_BT: of the token at t, >= 0; 0 where nothing predicts it.

  Returns:
    A scalar; 0, with zero gradient, if all weights are 0.

  Raises:
    AssertionError: the shapes do not match.
  """
  return weighted_mean(token_nll(logits_BTV, tokens_BT), weight_BT)


def token_nll(logits_BTV: chex.Array, tokens_BT: chex.Array) -> chex.Array:
  """-log p of the token at t, nats: [B, T]. Arguments as of `policy_loss`.

  Raises:
    AssertionError: the shapes do not match.
  """
  chex.assert_rank(logits_BTV, 3)
  chex.assert_shape(tokens_BT, logits_BTV.shape[:2])
  return optax.softmax_cross_entropy_with_integer_labels(logits_BTV, tokens_BT)


def value_loss(
  value_logits_BT: chex.Array, target_BT: chex.Array, weight_BT: chex.Array
) -> chex.Array:
  """Weighted mean binary cross-entropy of V = sigmoid(logit), in nats.

  A target strictly between 0 and 1 leaves its own entropy as the least loss.

  Args:
    value_logits_BT: of P(solved) after the token at t.
    target_BT: in [0, 1].
    weight_BT: >= 0; 0 where there is no target.

  Returns:
    A scalar; 0, with zero gradient, if all weights are 0.

  Raises:
    AssertionError: the shapes do not match.
  """
  return _cross_entropy(value_logits_BT, target_BT, weight_BT)


def prm_loss(
  prm_logits_BT: chex.Array, target_BT: chex.Array, weight_BT: chex.Array
) -> chex.Array:
  """`value_loss` for the PRM score, whose targets are labels of steps."""
  return _cross_entropy(prm_logits_BT, target_BT, weight_BT)


def prm_ranking_loss(
  better: chex.Array, worse: chex.Array, weight: chex.Array
) -> chex.Array:
  """Weighted mean of -log P(better beats worse), in nats.

  The model of Bradley and Terry 1952, P = sigmoid(difference of the scores), of
  pairs of candidates of one node.

  Args:
    better: PRM logit of the candidate with the larger label.
    worse: of the other one, of the same shape.
    weight: >= 0; 0 where there is no pair.

  Returns:
    A scalar; 0, with zero gradient, if all weights are 0.

  Raises:
    AssertionError: the shapes do not match.
  """
  chex.assert_equal_shape([better, worse, weight])
  return weighted_mean(jax.nn.softplus(worse - better), weight)


def _cross_entropy(
  logits_BT: chex.Array, target_BT: chex.Array, weight_BT: chex.Array
) -> chex.Array:
  chex.assert_rank(logits_BT, 2)
  chex.assert_equal_shape([logits_BT, target_BT, weight_BT])
  return weighted_mean(
    optax.sigmoid_binary_cross_entropy(logits_BT, target_BT), weight_BT
  )
