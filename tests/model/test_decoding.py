"""Leaves decoded in turn are decoded as they are together."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qstar_jax.config import ModelConfig
from qstar_jax.model import decoding
from qstar_jax.model.proposal import independent
from qstar_jax.model.step_cache import Prefix
from qstar_jax.model.transformer import init_model

CONFIG = ModelConfig(
  num_layers=2,
  model_dim=16,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  ffn_dim=24,
  token_q=True,
)
NUM_LEAVES, NUM_CANDIDATES, STEP_TOKENS, PREFIX_TOKENS = 7, 4, 5, 7


def decode(width=(NUM_CANDIDATES,) * NUM_LEAVES):
  graphdef, params = init_model(CONFIG, 30, 0)
  model = nnx.merge(graphdef, params)
  keys = iter(jax.random.split(jax.random.key(0), 8))
  shape = (NUM_LEAVES, CONFIG.num_kv_heads, PREFIX_TOKENS, CONFIG.head_dim)
  prefix = Prefix(
    [jax.random.normal(next(keys), shape) for _ in range(2)],
    [jax.random.normal(next(keys), shape) for _ in range(2)],
    jnp.zeros((NUM_LEAVES, PREFIX_TOKENS)),
  )
  run = functools.partial(
    decoding.decode_streams,
    model,
    model.layer_stack(),
    proposal=independent(1.0),
  )
  uniform_XATU = jax.random.uniform(
    next(keys), (NUM_LEAVES, NUM_CANDIDATES, STEP_TOKENS, 1)
  )
  return jax.jit(run)(
    prefix,
    jax.random.normal(next(keys), (NUM_LEAVES, CONFIG.model_dim)),
    jnp.arange(NUM_LEAVES) + 7,
    uniform_XATU,
    jnp.asarray(width),
    jnp.arange(30) < 8,
  )


def decode_in_turn(monkeypatch, leaves_at_once, *args):
  monkeypatch.setattr(
    decoding, "_CPU_MAX_STREAMS", leaves_at_once * NUM_CANDIDATES
  )
  monkeypatch.setattr(decoding, "_CPU_MIN_STREAMS", 1)
  return decode(*args)


def test_leaves_at_once(monkeypatch):
  leaf_bytes = 4 * 2 * 2 * CONFIG.num_kv_heads * CONFIG.head_dim * PREFIX_TOKENS
  monkeypatch.setattr(decoding, "_CPU_CACHE_BYTES", 3 * leaf_bytes)
  shape = (NUM_LEAVES, CONFIG.num_kv_heads, PREFIX_TOKENS, CONFIG.head_dim)
  layers = [jnp.zeros(shape)] * 2
  prefix = Prefix(layers, layers, jnp.zeros((NUM_LEAVES, PREFIX_TOKENS)))
  for fewest, most, expected in (
    (8, 12, 3),
    (20, 32, 4),
    (1, 8, 2),
    (28, 32, 7),
  ):
    monkeypatch.setattr(decoding, "_CPU_MIN_STREAMS", fewest)
    monkeypatch.setattr(decoding, "_CPU_MAX_STREAMS", most)
    at_once = decoding._leaves_at_once(prefix, NUM_CANDIDATES, "cpu")
    assert at_once == expected
  assert decoding._leaves_at_once(prefix, NUM_CANDIDATES, "tpu") == NUM_LEAVES


@pytest.mark.parametrize("leaves_at_once", [1, 2, 3, 4])
def test_in_turn_as_together(monkeypatch, leaves_at_once):
  together = decode()
  in_turn = decode_in_turn(monkeypatch, leaves_at_once)
  lengths = np.asarray(together.steps.length)
  assert lengths.min() < lengths.max()
  np.testing.assert_array_equal(in_turn.steps.tokens, together.steps.tokens)
  np.testing.assert_array_equal(in_turn.steps.length, lengths)
  # A leaf whose steps have all ended stops earlier in turn: what lies behind
  # the end of a step is not compared.
  in_step = np.arange(STEP_TOKENS) < lengths[..., None]
  for ours, theirs in zip(in_turn.keys, together.keys, strict=True):
    mask = in_step[:, None, :, :, None]
    np.testing.assert_allclose(ours * mask, theirs * mask, atol=1e-5)
  for name in (
    "token_log_prob",
    "proposal_log_prob",
    "hidden",
    "hidden_before",
  ):
    np.testing.assert_allclose(
      getattr(in_turn.steps, name), getattr(together.steps, name), atol=1e-5
    )


@pytest.mark.parametrize("leaves_at_once", [2, 4, NUM_LEAVES])
@pytest.mark.parametrize(
  "width", [(0,) * 7, (0, 0, 4, 0, 0, 0, 0), (1, 0, 4, 0, 3, 2, 0)]
)
def test_as_many_steps_as_a_leaf_wants(monkeypatch, leaves_at_once, width):
  every = decode_in_turn(monkeypatch, leaves_at_once).steps
  steps = decode_in_turn(monkeypatch, leaves_at_once, width).steps
  is_wanted = np.arange(NUM_CANDIDATES) < np.asarray(width)[:, None]
  for ours, theirs in zip(steps, every, strict=True):
    np.testing.assert_allclose(ours[is_wanted], theirs[is_wanted], atol=1e-5)
  assert not np.any(steps.length[~is_wanted])
  assert not np.any(steps.tokens[~is_wanted])
