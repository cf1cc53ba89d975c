"""The token-Q heads: against plain matrices, in chunks, and when absent."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qstar_jax.config import ModelConfig
from qstar_jax.model import transformer
from qstar_jax.model.transformer import init_model

CONFIG = ModelConfig(
  num_layers=1,
  model_dim=8,
  num_heads=2,
  num_kv_heads=1,
  head_dim=4,
  ffn_dim=16,
  token_q=True,
)
B, T, A, V = 2, 5, 3, 11


@pytest.fixture(scope="module")
def model():
  graphdef, params = init_model(CONFIG, V, seed=0)
  rng = np.random.default_rng(0)
  return nnx.merge(
    graphdef,
    jax.tree.map(
      lambda x: x + 0.3 * rng.standard_normal(x.shape, np.float32), params
    ),
  )


@pytest.fixture(scope="module")
def hidden():
  rng = np.random.default_rng(1)
  return rng.standard_normal((B, T, CONFIG.model_dim), np.float32)


def plain_q(model, hidden_BTM):
  """Q of the whole vocabulary, [Z, B, T, V], in numpy."""
  heads, q = model.token_q_heads, []
  hidden_BTM = np.asarray(hidden_BTM)
  for z in range(2):
    inner = hidden_BTM @ np.asarray(heads.hidden.kernel[...])[z]
    inner = inner + np.asarray(heads.hidden.bias[...])[z]
    inner = inner / (1 + np.exp(-inner))
    out = inner @ np.asarray(heads.query.kernel[...])[z]
    out = out + np.asarray(heads.query.bias[...])[z]
    embedding = np.asarray(model.embedding.embedding[...])
    q.append(out[..., :-1] @ embedding.T + out[..., -1:])
  return np.array(q)


def test_q_of_tokens_is_the_reference(model, hidden):
  tokens = np.random.default_rng(2).integers(0, V, (B, T, A))
  expected = plain_q(model, hidden)
  found = model.token_q(jnp.asarray(hidden), tokens)
  assert found.shape == (2, B, T, A)
  for z, b, t, a in np.ndindex(found.shape):
    np.testing.assert_allclose(
      found[z, b, t, a], expected[z, b, t, tokens[b, t, a]], rtol=1e-4
    )
  assert np.abs(found[0] - found[1]).min() > 0


@pytest.mark.parametrize("positions", [1, 2, 5, 8])
def test_the_sum_over_the_vocabulary_is_the_reference(
  model, hidden, positions, monkeypatch
):
  """However many positions are in memory at once; and so is its gradient."""
  monkeypatch.setattr(transformer, "_POSITIONS_AT_ONCE", positions)
  hidden = jnp.asarray(hidden)
  expected = jax.nn.logsumexp(jnp.asarray(plain_q(model, hidden)), axis=-1)
  np.testing.assert_allclose(model.token_q_log_sum(hidden), expected, rtol=1e-5)

  def by_tokens(hidden):
    every = jnp.broadcast_to(jnp.arange(V), (B, T, V))
    return jax.nn.logsumexp(model.token_q(hidden, every), axis=-1).sum()

  np.testing.assert_allclose(
    jax.grad(lambda x: model.token_q_log_sum(x).sum())(hidden),
    jax.grad(by_tokens)(hidden),
    atol=1e-5,
  )


def test_the_vocabulary_is_never_there_for_all_positions(model):
  num_positions, num_lines = 64, 4
  hidden = jax.ShapeDtypeStruct((num_lines, num_positions, 8), jnp.float32)
  loss = jax.grad(lambda x: model.token_q_log_sum(x).sum())
  text = jax.jit(loss).lower(hidden).as_text()
  assert f"8x2x{num_lines}x{V}x" in text
  assert f"{num_positions}x2x{num_lines}x{V}x" not in text
  assert f"8x8x2x{num_lines}x{V}x" not in text


def test_q_does_not_teach_the_embedding(model, hidden):
  graphdef, params = nnx.split(model)
  tokens = jnp.zeros((B, T, A), jnp.int32)

  def loss(params):
    model = nnx.merge(graphdef, params)
    q = model.token_q(jnp.asarray(hidden), tokens).sum()
    return q + model.token_q_log_sum(jnp.asarray(hidden)).sum()

  gradient = jax.grad(loss)(params)
  assert not gradient["embedding"]["embedding"][...].any()
  assert gradient["token_q_heads"]["hidden"]["kernel"][...].any()


def test_untrained_every_token_is_worth_nothing(hidden):
  model = nnx.merge(*init_model(CONFIG, V, seed=0))
  tokens = jnp.zeros((B, T, A), jnp.int32)
  assert not model.token_q(jnp.asarray(hidden), tokens).any()
  assert not model.token_value(jnp.asarray(hidden)).any()


def test_the_heads_change_nothing_else():
  """Networks without them have the same parameters under the same names."""
  with_heads = nnx.to_pure_dict(init_model(CONFIG, V, seed=0)[1])
  without = nnx.to_pure_dict(
    init_model(dataclasses.replace(CONFIG, token_q=False), V, seed=0)[1]
  )
  del with_heads["token_q_heads"], with_heads["token_value_head"]
  jax.tree.map(np.testing.assert_array_equal, with_heads, without)
