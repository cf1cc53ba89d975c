"""Sampling steps from the step cache: the network's side of an expansion."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from qstar_jax.config import ModelConfig
from qstar_jax.distributed import rules
from qstar_jax.model.attention import Segment, attend, mask_bias
from qstar_jax.model.proposal import Proposal
from qstar_jax.model.step_cache import Prefix
from qstar_jax.model.transformer import (
  LayerStack,
  Rotation,
  Transformer,
  rotation_at,
)

# Of a core's cache, for the prefixes that are decoded together.
_CPU_CACHE_BYTES = 4 << 20
# Fewer rows make poor matrix products, and more are no faster.
_CPU_MIN_STREAMS = 32
_CPU_MAX_STREAMS = 256


class DecodedSteps(NamedTuple):
  """A proposed step for each of X * A streams.

  Attributes:
    tokens: int32 [X, A, T], 0 behind the step's end.
    length: int32 [X, A], tokens with the delimiter.
    token_log_prob: float32 [X, A, T], nats at temperature 1; 0 behind the end.
    proposal_log_prob: float32 [X, A], of the step under its `Proposal`.
    hidden: [X, A, M], final hidden state at the step's last token.
    hidden_before: the same at the token before it, where token-Q of the last
      one is read; None if the network has no such heads.
    is_complete: bool [X, A], the step has its delimiter within T tokens.
  """

  tokens: chex.Array
  length: chex.Array
  token_log_prob: chex.Array
  proposal_log_prob: chex.Array
  hidden: chex.Array
  hidden_before: chex.Array | None
  is_complete: chex.Array


class DecodedStreams(NamedTuple):
  """Steps with their keys and values.

  Attributes:
    steps: of X leaves.
    num_slots: int32 scalar, tokens computed for streams open or not.
    keys: L x [X, K, A, T, C], rotated at absolute positions.
    values: the same.
  """

  steps: DecodedSteps
  num_slots: chex.Array
  keys: list[chex.Array]
  values: list[chex.Array]


class Streams(NamedTuple):
  """R = X * A streams between two tokens.

  Attributes:
    step: int32 scalar, tokens chosen so far.
    hidden: [R, M], final hidden state at each stream's last token.
    hidden_before: the same, one token earlier; see `DecodedSteps`.
    is_open: bool [R], the step has no delimiter yet.
    tokens: int32 [T, R].
    log_prob: float32 [T, R].
    proposed: the proposal's own state.
    length: int32 [R].
    own: L x (keys, values), each [X, K, A, T, C], of the streams' own tokens;
      packed, as `LayerStack.run` takes them.
  """

  step: chex.Array
  hidden: chex.Array
  hidden_before: chex.Array | None
  is_open: chex.Array
  tokens: chex.Array
  log_prob: chex.Array
  proposed: Any
  length: chex.Array
  own: Any

  @property
  def sizes(self) -> tuple[int, int, int]:
    """X, A and T."""
    x, _, a, t, _ = jax.tree.leaves(self.own)[0].shape[-5:]
    return x, a, t

  def follow(self, parent_XA: chex.Array) -> "Streams":
    """Each stream as its parent was; empty where there is none (-1)."""
    x, a = parent_XA.shape
    row_R = (jnp.arange(x)[:, None] * a + parent_XA).reshape(-1)
    has_parent_R = (parent_XA >= 0).reshape(-1)

    def follow(own):
      # Packed, an array may hold all layers: X is its fifth axis from the end.
      return jax.vmap(
        lambda y_KATC, parent_A: y_KATC[..., parent_A, :, :], (-5, 0), -5
      )(own, parent_XA)

    return self._replace(
      hidden=self.hidden[row_R],
      hidden_before=jax.tree.map(lambda y: y[row_R], self.hidden_before),
      is_open=self.is_open[row_R] & has_parent_R,
      tokens=jnp.where(has_parent_R[None], self.tokens[:, row_R], 0),
      log_prob=jnp.where(has_parent_R[None], self.log_prob[:, row_R], 0.0),
      length=jnp.where(has_parent_R, self.length[row_R], 0),
      own=jax.tree.map(follow, self.own),
    )

  def steps(self, proposal: Proposal) -> DecodedSteps:
    x, a, t = self.sizes

    def by_stream(y_TR):
      return jnp.moveaxis(y_TR.reshape(t, x, a), 0, 2)

    return DecodedSteps(
      tokens=by_stream(self.tokens),
      length=self.length.reshape(x, a),
      token_log_prob=by_stream(self.log_prob),
      proposal_log_prob=proposal.log_prob(self.proposed),
      hidden=self.hidden.reshape(x, a, -1),
      hidden_before=jax.tree.map(
        lambda y: y.reshape(x, a, -1), self.hidden_before
      ),
      is_complete=~self.is_open.reshape(x, a),
    )


def _open_streams(
  config: ModelConfig,
  layers: LayerStack,
  proposal: Proposal,
  hidden_XM: chex.Array,
  uniform_TXAU: chex.Array,
  width_X: chex.Array,
) -> Streams:
  t, x, a, _ = uniform_TXAU.shape
  proposed, is_open_XA = proposal.begin(uniform_TXAU[0], width_X)
  rows = x * a
  own_shape = (x, config.num_kv_heads, a, t, config.head_dim)

  zeros = jnp.zeros(own_shape, hidden_XM.dtype)
  hidden = jnp.repeat(hidden_XM, a, axis=0)
  return Streams(
    step=jnp.int32(0),
    hidden=hidden,
    hidden_before=hidden if config.token_q else None,
    is_open=is_open_XA.reshape(-1),
    tokens=jnp.zeros((t, rows), jnp.int32),
    log_prob=jnp.zeros((t, rows), jnp.float32),
    proposed=proposed,
    length=jnp.zeros((rows,), jnp.int32),
    own=layers.pack([(zeros, zeros)] * config.num_layers),
  )


def _run_token(
  model: Transformer,
  layers: LayerStack,
  prefix: Any,
  rotation: Rotation,
  token_R: chex.Array,
  streams: Streams,
) -> tuple[chex.Array, Any]:
  """Runs one token of every stream: its hidden state, and `Streams.own`.

  The prefix's segments are packed.
  """
  x, a, t = streams.sizes
  step = streams.step
  own_bias = mask_bias(jnp.arange(t) <= step)[None, None, None]

  def put(own_XKATC, new_XAKC):
    new_XKA1C = jnp.swapaxes(new_XAKC, 1, 2)[:, :, :, None]
    return jax.lax.dynamic_update_slice_in_dim(
      own_XKATC, new_XKA1C, step, axis=3
    )

  def fn(layer, x_XAM, prefix, own):
    query, key, value = layer.project(x_XAM, rotation)
    own_keys, own_values = put(own[0], key), put(own[1], value)
    # Transposed inside the product: [T, C] is what is cheap to write.
    own_keys_XKACT = jnp.swapaxes(own_keys, 3, 4)
    own = Segment(own_keys_XKACT, own_values, own_bias)
    attended = attend(query, [prefix, own])
    return layer.finish(x_XAM, attended), (own_keys, own_values)

  x_XAM, own = layers.run(
    fn, model.embed(token_R).reshape(x, a, -1), prefix, streams.own
  )
  hidden_RM = model.final_norm(x_XAM).reshape(x * a, -1)
  return hidden_RM, own


def _decode_together(
  model: Transformer,
  layers: LayerStack,
  prefix: Prefix,
  hidden_XM: chex.Array,
  position_X: chex.Array,
  uniform_XATU: chex.Array,
  width_X: chex.Array,
  ends_step_V: chex.Array,
  proposal: Proposal,
) -> Streams:
  """All streams of some leaves, token by token, until all have ended."""
  t = uniform_XATU.shape[2]
  uniform_TXAU = jnp.moveaxis(uniform_XATU, 2, 0)
  # All positions at once: in the loop, XLA would fuse sine and cosine into
  # every use of them, layer after layer.
  position_TX = position_X[None] + jnp.arange(t)[:, None]
  rotation_TX = rotation_at(position_TX[..., None], model.config)
  segments = layers.pack(prefix.segments())

  def body(streams):
    step = streams.step
    proposed, choice = proposal.choose(
      streams.proposed,
      # To be cut into groups for sampling.
      rules.whole(model.logits(streams.hidden)),
      streams.is_open,
      uniform_TXAU[step],
      width_X,
    )
    if choice.parent is not None:
      streams = streams.follow(choice.parent)
    is_open = streams.is_open
    token_R = jnp.where(is_open, choice.token, 0)
    log_prob_R = jnp.where(is_open, choice.log_prob, 0.0)
    rotation = jax.tree.map(lambda y: y[step], rotation_TX)
    hidden_RM, own = _run_token(
      model, layers, segments, rotation, token_R, streams
    )
    before_RM = streams.hidden_before
    if before_RM is not None:
      before_RM = jnp.where(is_open[:, None], streams.hidden, before_RM)
    return Streams(
      step=step + 1,
      hidden=jnp.where(is_open[:, None], hidden_RM, streams.hidden),
      hidden_before=before_RM,
      is_open=is_open & ~ends_step_V[token_R],
      tokens=streams.tokens.at[step].set(token_R),
      log_prob=streams.log_prob.at[step].set(log_prob_R),
      proposed=proposed,
      length=streams.length + is_open,
      own=own,
    )

  return jax.lax.while_loop(
    lambda streams: (streams.step < t) & jnp.any(streams.is_open),
    body,
    _open_streams(
      model.config, layers, proposal, hidden_XM, uniform_TXAU, width_X
    ),
  )


def _leaves_at_once(prefix: Prefix, num_candidates: int, platform: str) -> int:
  """How many leaves to decode together.

  Every token reads the prefix of its leaf again. On a CPU those of a few leaves
  stay in its cache; an accelerator wants all leaves at once.
  """
  num_leaves = prefix.bias.shape[0]
  if platform != "cpu":
    return num_leaves
  arrays = [*prefix.keys, *prefix.values]
  leaf_bytes = sum(y.size * y.dtype.itemsize for y in arrays) // num_leaves
  fewest, most = (
    -(-streams // num_candidates)
    for streams in (_CPU_MIN_STREAMS, _CPU_MAX_STREAMS)
  )
  fitting = max(fewest, min(_CPU_CACHE_BYTES // leaf_bytes, most))
  # As many in the last turn as in the others, as far as that goes.
  num_turns = -(-num_leaves // fitting)
  return -(-num_leaves // num_turns)


def decode_streams(
  model: Transformer,
  layers: LayerStack,
  prefix: Prefix,
  hidden_XM: chex.Array,
  position_X: chex.Array,
  uniform_XATU: chex.Array,
  width_X: chex.Array,
  ends_step_V: chex.Array,
  proposal: Proposal,
  platform: str | None = None,
) -> DecodedStreams:
  """Proposes A steps of at most T tokens after each of X shared prefixes.

  A step's last token is run through the network as well: V, R and the next
  step's first token are read from its hidden state.

  Args:
    model: the network.
    layers: its layers.
    prefix: what the streams of a leaf share.
    hidden_XM: [X, M], final hidden state of the prefix.
    position_X: int32 [X], absolute position of the steps' first token.
    uniform_XATU: [X, A, T, U] in [0, 1), the random numbers that the proposal
      wants.
    width_X: int32 [X] in 0..A, how many steps the leaf wants; the streams
      beyond stay empty.
    ends_step_V: bool [V], tokens that end a step.
    proposal: how tokens are chosen.
    platform: that is compiled for, e.g. `tpu`; default: what JAX runs on.

  Returns:
    The steps, and their keys and values.
  """
  x, a, _, _ = uniform_XATU.shape
  leaves = prefix, hidden_XM, position_X, uniform_XATU, width_X

  def decode(leaves):
    streams = _decode_together(model, layers, *leaves, ends_step_V, proposal)
    keys, values = zip(*layers.unpack(streams.own), strict=True)
    return DecodedStreams(
      steps=streams.steps(proposal),
      num_slots=streams.step * streams.is_open.size,
      keys=[*keys],
      values=[*values],
    )

  n = _leaves_at_once(prefix, a, platform or jax.default_backend())
  if n == x:
    return decode(leaves)
  # Leaves that want steps first, and no turn for the others.
  order_X = jnp.argsort(width_X == 0, stable=True)

  def turn(i, decoded):
    # Where n does not divide X the slice of the last turn is moved back, onto
    # leaves that are decoded once more, to the same steps.
    rows = jax.lax.dynamic_slice(order_X, (i * n,), (n,))
    new = decode(jax.tree.map(lambda y: y[rows], leaves))
    num_slots = decoded.num_slots + new.num_slots

    def put(y, y_n):
      return y.at[rows].set(y_n)

    return DecodedStreams(
      steps=jax.tree.map(put, decoded.steps, new.steps),
      num_slots=num_slots,
      keys=jax.tree.map(put, decoded.keys, new.keys),
      values=jax.tree.map(put, decoded.values, new.values),
    )

  shapes = jax.eval_shape(decode, leaves)
  empty = jax.tree.map(lambda y: jnp.zeros(y.shape, y.dtype), shapes)
  num_turns = (jnp.sum(width_X > 0) + n - 1) // n
  return jax.lax.fori_loop(0, num_turns, turn, empty)
