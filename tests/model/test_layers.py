"""The stack of layers: unrolled, scanned, and computed again."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qstar_jax.config import LearnerConfig, ModelConfig
from qstar_jax.learner import objective
from qstar_jax.model.transformer import init_model
from qstar_jax.records import TrainBatch

CONFIG = ModelConfig(
  num_layers=6,
  model_dim=16,
  num_heads=2,
  num_kv_heads=2,
  head_dim=8,
  ffn_dim=64,
  scan_layers=True,
)
RECOMPUTED = dataclasses.replace(CONFIG, recompute=True)
VOCABULARY = 300
# A whole number of turns, and a rest.
TOKENS = jnp.arange(4 * 29).reshape(4, 29) % VOCABULARY


def _gradient(config):
  """Of the policy loss, compiled, and the parameters it is taken at."""
  graphdef, params = init_model(config, VOCABULARY, 0)
  ones, zeros = jnp.ones(TOKENS.shape), jnp.zeros(TOKENS.shape)
  batch = TrainBatch(
    tokens=TOKENS,
    policy_weight=ones.at[0].set(0.5),
    value_target=zeros,
    value_weight=zeros,
    prm_target=zeros,
    prm_weight=zeros,
  )

  def loss(params):
    model = nnx.merge(graphdef, params)
    x = objective.Pass(model, batch, LearnerConfig())
    return objective.total_loss(x, {"policy": 1.0})[0]

  return jax.jit(jax.grad(loss)).lower(params).compile(), params


@pytest.fixture(scope="module")
def gradients():
  return {config: _gradient(config) for config in (CONFIG, RECOMPUTED)}


def test_recomputed_activations_have_the_same_gradients(gradients):
  kept, recomputed = (
    jax.tree.leaves(gradient(params)) for gradient, params in gradients.values()
  )
  for expected, got in zip(kept, recomputed, strict=True):
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-7)


def test_recomputed_activations_take_less_memory(gradients):
  kept, recomputed = (
    gradient.memory_analysis().temp_size_in_bytes
    for gradient, _ in gradients.values()
  )
  assert recomputed < 0.6 * kept


@pytest.mark.parametrize("scan_layers", [False, True])
def test_states_are_packed_for_the_layers_and_unpacked(scan_layers):
  config = dataclasses.replace(CONFIG, scan_layers=scan_layers)
  graphdef, params = init_model(config, 30, 0)
  layers = nnx.merge(graphdef, params).layer_stack()
  states = [(jnp.full(3, i), jnp.float32(-i)) for i in range(6)]

  def fn(layer, x, state):
    del layer
    row, number = state
    return x + number, (row + 1, x)

  x, outputs = layers.run(fn, jnp.float32(0), layers.pack(states))
  assert x == -15
  for i, (row, before) in enumerate(layers.unpack(outputs)):
    np.testing.assert_array_equal(row, jnp.full(3, i + 1))
    assert before == -sum(range(i))
