"""The step cache against a full forward pass, on random trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qstar_jax.config import ModelConfig
from qstar_jax.model import step_cache
from qstar_jax.model.transformer import init_model
from qstar_jax.selfplay.network_expand import make_expand_fn

B, W, A, T, P, D, V = 3, 2, 3, 5, 4, 4, 23
NUM_ROUNDS = 6
END = 1
ENDS_STEP = np.isin(np.arange(V), [END, 2, 3])


def make(scan_layers=False, num_kv_heads=2, proposal="sample"):
  config = ModelConfig(
    num_layers=2,
    model_dim=16,
    num_heads=4,
    num_kv_heads=num_kv_heads,
    head_dim=4,
    ffn_dim=24,
    scan_layers=scan_layers,
  )
  graphdef, params = init_model(config, V, seed=0)
  # Zero heads would make every value test pass: give them weights.
  leaves, structure = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  leaves = [
    x + 0.3 * jax.random.normal(k, x.shape)
    for x, k in zip(leaves, keys, strict=True)
  ]
  params = jax.tree.unflatten(structure, leaves)
  expand = jax.jit(
    make_expand_fn(
      graphdef,
      ends_step=ENDS_STEP,
      end_token=END,
      temperature=1.0,
      proposal=proposal,
    )
  )
  return config, graphdef, params, expand


def new_store(
  config, params, graphdef, prompt, prompt_length, num_candidates=A
):
  store = step_cache.empty_store(
    config,
    num_trees=prompt.shape[0],
    num_blocks=NUM_ROUNDS * W,
    num_candidates=num_candidates,
    max_prompt_tokens=P,
    max_step_tokens=T,
    max_steps=D,
  )
  # Garbage where nothing was written must never be read.
  store = jax.tree.map(
    lambda x: x + 7.7 if jnp.issubdtype(x.dtype, jnp.floating) else x, store
  )
  return jax.jit(
    lambda params, store: step_cache.prefill(
      nnx.merge(graphdef, params), store, prompt, prompt_length
    )
  )(params, store)


def grow(expand, params, store, seed, num_candidates=A):
  """Expands random leaves; returns expansions and each node's token path."""
  rng = np.random.default_rng(seed)
  candidates = [{-1: []} for _ in range(B)]  # candidate index -> line tokens
  steps = [{-1: 0} for _ in range(B)]
  results = []
  for round_index in range(NUM_ROUNDS):
    block = round_index * W
    leaf = np.full((B, W), -1, np.int32)
    for b in range(B):
      options = [c for c in candidates[b] if c >= 0 and steps[b][c] < D - 1]
      if round_index and options:
        leaf[b] = rng.choice(options, W)
    keys = jax.random.split(jax.random.key(100 + round_index), B)
    width = jnp.full((B, W), num_candidates)
    expansion, store = expand(
      params, keys, store, leaf, width, jnp.int32(block)
    )
    expansion = jax.tree.map(np.asarray, expansion)
    for b in range(B):
      for w in range(W):
        for a in range(num_candidates):
          line = candidates[b][leaf[b, w]]
          step = expansion.tokens[b, w, a, : expansion.length[b, w, a]]
          index = (block + w) * num_candidates + a
          candidates[b][index] = [*line, *step]
          steps[b][index] = steps[b][leaf[b, w]] + 1
          results.append((b, line, step, w, a, expansion))
  return results, candidates


@pytest.mark.parametrize(
  ("scan_layers", "num_kv_heads", "num_candidates", "proposal"),
  [
    *((s, k, A, "sample") for s in (False, True) for k in (1, 2, 4)),
    (False, 2, 1, "sample"),
    # A beam changes the order of its streams on the way.
    (False, 2, 7, "stochastic_beam"),
    (True, 2, A, "stochastic_beam"),
    (False, 2, 1, "stochastic_beam"),
  ],
)
def test_cached_decoding_equals_full_forward(
  scan_layers, num_kv_heads, num_candidates, proposal
):
  config, graphdef, params, expand = make(scan_layers, num_kv_heads, proposal)
  prompt = jax.random.randint(jax.random.key(2), (B, P), 4, V)
  prompt_length = jnp.array([4, 2, 3])
  store = new_store(
    config, params, graphdef, prompt, prompt_length, num_candidates
  )
  results, _ = grow(expand, params, store, 0, num_candidates)

  @jax.jit
  def full(params, tokens):
    model = nnx.merge(graphdef, params)
    hidden = model.forward(tokens)
    return jax.nn.log_softmax(model.logits(hidden)), model.heads(hidden)

  size = P + D * T
  rows = np.zeros((len(results), size), np.int32)
  for i, (b, line, step, *_) in enumerate(results):
    row = [*np.asarray(prompt[b, : prompt_length[b]]), *line, *step]
    rows[i, : len(row)] = row
  log_probs, heads = jax.tree.map(np.asarray, full(params, rows))
  depths = set()
  for i, (b, line, step, w, a, expansion) in enumerate(results):
    start = int(prompt_length[b]) + len(line)
    at = np.arange(start, start + len(step))
    expected = log_probs[i, at - 1, rows[i, at]]
    got = expansion.token_log_prob[b, w, a]
    np.testing.assert_allclose(got[: len(step)], expected, atol=1e-4)
    np.testing.assert_array_equal(got[len(step) :], 0)
    if proposal == "sample":
      np.testing.assert_allclose(
        expansion.proposal_log_prob[b, w, a], expected.sum(), atol=3e-4
      )
    for got, logit in [
      (expansion.value, heads.value_logit),
      (expansion.prm, heads.prm_logit),
    ]:
      value = 1 / (1 + np.exp(-logit[i, at[-1]]))
      np.testing.assert_allclose(got[b, w, a], value, atol=1e-4)
    assert expansion.ended[b, w, a] == (step[-1] == END)
    assert expansion.truncated[b, w, a] == (not ENDS_STEP[step[-1]])
    assert not ENDS_STEP[step[:-1]].any()
    depths.add(len(line))
  assert max(depths) > T  # paths of several blocks were exercised
