"""Candidates without replacement, from a real network."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qstar_jax.config import ModelConfig
from qstar_jax.model import step_cache
from qstar_jax.model.transformer import init_model
from qstar_jax.selfplay.network_expand import make_expand_fn

MODEL = ModelConfig(
  num_layers=2,
  model_dim=16,
  num_heads=2,
  num_kv_heads=2,
  head_dim=8,
  ffn_dim=24,
)
END, DELIMITER = 1, 2
NUM_TREES, NUM_LEAVES, PROMPT_TOKENS = 4, 2, 3


@functools.cache
def make(
  num_candidates,
  max_tokens,
  *,
  temperature=1.0,
  num_values=11,
  proposal="stochastic_beam",
  config=MODEL,
):
  """A network's `expand(prompts, seeds, widths)`, and its log-probabilities."""
  graphdef, params = init_model(config, num_values, seed=0)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: x + 0.3 * rng.standard_normal(x.shape, np.float32), params
  )
  expand_fn = make_expand_fn(
    graphdef,
    ends_step=np.isin(np.arange(num_values), [END, DELIMITER]),
    end_token=END,
    temperature=temperature,
    proposal=proposal,
  )

  @jax.jit
  def expand(prompt_BP, seed_B, width_BW):
    b, w = width_BW.shape
    store = step_cache.empty_store(
      config,
      num_trees=b,
      num_blocks=w,
      num_candidates=num_candidates,
      max_prompt_tokens=PROMPT_TOKENS,
      max_step_tokens=max_tokens,
      max_steps=2,
    )
    model = nnx.merge(graphdef, params)
    length_B = jnp.full((b,), PROMPT_TOKENS)
    store = step_cache.prefill(model, store, prompt_BP, length_B)
    keys = jax.vmap(jax.random.key)(seed_B)
    leaf_BW = jnp.full((b, w), step_cache.ROOT)
    expansion, _ = expand_fn(
      params, keys, store, leaf_BW, width_BW, jnp.int32(0)
    )
    return expansion

  @jax.jit
  def log_probs(tokens_BT):
    """Of the next token behind every token, by a pass without a cache."""
    model = nnx.merge(graphdef, params)
    return jax.nn.log_softmax(model.logits(model.forward(tokens_BT)))

  def run(prompt=None, seeds=range(NUM_TREES), width=num_candidates):
    prompt = PROMPTS if prompt is None else prompt
    width = np.broadcast_to(width, (len(prompt), NUM_LEAVES)).astype(np.int32)
    expansion = expand(prompt, np.array(seeds, np.uint32), width)
    return jax.tree.map(np.asarray, expansion)

  return types.SimpleNamespace(
    expand=run, log_probs=log_probs, model=nnx.merge(graphdef, params)
  )


PROMPTS = np.random.default_rng(0).integers(3, 11, (NUM_TREES, PROMPT_TOKENS))


def steps_of(expansion, b, w):
  """The candidates of a leaf, as tuples of tokens; () where there is none."""
  return [
    tuple(tokens[:length].tolist())
    for tokens, length in zip(
      expansion.tokens[b, w], expansion.length[b, w], strict=True
    )
  ]


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1.5])
def test_candidates_are_distinct_and_as_many_as_wanted(temperature):
  width = np.array([[8, 3], [0, 8], [1, 5], [8, 2]])
  net = make(8, 4, temperature=temperature)
  expansion = net.expand(width=width)
  for b, w in np.ndindex(width.shape):
    steps = steps_of(expansion, b, w)
    assert all(steps[: width[b, w]])
    assert not any(steps[width[b, w] :])
    assert len(set(steps[: width[b, w]])) == width[b, w]
  is_wanted = np.arange(8) < width[..., None]
  np.testing.assert_array_equal(expansion.count, is_wanted)
  nothing = ~is_wanted
  assert not expansion.tokens[nothing].any()
  assert not expansion.token_log_prob[nothing].any()
  assert not expansion.proposal_log_prob[nothing].any()
  assert not expansion.ended[nothing].any()
  assert not expansion.truncated[nothing].any()
  if temperature == 0:
    np.testing.assert_array_equal(expansion.proposal_log_prob, 0)
  else:
    assert (expansion.proposal_log_prob[is_wanted] < 0).any()


def beam_search(log_probs, prompt, size, max_tokens):
  """Plain beam search over tokens: [(log-probability, tokens)], best first."""
  beam = [(0.0, ())]
  for _ in range(max_tokens):
    options = []
    for score, tokens in beam:
      if tokens and tokens[-1] in (END, DELIMITER):
        options.append((score, tokens))
        continue
      line = np.zeros((1, PROMPT_TOKENS + max_tokens), np.int32)
      start = PROMPT_TOKENS + len(tokens)
      line[0, :start] = [*prompt, *tokens]
      following = np.asarray(log_probs(line))[0, start - 1]
      options += [
        (score + following[token], (*tokens, token))
        for token in range(len(following))
      ]
    beam = sorted(options, reverse=True)[:size]
  return beam


@pytest.mark.parametrize("size", [1, 3, 8])
def test_at_temperature_0_it_is_beam_search(size):
  net = make(size, 4, temperature=0.0)
  expansion = net.expand()
  lengths = set()
  for b, prompt in enumerate(PROMPTS):
    expected = beam_search(net.log_probs, prompt, size, 4)
    assert steps_of(expansion, b, 0) == [tokens for _, tokens in expected]
    np.testing.assert_allclose(
      expansion.token_log_prob[b, 0].sum(axis=-1),
      [score for score, _ in expected],
      atol=1e-4,
    )
    lengths |= {len(tokens) for _, tokens in expected}
  assert size == 1 or len(lengths) > 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("num_candidates", [9, 11, 16])
def test_steps_of_one_token(num_candidates, temperature):
  """As wide as the vocabulary, and wider: then every token, for certain."""
  net = make(num_candidates, 1, temperature=temperature)
  expansion = net.expand()
  num_found = min(num_candidates, 11)
  np.testing.assert_array_equal(
    expansion.length[0, 0], np.arange(num_candidates) < num_found
  )
  np.testing.assert_array_equal(expansion.count, expansion.length)
  tokens = expansion.tokens[0, 0, :num_found, 0]
  assert len(set(tokens.tolist())) == num_found
  if num_candidates >= 11:
    np.testing.assert_array_equal(expansion.proposal_log_prob, 0)
  expected = np.asarray(net.log_probs(PROMPTS))[0, -1, tokens]
  np.testing.assert_allclose(
    expansion.token_log_prob[0, 0, :num_found, 0], expected, atol=1e-4
  )


def test_more_candidates_than_steps():
  """Of 3 tokens, two of which end a step: 2 steps of one token, 3 of two."""
  net = make(9, 2, num_values=3)
  expansion = net.expand(PROMPTS % 3)
  for b, w in np.ndindex(NUM_TREES, NUM_LEAVES):
    steps = steps_of(expansion, b, w)
    assert set(steps[:5]) == {(1,), (2,), (0, 0), (0, 1), (0, 2)}
    assert not any(steps[5:])
    truncated = [step == (0, 0) for step in steps]
    np.testing.assert_array_equal(expansion.truncated[b, w], truncated)
  np.testing.assert_array_equal(expansion.proposal_log_prob, 0)
  np.testing.assert_allclose(
    np.exp(expansion.token_log_prob.sum(axis=-1))[..., :5].sum(axis=-1),
    1,
    atol=1e-4,
  )


def test_a_tree_does_not_depend_on_its_neighbours():
  net = make(8, 4)
  width = np.array([[8, 3], [0, 8], [8, 5], [8, 2]])
  together = net.expand(width=width)
  order = [2, 0, 0, 3]
  others = net.expand(PROMPTS[order], order, width[order])
  for ours, theirs in zip(others, together, strict=True):
    np.testing.assert_allclose(ours, theirs[order], atol=1e-5)
  again = net.expand(seeds=[7, 8, 9, 10], width=width)
  assert (again.tokens != together.tokens).any()


def test_an_only_candidate_is_drawn_from_the_policy():
  """Which a beam of one does as independent samples do."""
  num_trees = 4000
  prompts = np.repeat(PROMPTS[:1], num_trees, axis=0)
  for proposal in ("sample", "stochastic_beam"):
    net = make(1, 2, proposal=proposal)
    expansion = net.expand(prompts, range(num_trees))
    expected = np.exp(np.asarray(net.log_probs(PROMPTS))[0, -1])
    first = expansion.tokens[:, 0, 0, 0]
    found = np.bincount(first, minlength=11) / num_trees
    error = np.sqrt(expected * (1 - expected) / num_trees)
    assert (np.abs(found - expected) <= 4 * error).all()


@pytest.mark.parametrize("proposal", ["sample", "stochastic_beam"])
@pytest.mark.parametrize("max_tokens", [1, 4])
def test_token_q_is_that_of_the_last_token(proposal, max_tokens):
  """Against a pass without a cache, up to the token before it."""
  config = dataclasses.replace(MODEL, token_q=True)
  net = make(5, max_tokens, proposal=proposal, config=config)
  expansion = net.expand()
  lines, found = [], []
  for b, w in np.ndindex(NUM_TREES, NUM_LEAVES):
    for a, step in enumerate(steps_of(expansion, b, w)):
      if step:
        lines.append([*PROMPTS[b], *step])
        found.append(expansion.token_q[b, w, a])
  padded = np.zeros((len(lines), PROMPT_TOKENS + max_tokens), np.int32)
  for row, line in zip(padded, lines, strict=True):
    row[: len(line)] = line
  hidden = net.model.forward(padded)
  for i, line in enumerate(lines):
    q = net.model.token_q(hidden[i, len(line) - 2], np.array(line[-1:]))
    assert found[i] == pytest.approx(float(q.min()), abs=1e-4)
  assert len(lines) > 20


def test_without_token_q_heads_it_is_the_value():
  expansion = make(8, 4).expand()
  np.testing.assert_array_equal(expansion.token_q, expansion.value)
