"""The expand function of a network: step cache, decoding and heads together."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qstar_jax.model import decoding, line_cache, sampling, step_cache
from qstar_jax.model.proposal import independent
from qstar_jax.model.stochastic_beam import stochastic_beam
from qstar_jax.model.transformer import Transformer
from qstar_jax.search.expand import ExpandFn, Expansion

# By the names of `SearchConfig.proposal`.
_PROPOSALS = {"sample": independent, "stochastic_beam": stochastic_beam}


def count_duplicates(
  tokens_BWAT: chex.Array, is_sampled_BWA: chex.Array
) -> chex.Array:
  """How many samples each candidate stands for.

  Args:
    tokens_BWAT: [..., A, T] int32, 0 behind a candidate's end.
    is_sampled_BWA: [..., A] bool.

  Returns:
    [..., A] int32: at the first of equal candidates their number, at the
    others 0.
  """
  a = tokens_BWAT.shape[-2]
  is_same = jnp.all(
    tokens_BWAT[..., :, None, :] == tokens_BWAT[..., None, :, :], axis=-1
  )
  is_same &= is_sampled_BWA[..., :, None] & is_sampled_BWA[..., None, :]
  earlier = jnp.tril(jnp.ones((a, a), bool), k=-1)
  earlier = jnp.broadcast_to(earlier, is_same.shape)
  is_first = ~jnp.any(is_same & earlier, axis=-1)
  return jnp.where(is_first, jnp.sum(is_same, axis=-1), 0).astype(jnp.int32)


def to_expansion(
  model: Transformer, steps: decoding.DecodedSteps, end_token: int
) -> Expansion:
  """Steps and what the heads say of them, [X, A, ...]."""
  heads = model.heads(steps.hidden)
  last = jnp.maximum(steps.length - 1, 0)[..., None]
  last_token = jnp.take_along_axis(steps.tokens, last, axis=-1)[..., 0]
  value = jax.nn.sigmoid(heads.value_logit)
  token_q = value
  if steps.hidden_before is not None:
    q_ZXA1 = model.token_q(steps.hidden_before, last_token[..., None])
    token_q = jnp.min(q_ZXA1[..., 0], axis=0)
  return Expansion(
    tokens=steps.tokens,
    length=steps.length,
    token_log_prob=steps.token_log_prob,
    proposal_log_prob=steps.proposal_log_prob,
    value=value,
    prm=jax.nn.sigmoid(heads.prm_logit),
    token_q=token_q,
    ended=steps.is_complete & (last_token == end_token),
    truncated=~steps.is_complete,
    count=count_duplicates(steps.tokens, steps.length > 0),
  )


def make_expand_fn(
  graphdef: nnx.GraphDef,
  *,
  ends_step: np.ndarray,
  end_token: int,
  temperature: float,
  min_p: float = 0.0,
  proposal: str = "sample",
  platform: str | None = None,
) -> ExpandFn:
  """An expand function over a `StepStore`, to be called under jit.

  Args:
    graphdef: structure of the `Transformer` whose params are passed in.
    ends_step: bool [V], tokens that end a step.
    end_token: the token that ends a step and finishes the line.
    temperature: of the proposal; 0 is greedy.
    min_p: of the proposal, see `sampling.drop_unlikely`.
    proposal: with replacement (`sample`) or without (`stochastic_beam`).
    platform: that is compiled for, e.g. `tpu`; default: what JAX runs on.

  Returns:
    The function; it consumes the store and its keys.
  """
  ends_step_V = np.asarray(ends_step, bool)
  propose = _PROPOSALS[proposal](temperature, min_p)

  def expand(params, rng_key_B, store, leaf_BW, width_BW, block):
    model = nnx.merge(graphdef, params)
    layers = model.layer_stack()
    b, w = leaf_BW.shape
    _, _, a, t = store.tokens.shape

    leaf = step_cache.load_leaf(store, leaf_BW)
    if a == 1:
      prefix = line_cache.follow_leaf(store, leaf)
    else:
      store, prefix = step_cache.run_leaf(model, layers, store, leaf, block)
    noise_shape = a, t, propose.num_uniforms
    uniform = sampling.per_row_uniform(rng_key_B, (w, *noise_shape))
    decoded = decoding.decode_streams(
      model,
      layers,
      prefix,
      leaf.hidden.reshape(b * w, -1),
      (leaf.position + leaf.length).reshape(-1),
      uniform.reshape(b * w, *noise_shape),
      width_BW.reshape(-1),
      jnp.asarray(ends_step_V),
      propose,
      platform,
    )
    steps = decoded.steps

    def by_tree(y):
      return y.reshape(b, w, *y.shape[1:])

    if a == 1:
      own = decoded.keys, decoded.values
      length_BW = by_tree(steps.length)[..., 0]
      store = line_cache.keep_steps(store, leaf, prefix, *own, length_BW, block)
    store = step_cache.write_candidates(
      store,
      block,
      by_tree(steps.tokens),
      by_tree(steps.length),
      by_tree(steps.hidden),
    )
    store = store._replace(
      decode_slots=store.decode_slots + decoded.num_slots / b
    )
    expansion = to_expansion(model, steps, end_token)
    return jax.tree.map(by_tree, expansion), store

  return expand
