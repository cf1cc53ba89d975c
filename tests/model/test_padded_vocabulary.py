"""A padded vocabulary: what is past its end is never seen in any result."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qstar_jax.config import ModelConfig
from qstar_jax.model.proposal import independent
from qstar_jax.model.stochastic_beam import stochastic_beam
from qstar_jax.model.transformer import abstract_model, init_model

B, T, V, PADDED_V = 2, 5, 11, 16
CONFIG = ModelConfig(
  num_layers=1,
  model_dim=8,
  num_heads=2,
  num_kv_heads=1,
  head_dim=4,
  ffn_dim=16,
  token_q=True,
)
PADDED = dataclasses.replace(CONFIG, vocabulary_multiple=8)


def _rows(params):
  """Of the embedding."""
  return params["embedding"]["embedding"][...]


def _with_rows(params, rows):
  params = nnx.clone(params)
  params["embedding"]["embedding"].set_value(jnp.asarray(rows))
  return params


@pytest.fixture(scope="module")
def networks():
  """(graphdef, params) without padding, and with padding that is not 0."""
  graphdef, params = init_model(CONFIG, V, seed=0)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: x + 0.3 * rng.standard_normal(x.shape, np.float32), params
  )
  padding = np.full((PADDED_V - V, CONFIG.model_dim), 50, np.float32)
  return (graphdef, params), (
    abstract_model(PADDED, V)[0],
    _with_rows(params, np.concatenate([_rows(params), padding])),
  )


def test_a_fresh_network_is_the_same_with_padding_of_0():
  params, padded = (init_model(c, V, seed=3)[1] for c in (CONFIG, PADDED))
  rows = _rows(padded)
  assert rows.shape == (PADDED_V, CONFIG.model_dim)
  assert not rows[V:].any()
  jax.tree.map(
    np.testing.assert_array_equal, params, _with_rows(padded, rows[:V])
  )


@pytest.mark.parametrize("size", [8, 16])
def test_no_row_is_added_where_the_size_is_a_multiple(size):
  _, params = abstract_model(PADDED, size)
  assert params["embedding"]["embedding"].shape[0] == size


def test_logits_past_the_end_are_minus_infinity(networks):
  tokens = np.random.default_rng(1).integers(0, V, (B, T))
  model, padded = (nnx.merge(*network) for network in networks)
  logits, more = (x.logits(x.forward(tokens)) for x in (model, padded))
  np.testing.assert_array_equal(more[..., :V], logits)
  assert np.isneginf(more[..., V:]).all() and np.isfinite(logits).all()


def test_sums_over_the_vocabulary_and_their_gradients_are_the_same(networks):
  """Of the policy and of Q."""
  rng = np.random.default_rng(2)
  hidden = jnp.asarray(rng.standard_normal((B, T, CONFIG.model_dim), "f4"))
  tokens = rng.integers(0, V, (B, T))

  def sums(params, graphdef):
    model = nnx.merge(graphdef, params)
    nll = model.token_nll(hidden, tokens).sum()
    return nll + model.token_q_log_sum(hidden).sum()

  (one, of_one), (other, of_other) = (
    jax.value_and_grad(sums)(params, graphdef) for graphdef, params in networks
  )
  np.testing.assert_allclose(one, other, rtol=1e-6)
  assert not _rows(of_other)[V:].any()
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
    of_one,
    _with_rows(of_other, _rows(of_other)[:V]),
  )


@pytest.mark.parametrize("make", [independent, stochastic_beam])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_candidates_are_the_same(make, temperature):
  """Also where there are more candidates than tokens."""
  x, a, v = 3, 6, 4
  rng = np.random.default_rng(3)
  logits_RV = rng.standard_normal((x * a, v)).astype("f4")
  padding = np.full((x * a, 4), -np.inf, np.float32)
  width_X = np.array([a, 2, 0], np.int32)
  proposal = make(temperature)

  def propose(logits_RV):
    uniform = jnp.asarray(rng.random((2, x, a, proposal.num_uniforms), "f4"))
    state, is_open_XA = proposal.begin(uniform[0], width_X)
    chosen = []
    for uniform_XAU in uniform:
      state, choice = proposal.choose(
        state, logits_RV, is_open_XA.reshape(-1), uniform_XAU, width_X
      )
      if choice.parent is not None:
        is_open_XA = choice.parent >= 0
      is_open_R = np.asarray(is_open_XA).reshape(-1)
      chosen += [
        np.where(is_open_R, choice.token, -1),
        np.where(is_open_R, choice.log_prob, 0),
        is_open_R,
      ]
    return [*chosen, np.where(is_open_XA, proposal.log_prob(state), 0)]

  rng = np.random.default_rng(4)
  one = propose(logits_RV)
  rng = np.random.default_rng(4)
  other = propose(np.concatenate([logits_RV, padding], axis=1))
  assert one[0].max() > 0 and other[0].max() < v
  for left, right in zip(one, other, strict=True):
    np.testing.assert_allclose(left, right, rtol=1e-6)
