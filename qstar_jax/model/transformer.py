"""Decoder-only transformer with policy, value and PRM heads, in Flax NNX.

RMSNorm, rotary positions, grouped-query attention, gated MLP, tied embedding.
The parameters of all layers are stacked on a leading axis L. A `Layer` knows
its own mathematics and not what its queries attend to: that is decided by the
caller, `Transformer.forward` here or the step cache in `step_cache.py`.
"""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from qstar_jax.config import ModelConfig
from qstar_jax.distributed import rules

# Z, of Q: the smaller one of two is not too high by chance.
_NUM_TOKEN_Q_HEADS = 2
# Positions whose Q or logits of the whole vocabulary are in memory at once.
_POSITIONS_AT_ONCE = 8


class Rotation(NamedTuple):
  """What the rotary embedding (Su et al. 2021) turns heads by at [...].

  Attributes:
    sin: float32 [..., 1, C / 2].
    cos: float32 [..., 1, C / 2].
  """

  sin: chex.Array
  cos: chex.Array


def rotation_at(position_T: chex.Array, config: ModelConfig) -> Rotation:
  """Of absolute positions [...] int32. Make it once for all layers."""
  half = config.head_dim // 2
  frequency = config.rope_base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = jnp.expand_dims(
    jnp.multiply.outer(position_T.astype(jnp.float32), frequency), axis=-2
  )
  return Rotation(jnp.sin(angle), jnp.cos(angle))


def rotate(x_THC: chex.Array, rotation: Rotation) -> chex.Array:
  """Rotates [..., heads, C], halves convention; same shape and dtype."""
  sin, cos = rotation
  first, second = jnp.split(x_THC.astype(jnp.float32), 2, axis=-1)
  rotated = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(rotated, axis=-1).astype(x_THC.dtype)


class Layer(nnx.Module):
  """One layer: `project`, then the caller's attention, then `finish`."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    self.config = config
    dtype = jnp.dtype(config.compute_dtype)
    query_dim = config.num_heads * config.head_dim
    kv_dim = config.num_kv_heads * config.head_dim

    def linear(fan_in, fan_out, scale=1.0):
      return nnx.Linear(
        fan_in,
        fan_out,
        use_bias=False,
        dtype=dtype,
        kernel_init=nnx.initializers.normal(scale * fan_in**-0.5),
        rngs=rngs,
      )

    def norm():
      return nnx.RMSNorm(
        config.model_dim, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs
      )

    # What a layer adds starts small, so depth does not grow the stream.
    branch = (2 * config.num_layers) ** -0.5
    self.attention_norm = norm()
    self.query = linear(config.model_dim, query_dim)
    self.key = linear(config.model_dim, kv_dim)
    self.value = linear(config.model_dim, kv_dim)
    self.output = linear(query_dim, config.model_dim, branch)
    self.mlp_norm = norm()
    self.gate = linear(config.model_dim, config.ffn_dim)
    self.up = linear(config.model_dim, config.ffn_dim)
    self.down = linear(config.ffn_dim, config.model_dim, branch)

  def project(
    self, x_TM: chex.Array, rotation: Rotation
  ) -> tuple[chex.Array, chex.Array, chex.Array]:
    """Queries, keys and values of [..., M], rotated to their positions.

    Returns:
      query [..., H, C], key [..., K, C] (both rotated), value [..., K, C].
    """
    c = self.config.head_dim
    normed_TM = self.attention_norm(x_TM)

    def heads(linear):
      y = linear(normed_TM)
      return jnp.reshape(y, (*y.shape[:-1], -1, c))

    query_THC = rotate(heads(self.query), rotation)
    key_TKC = rotate(heads(self.key), rotation)
    return query_THC, key_TKC, heads(self.value)

  def finish(self, x_TM: chex.Array, attended_THC: chex.Array) -> chex.Array:
    """Adds attention's output [..., H, C] and the MLP's to x [..., M]."""
    flat = jnp.reshape(attended_THC, (*attended_THC.shape[:-2], -1))
    x_TM = x_TM + self.output(flat)
    normed_TM = self.mlp_norm(x_TM)
    gated_TF = nnx.silu(self.gate(normed_TM)) * self.up(normed_TM)
    return x_TM + self.down(gated_TF)


# (layer, x, *state of this layer) -> (x, output of this layer).
LayerFn = Callable[..., tuple[chex.Array, Any]]


class LayerStack:
  """The layers of a model, cast to the compute dtype, to be run in order.

  Made once at the top of a compiled function, so that slicing and casting the
  parameters stay out of its inner loops.
  """

  def __init__(self, layers: Layer, config: ModelConfig):
    dtype = jnp.dtype(config.compute_dtype)
    self._graphdef, state = nnx.split(layers)
    self._stacked = jax.tree.map(lambda x: x.astype(dtype), state)
    self._scan = config.scan_layers
    self._recompute = config.recompute
    self._num_layers = config.num_layers
    if not self._scan:
      self._layers = [
        nnx.merge(
          self._graphdef, jax.tree.map(operator.itemgetter(i), self._stacked)
        )
        for i in range(config.num_layers)
      ]

  def pack(self, states: list[Any]) -> Any:
    """L pytrees, one per layer, as `run` takes them: stacked if it scans.

    A loop around `run` packs before and unpacks behind: inside, each would copy
    the states of all layers.
    """
    if not self._scan:
      return states
    return jax.tree.map(lambda *xs: jnp.stack(xs), *states)

  def unpack(self, packed: Any) -> list[Any]:
    """The reverse of `pack`."""
    if not self._scan:
      return packed
    return [
      jax.tree.map(operator.itemgetter(i), packed)
      for i in range(self._num_layers)
    ]

  def run(
    self, fn: LayerFn, x: chex.Array, *states: Any
  ) -> tuple[chex.Array, Any]:
    """Applies `fn` layer after layer.

    Args:
      fn: see `LayerFn`.
      x: carried through the layers.
      *states: of all layers, packed.

    Returns:
      The last x, and the layers' outputs, packed.
    """
    if not self._scan:
      outputs = []
      for layer, *state in zip(self._layers, *states, strict=True):
        x, output = fn(layer, x, *state)
        outputs.append(output)
      return x, outputs

    def body(x, inputs):
      layer_state, *state = inputs
      return fn(nnx.merge(self._graphdef, layer_state), x, *state)

    if self._recompute:
      # A loop's body is not merged with its own copy.
      body = jax.checkpoint(body, prevent_cse=False)
    return jax.lax.scan(body, x, (self._stacked, *states))


class HeadOutput(NamedTuple):
  """What the heads read from hidden states [..., M].

  Attributes:
    value_logit: [...] float32; its sigmoid is V, P(solved) in [0, 1].
    prm_logit: [...] float32; its sigmoid is R in [0, 1], P(the step that ends
      here is legal and a solution is still reachable).
  """

  value_logit: chex.Array
  prm_logit: chex.Array


class TokenQHead(nnx.Module):
  """Q of every next token, as a query to the tied embedding."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    def linear(fan_out, kernel_init):
      return nnx.Linear(
        config.model_dim,
        fan_out,
        kernel_init=kernel_init,
        dtype=jnp.float32,
        rngs=rngs,
      )

    scale = config.model_dim**-0.5
    self.hidden = linear(config.model_dim, nnx.initializers.normal(scale))
    # Zero: untrained, every token is worth 0.
    zeros = nnx.initializers.zeros_init()
    self.query = linear(config.model_dim + 1, zeros)

  def __call__(self, hidden_TM: chex.Array) -> chex.Array:
    """[..., M] to [..., M + 1]: a query, and what all tokens have in common."""
    return self.query(nnx.silu(self.hidden(hidden_TM)))


class Transformer(nnx.Module):
  """The joint network. Parameters are float32, heads compute in float32.

  The embedding has V rows, a multiple of `config.vocabulary_multiple`. Those
  past the vocabulary are 0, are of no token, and stay so: whatever is computed
  of all tokens is -inf there.
  """

  def __init__(
    self, config: ModelConfig, vocabulary_size: int, *, rngs: nnx.Rngs
  ):
    self.config = config
    self.vocabulary_size = vocabulary_size
    dtype = jnp.dtype(config.compute_dtype)
    multiple = config.vocabulary_multiple
    normal = nnx.initializers.normal(config.model_dim**-0.5)

    def tokens_alone(rng_key, shape, dtype):
      is_token_V1 = jnp.arange(shape[0])[:, None] < vocabulary_size
      return jnp.where(is_token_V1, normal(rng_key, shape, dtype), 0)

    self.embedding = nnx.Embed(
      -(-vocabulary_size // multiple) * multiple,
      config.model_dim,
      dtype=dtype,
      embedding_init=tokens_alone,
      rngs=rngs,
    )

    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap
    def make_layers(rngs):
      return Layer(config, rngs=rngs)

    self.layers = make_layers(rngs)
    self.final_norm = nnx.RMSNorm(
      config.model_dim, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs
    )
    # Zero: untrained heads say 1/2 everywhere.
    zeros = nnx.initializers.zeros_init()
    self.value_head = nnx.Linear(
      config.model_dim, 1, kernel_init=zeros, dtype=jnp.float32, rngs=rngs
    )
    self.prm_head = nnx.Linear(
      config.model_dim, 1, kernel_init=zeros, dtype=jnp.float32, rngs=rngs
    )
    if config.token_q:

      @nnx.split_rngs(splits=_NUM_TOKEN_Q_HEADS)
      @nnx.vmap
      def make_heads(rngs):
        return TokenQHead(config, rngs=rngs)

      self.token_q_heads = make_heads(rngs)
      self.token_value_head = nnx.Linear(
        config.model_dim, 1, kernel_init=zeros, dtype=jnp.float32, rngs=rngs
      )

  def layer_stack(self) -> LayerStack:
    """The layers, ready to run; make it once per compiled function."""
    return LayerStack(self.layers, self.config)

  def _embedding(self) -> chex.Array:
    """[V, M], gathered once for all that it is read for."""
    return rules.constrain(self.embedding.embedding[...], ("vocabulary", None))

  def embed(self, tokens_T: chex.Array) -> chex.Array:
    """[...] int32 tokens to [..., M]."""
    dtype = jnp.dtype(self.config.compute_dtype)
    return jnp.take(self._embedding().astype(dtype), tokens_T, axis=0)

  def forward(
    self,
    tokens_BT: chex.Array,
    *,
    position_BT: chex.Array | None = None,
    last_BT: chex.Array | None = None,
  ) -> chex.Array:
    """Hidden states of whole sequences, the heads' input.

    Attention is causal, so padding on the right changes nothing before it.

    Args:
      tokens_BT: [B, T] int32.
      position_BT: [B, T] int32, of each token in its line; None: its place.
      last_BT: [B, T] int32, of rows that hold trees in preorder: the token at t
        sees that at s if s <= t <= last[s]. None: all tokens before it.

    Returns:
      [B, T, M] hidden states after the final norm, in the compute dtype.
    """
    place_T = jnp.arange(tokens_BT.shape[1])
    if position_BT is None:
      position_BT = jnp.broadcast_to(place_T, tokens_BT.shape)
    rotation = rotation_at(position_BT, self.config)
    mask_B1TS = None
    if last_BT is not None:
      place_11T1 = place_T[None, None, :, None]
      mask_B1TS = place_11T1 <= last_BT[:, None, None, :]

    def by_line(x_BTM):
      return rules.constrain(x_BTM, ("lines", None, None))

    def fn(layer, x_BTM):
      query, key, value = layer.project(x_BTM, rotation)
      attended = jax.nn.dot_product_attention(
        query, key, value, mask=mask_B1TS, is_causal=True
      )
      return by_line(layer.finish(x_BTM, attended)), ()

    x_BTM = by_line(self.embed(tokens_BT))
    x_BTM, _ = self.layer_stack().run(fn, x_BTM)
    return self.final_norm(x_BTM)

  def logits(self, hidden_TM: chex.Array) -> chex.Array:
    """Policy head: [..., M] to [..., V] float32 logits of the next token."""
    return self._scores(hidden_TM.astype(jnp.float32), self._embedding())

  def _scores(
    self, query_TM: chex.Array, embedding_VM: chex.Array
  ) -> chex.Array:
    """Products of [..., M] with all tokens, [..., V]; -inf where none is."""
    product_TV = query_TM @ embedding_VM.T
    if product_TV.shape[-1] == self.vocabulary_size:
      return product_TV
    token_TV = jax.lax.broadcasted_iota(
      jnp.int32, product_TV.shape, product_TV.ndim - 1
    )
    return jnp.where(token_TV < self.vocabulary_size, product_TV, -jnp.inf)

  def token_nll(
    self, hidden_BTM: chex.Array, tokens_BT: chex.Array
  ) -> chex.Array:
    """-log p of tokens by the policy head, of which logits are not kept.

    They are there for a few positions of all lines at once, and are computed
    again for the gradient.

    Args:
      hidden_BTM: [B, T, M] hidden states.
      tokens_BT: int32 [B, T], the tokens that follow them.

    Returns:
      float32 [B, T], in nats.
    """
    # Gathered here, and not in every turn of the loop.
    embedding_VM = self._embedding()

    @jax.checkpoint
    def nll(hidden_BM, token_B):
      logits_BV = self._scores(hidden_BM.astype(jnp.float32), embedding_VM)
      return optax.softmax_cross_entropy_with_integer_labels(logits_BV, token_B)

    nll_TB = jax.lax.map(
      lambda args: nll(*args),
      (jnp.moveaxis(hidden_BTM, 1, 0), tokens_BT.T),
      batch_size=_POSITIONS_AT_ONCE,
    )
    return nll_TB.T

  def heads(self, hidden_TM: chex.Array) -> HeadOutput:
    """Value and PRM heads: [..., M] to logits [...]."""
    hidden_TM = hidden_TM.astype(jnp.float32)
    return HeadOutput(
      value_logit=self.value_head(hidden_TM)[..., 0],
      prm_logit=self.prm_head(hidden_TM)[..., 0],
    )

  def _queries(self, hidden_TM: chex.Array) -> tuple[chex.Array, chex.Array]:
    """Queries [Z, ..., M] of the token-Q heads, and offsets [Z, ..., 1]."""
    graphdef, heads_Z = nnx.split(self.token_q_heads)
    hidden_TM = hidden_TM.astype(jnp.float32)
    query_ZTX = jax.vmap(lambda head: nnx.merge(graphdef, head)(hidden_TM))(
      heads_Z
    )
    return query_ZTX[..., :-1], query_ZTX[..., -1:]

  def _fixed_embedding(self) -> chex.Array:
    """[V, M]; what tokens are is learned from the policy, not from Q."""
    return jax.lax.stop_gradient(self._embedding())

  def token_q(self, hidden_TM: chex.Array, tokens_TA: chex.Array) -> chex.Array:
    """Token-Q heads: Q of A next tokens, in the unit of rewards.

    Args:
      hidden_TM: [..., M], of the states.
      tokens_TA: int32 [..., A].

    Returns:
      float32 [Z, ..., A], of each of the twin heads.
    """
    query_ZTM, offset_ZT1 = self._queries(hidden_TM)
    token_TAM = self._fixed_embedding()[tokens_TA]
    return jnp.einsum("z...m,...am->z...a", query_ZTM, token_TAM) + offset_ZT1

  def token_q_log_sum(self, hidden_BTM: chex.Array) -> chex.Array:
    """log sum exp of Q over the vocabulary: [B, T, M] to float32 [Z, B, T].

    Q is there for a few positions of all lines at once, and is computed again
    for the gradient.
    """
    embedding_VM = self._fixed_embedding()

    @jax.checkpoint
    def log_sum(query_ZBM, offset_ZB1):
      q_ZBV = self._scores(query_ZBM, embedding_VM) + offset_ZB1
      return jax.nn.logsumexp(q_ZBV, axis=-1)

    # Along T: lines may be split over devices.
    by_position = [jnp.moveaxis(y, 2, 0) for y in self._queries(hidden_BTM)]
    log_sum_TZB = jax.lax.map(
      lambda args: log_sum(*args), by_position, batch_size=_POSITIONS_AT_ONCE
    )
    return jnp.moveaxis(log_sum_TZB, 0, 2)

  def token_value(self, hidden_TM: chex.Array) -> chex.Array:
    """V that token-Q is learned with: [..., M] to float32 [...]."""
    return self.token_value_head(hidden_TM.astype(jnp.float32))[..., 0]


def init_model(
  config: ModelConfig, vocabulary_size: int, seed: int | chex.Array
) -> tuple[nnx.GraphDef, nnx.State]:
  """A fresh network, split into its structure and its parameters.

  Args:
    config: shapes.
    vocabulary_size: tokens that there are; V, but for its padding.
    seed: of the initial values.

  Returns:
    (graphdef, params); `nnx.merge(graphdef, params)` is a `Transformer`.
  """
  rngs = nnx.Rngs(jax.random.key(seed))
  return nnx.split(Transformer(config, vocabulary_size, rngs=rngs))


def abstract_model(
  config: ModelConfig, vocabulary_size: int
) -> tuple[nnx.GraphDef, nnx.State]:
  """What `init_model` gives, of shapes alone: nothing is computed."""
  return nnx.split(
    nnx.eval_shape(
      lambda: Transformer(config, vocabulary_size, rngs=nnx.Rngs(0))
    )
  )
