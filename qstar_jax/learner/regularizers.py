"""What keeps the policy near where it was, and wide: KL control and entropy."""

import chex
import jax
import jax.numpy as jnp

from qstar_jax.learner.losses import weighted_mean

# Of the controller: the coefficient's largest relative change in a step is
# their product.
_MAX_ERROR = 0.2
_GAIN = 0.1


def kl_loss(
  logits_BTV: chex.Array, reference_BTV: chex.Array, weight_BT: chex.Array
) -> chex.Array:
  """Weighted mean of KL(pi || reference) of the next token, in nats.

  Over the whole vocabulary, so that it has no noise of its own.

  Args:
    logits_BTV: of pi, of the token at t.
    reference_BTV: of the reference, constant here.
    weight_BT: of the token at t, >= 0.

  Returns:
    A scalar >= 0; 0, with zero gradient, if all weights are 0.

  Raises:
    AssertionError: the shapes do not match.
  """
  chex.assert_equal_shape([logits_BTV, reference_BTV])
  log_pi_BTV = _finite_log_softmax(logits_BTV)
  ratio_BTV = log_pi_BTV - _finite_log_softmax(reference_BTV)
  kl_BT = jnp.sum(jnp.exp(log_pi_BTV) * ratio_BTV, axis=-1)
  return weighted_mean(kl_BT, weight_BT)


def entropy_loss(logits_BTV: chex.Array, weight_BT: chex.Array) -> chex.Array:
  """Minus the weighted mean entropy of the next token, in nats: <= 0.

  Args:
    logits_BTV: of pi, of the token at t.
    weight_BT: of the token at t, >= 0.

  Returns:
    A scalar; 0, with zero gradient, if all weights are 0.

  Raises:
    AssertionError: the shapes do not match.
  """
  log_pi_BTV = _finite_log_softmax(logits_BTV)
  negative_BT = jnp.sum(jnp.exp(log_pi_BTV) * log_pi_BTV, axis=-1)
  return weighted_mean(negative_BT, weight_BT)


def _finite_log_softmax(logits_BTV: chex.Array) -> chex.Array:
  """Of logits that may be -inf: what cannot be adds 0 to a mean, not NaN."""
  lowest = jnp.finfo(logits_BTV.dtype).min
  return jnp.maximum(jax.nn.log_softmax(logits_BTV), lowest)


def adapted_coefficient(
  coefficient: chex.Array, kl: chex.Array, target: float
) -> chex.Array:
  """The weight of the KL loss after a step that measured `kl`.

  The proportional controller of Ziegler et al. 2019 (arXiv:1909.08593, section
  2.2): larger while KL is above the target, smaller while it is below.

  Args:
    coefficient: > 0, scalar.
    kl: nats, scalar.
    target: nats, above 0.
  """
  error = jnp.clip(kl / target - 1, -_MAX_ERROR, _MAX_ERROR)
  return coefficient * (1 + _GAIN * error)
