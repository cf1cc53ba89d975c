"""Softmax attention over keys that streams share and keys of their own."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from qstar_jax.improvement import NEG_INF


class Segment(NamedTuple):
  """S keys and values that R queries of each of X leaves look at.

  Attributes:
    keys: [X, K, C, S] where all R queries share them, else [X, K, R, C, S].
    values: [X, K, S, C], or [X, K, R, S, C].
    bias: float32, added to the scores; broadcasts to [X, K, R, S].
  """

  keys: chex.Array
  values: chex.Array
  bias: chex.Array


def mask_bias(is_token: chex.Array) -> chex.Array:
  """0 where there is a token, else `NEG_INF`."""
  return jnp.where(is_token, 0.0, NEG_INF).astype(jnp.float32)


def attend(query_XRHC: chex.Array, segments: list[Segment]) -> chex.Array:
  """Softmax attention over several segments of keys at once.

  Where queries share their keys, attention is a product of matrices with R
  rows and reads the keys once (Juravsky et al. 2024, "Hydragen").

  Args:
    query_XRHC: [X, R, H, C], R queries of each of X leaves.
    segments: what they look at.

  Returns:
    [X, R, H, C] in the query's dtype; softmax in float32.
  """
  x, r, h, c = query_XRHC.shape
  k = segments[0].keys.shape[1]
  g = h // k
  query_XRKGC = jnp.reshape(query_XRHC, (x, r, k, g, c))
  # Keys' heads come before streams, as in the products.
  query_XKRGC = jnp.swapaxes(query_XRKGC, 1, 2)

  def product(left_XKRG, right):
    if right.ndim == 5:
      return _product(left_XKRG, right)
    rows = jnp.reshape(left_XKRG, (x, k, r * g, -1))
    return jnp.reshape(_product(rows, right), (x, k, r, g, -1))

  scores = [
    product(query_XKRGC, segment.keys) * c**-0.5
    + jnp.expand_dims(segment.bias, 3)
    for segment in segments
  ]
  # Segments are not concatenated and weights not divided: copies cost as much
  # as the products of the shorter segments.
  peaks = [jnp.max(score, axis=-1, keepdims=True) for score in scores]
  peak = functools.reduce(jnp.maximum, peaks)
  weights = [jnp.exp(score - peak) for score in scores]
  total = sum(jnp.sum(weight, axis=-1, keepdims=True) for weight in weights)
  summed = sum(
    product(weight.astype(query_XRHC.dtype), segment.values)
    for weight, segment in zip(weights, segments, strict=True)
  )
  attended_XRKGC = jnp.swapaxes(summed / total, 1, 2)
  return jnp.reshape(attended_XRKGC, (x, r, h, c)).astype(query_XRHC.dtype)


def _product(left: chex.Array, right: chex.Array) -> chex.Array:
  """Matrix products over the last two axes, accumulated in float32."""
  batch = tuple(range(left.ndim - 2))
  dimensions = (((left.ndim - 1,), (left.ndim - 2,)), (batch, batch))
  return jax.lax.dot_general(
    left, right, dimensions, preferred_element_type=jnp.float32
  )
