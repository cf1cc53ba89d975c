"""Sampling steps from the step cache: the network's side of an expansion."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from qstar_jax.model import sampling
from qstar_jax.model import step_cache
from qstar_jax.model.step_cache import Prefix, StepStore
from qstar_jax.model.transformer import LayerStack, Transformer


class DecodedSteps(NamedTuple):
  """A sampled step for each of X * A streams.

  Attributes:
    tokens: int32 [X, A, T], 0 behind the step's end.
    length: int32 [X, A], tokens with the delimiter.
    token_log_prob: float32 [X, A, T], nats at temperature 1; 0 behind the end.
    proposal_log_prob: float32 [X, A], summed over the step, as sampled from.
    hidden: [X, A, M], final hidden state at the step's last token.
    is_complete: bool [X, A], the step has its delimiter within T tokens.
  """

  tokens: chex.Array
  length: chex.Array
  token_log_prob: chex.Array
  proposal_log_prob: chex.Array
  hidden: chex.Array
  is_complete: chex.Array


def decode_steps(
  model: Transformer,
  layers: LayerStack,
  prefix: Prefix,
  hidden_XM: chex.Array,
  position_X: chex.Array,
  uniform_XAT: chex.Array,
  ends_step_V: chex.Array,
  temperature: float,
) -> DecodedSteps:
  """Samples A steps of at most T tokens after each of X shared prefixes.

  A step's last token is run through the network as well: V, R and the next
  step's first token are read from its hidden state.

  Args:
    model: the network.
    layers: its layers.
    prefix: what the streams of a leaf share.
    hidden_XM: [X, M], final hidden state of the prefix.
    position_X: int32 [X], absolute position of the steps' first token.
    uniform_XAT: [X, A, T] in [0, 1), one random number per token.
    ends_step_V: bool [V], tokens that end a step.
    temperature: static, of the proposal.

  Returns:
    The steps.
  """
  x, a, t = uniform_XAT.shape
  m = hidden_XM.shape[-1]
  config = model.config
  k, c = config.num_kv_heads, config.head_dim
  dtype = jnp.dtype(config.compute_dtype)
  prefix_bias = prefix.bias[:, None, None]
  uniform_TR = jnp.moveaxis(uniform_XAT, 2, 0).reshape(t, x * a)

  def run_token(token_R, step, buffers):
    """One token of every stream; buffers hold the streams' own keys."""
    position_XA = jnp.broadcast_to((position_X + step)[:, None], (x, a))
    is_written_T = jnp.arange(t) <= step
    own_bias = step_cache._bias(is_written_T)[None, None, None]

    def fn(layer, x_XAM, prefix_keys, prefix_values, own_keys, own_values):
      query, key, value = layer.project(x_XAM, position_XA)
      own_keys = jax.lax.dynamic_update_slice_in_dim(
        own_keys, key[..., None], step, axis=4
      )
      own_values = jax.lax.dynamic_update_slice_in_dim(
        own_values, value[..., None, :], step, axis=3
      )
      attended = step_cache.attend(
        query,
        [
          (prefix_keys, prefix_values, prefix_bias),
          (own_keys, own_values, own_bias),
        ],
      )
      return layer.finish(x_XAM, attended), (own_keys, own_values)

    x_XAM, buffers = layers.run(
      fn,
      model.embed(token_R).reshape(x, a, m),
      prefix.keys,
      prefix.values,
      [key for key, _ in buffers],
      [value for _, value in buffers],
    )
    return model.final_norm(x_XAM).reshape(x * a, m), buffers

  class Carry(NamedTuple):
    step: chex.Array
    hidden: chex.Array
    is_open: chex.Array
    tokens: chex.Array
    log_prob: chex.Array
    proposal_log_prob: chex.Array
    length: chex.Array
    buffers: list[tuple[chex.Array, chex.Array]]

  def body(carry):
    sampled = sampling.sample_tokens(
      model.logits(carry.hidden), uniform_TR[carry.step], temperature
    )
    is_open = carry.is_open
    token_R = jnp.where(is_open, sampled.token, 0)
    log_prob_R = jnp.where(is_open, sampled.log_prob, 0.0)
    hidden, buffers = run_token(token_R, carry.step, carry.buffers)
    return Carry(
      step=carry.step + 1,
      hidden=jnp.where(is_open[:, None], hidden, carry.hidden),
      is_open=is_open & ~ends_step_V[token_R],
      tokens=carry.tokens.at[carry.step].set(token_R),
      log_prob=carry.log_prob.at[carry.step].set(log_prob_R),
      proposal_log_prob=carry.proposal_log_prob
      + jnp.where(is_open, sampled.proposal_log_prob, 0.0),
      length=carry.length + is_open,
      buffers=buffers,
    )

  rows = x * a
  carry = Carry(
    step=jnp.int32(0),
    hidden=jnp.repeat(hidden_XM, a, axis=0),
    is_open=jnp.ones((rows,), bool),
    tokens=jnp.zeros((t, rows), jnp.int32),
    log_prob=jnp.zeros((t, rows), jnp.float32),
    proposal_log_prob=jnp.zeros((rows,), jnp.float32),
    length=jnp.zeros((rows,), jnp.int32),
    buffers=[
      (jnp.zeros((x, a, k, c, t), dtype), jnp.zeros((x, a, k, t, c), dtype))
      for _ in range(config.num_layers)
    ],
  )
  carry = jax.lax.while_loop(
    lambda carry: (carry.step < t) & jnp.any(carry.is_open), body, carry
  )

  def by_stream(y_TR):
    return jnp.moveaxis(y_TR.reshape(t, x, a), 0, 2)

  return DecodedSteps(
    tokens=by_stream(carry.tokens),
    length=carry.length.reshape(x, a),
    token_log_prob=by_stream(carry.log_prob),
    proposal_log_prob=carry.proposal_log_prob.reshape(x, a),
    hidden=carry.hidden.reshape(x, a, m),
    is_complete=~carry.is_open.reshape(x, a),
  )
