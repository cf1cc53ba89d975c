"""The search of `bench_search.py` written with mctx, a cache per embedding.

mctx stores one embedding a node and copies it from parent to child, so each
holds the keys and values of its whole line.
"""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import mctx
from flax import nnx

from qstar_jax import improvement
from qstar_jax.model import decoding, sampling, step_cache
from qstar_jax.model.attention import mask_bias
from qstar_jax.model.proposal import independent
from qstar_jax.model.step_cache import Prefix
from qstar_jax.model.transformer import LayerStack, Transformer
from tools import search_engines
from tools.search_engines import Case, Engine, Result


class Node(NamedTuple):
  """The embedding. S = P + (D - 1) * T.

  Attributes:
    keys: L x [B, K, S, C], of prompt and steps, without gaps.
    values: the same.
    length: int32 [B], tokens of them.
    tokens: int32 [B, A, T], candidates.
    hidden: [B, A, M], their final hidden state.
    value: float32 [B, A], V after them.
    own_keys: L x [B, K, A, T, C], theirs; empty if they are run again instead.
    own_values: the same.
  """

  keys: list[chex.Array]
  values: list[chex.Array]
  length: chex.Array
  tokens: chex.Array
  hidden: chex.Array
  value: chex.Array
  own_keys: list[chex.Array]
  own_values: list[chex.Array]


def _prefix(keys, values, length_B) -> Prefix:
  slot_S = jnp.arange(keys[0].shape[2])
  return Prefix(keys, values, mask_bias(slot_S[None] < length_B[:, None]))


def _expand(
  model: Transformer,
  layers: LayerStack,
  prefix: Prefix,
  length_B: chex.Array,
  hidden_BM: chex.Array,
  rng_key_B: chex.PRNGKey,
  case: Case,
  keeps_candidates: bool,
) -> tuple[Node, chex.Array, chex.Array]:
  """A node with its candidates, their prior logits and log-probabilities."""
  shape = (case.num_candidates, case.step_tokens, 1)
  streams = decoding.decode_streams(
    model,
    layers,
    prefix,
    hidden_BM,
    length_B,
    sampling.per_row_uniform(rng_key_B, shape),
    search_engines.every_candidate(case),
    search_engines.never_ends(case),
    independent(1.0),
  )
  steps = streams.steps
  expansion = search_engines.to_expansion(model, steps)
  log_prob_BA = jnp.sum(steps.token_log_prob, axis=-1)
  prior_logits_BA = improvement.candidate_prior_logits(
    log_prob_BA, steps.proposal_log_prob, expansion.count[:, 0]
  )
  node = Node(
    keys=prefix.keys,
    values=prefix.values,
    length=length_B,
    tokens=steps.tokens,
    hidden=steps.hidden,
    value=expansion.value[:, 0],
    own_keys=streams.keys if keeps_candidates else [],
    own_values=streams.values if keeps_candidates else [],
  )
  return node, prior_logits_BA, log_prob_BA


def _of_action(x_BA: chex.Array, action_B: chex.Array) -> chex.Array:
  return jax.vmap(lambda x, action: x[action])(x_BA, action_B)


def _own(
  model: Transformer, layers: LayerStack, node: Node, action_B: chex.Array
) -> tuple[list[chex.Array], list[chex.Array]]:
  """The chosen step's keys and values, each L x [B, K, T, C]."""
  if node.own_keys:

    def chosen(own_BKATC):
      return _of_action(jnp.swapaxes(own_BKATC, 1, 2), action_B)

    return [chosen(x) for x in node.own_keys], [
      chosen(x) for x in node.own_values
    ]
  tokens_BT = _of_action(node.tokens, action_B)
  t = tokens_BT.shape[1]

  def with_slots(lines):
    return [jnp.pad(x, ((0, 0), (0, 0), (0, t), (0, 0))) for x in lines]

  prefix = step_cache.run_step(
    model,
    layers,
    _prefix(with_slots(node.keys), with_slots(node.values), node.length),
    tokens_BT,
    jnp.full_like(node.length, t),
    node.length,
  )
  return [x[:, :, -t:] for x in prefix.keys], [
    x[:, :, -t:] for x in prefix.values
  ]


def _append(lines, steps, length_B) -> list[chex.Array]:
  """Writes steps behind lines of `length_B`."""

  def one_tree(line_KSC, step_KTC, length):
    return jax.lax.dynamic_update_slice_in_dim(
      line_KSC, step_KTC, length, axis=1
    )

  return [
    jax.vmap(one_tree)(line, step, length_B)
    for line, step in zip(lines, steps, strict=True)
  ]


def _root(
  model: Transformer,
  layers: LayerStack,
  case: Case,
  tokens_BP: chex.Array,
  rng_key_B: chex.PRNGKey,
  keeps_candidates: bool,
) -> tuple[Node, mctx.RootFnOutput, chex.Array]:
  padding = case.prefix_tokens - case.prompt_tokens
  tokens_BS = jnp.pad(tokens_BP, ((0, 0), (0, padding)))
  length_B = jnp.full((case.num_trees,), case.prompt_tokens)
  store = search_engines.prefill(model, case, tokens_BS, length_B)
  # The keys that our search uses for its first expansion.
  keys_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(rng_key_B, 0)
  node, prior_logits_BA, log_prob_BA = _expand(
    model,
    layers,
    search_engines.line_prefix(store),
    length_B,
    store.prompt_hidden,
    keys_B,
    case,
    keeps_candidates,
  )
  value_B = jax.nn.sigmoid(model.heads(store.prompt_hidden).value_logit)
  root = mctx.RootFnOutput(
    prior_logits=prior_logits_BA, value=value_B, embedding=node
  )
  return node, root, log_prob_BA


def _search(
  graphdef: nnx.GraphDef,
  case: Case,
  keeps_candidates: bool,
  params: Any,
  num_rounds: chex.Array,
  tokens_BP: chex.Array,
  rng_key_B: chex.PRNGKey,
) -> Result:
  """Gumbel MuZero of N expansions, or of the first 1 + num_rounds of them."""
  model = nnx.merge(graphdef, params)
  layers = model.layer_stack()
  node, root, log_prob_BA = _root(
    model, layers, case, tokens_BP, rng_key_B, keeps_candidates
  )

  def recurrent_fn(params, rng_key, action_B, node):
    del params
    own_keys, own_values = _own(model, layers, node, action_B)
    keys = _append(node.keys, own_keys, node.length)
    values = _append(node.values, own_values, node.length)
    length_B = node.length + case.step_tokens
    child, prior_logits_BA, _ = _expand(
      model,
      layers,
      _prefix(keys, values, length_B),
      length_B,
      _of_action(node.hidden, action_B),
      jax.random.split(rng_key, case.num_trees),
      case,
      keeps_candidates,
    )
    value_B = _of_action(node.value, action_B)
    output = mctx.RecurrentFnOutput(
      reward=jnp.zeros_like(value_B),
      discount=jnp.ones_like(value_B),
      prior_logits=prior_logits_BA,
      value=value_B,
    )
    return output, child

  def loop_fn(lower, upper, body_fn, init):
    stop = jnp.minimum(upper, num_rounds)
    return jax.lax.fori_loop(lower, stop, body_fn, init)

  output = mctx.gumbel_muzero_policy(
    None,
    jax.random.key(3),
    root,
    recurrent_fn,
    num_simulations=case.num_nodes - 1,
    max_depth=case.max_steps - 1,
    loop_fn=loop_fn,
  )
  return Result(
    tokens=node.tokens,
    log_prob=log_prob_BA,
    visits=output.search_tree.summary().visit_counts,
    num_expansions=output.search_tree.node_visits[:, 0],
  )


def mctx_engine(case: Case, *, keeps_candidates: bool) -> Engine:
  """The search with mctx.

  Args:
    case: what is searched.
    keeps_candidates: an embedding holds its candidates' keys and values, so
      that nothing runs twice; else the chosen step is run again, as in ours.

  Returns:
    The engine.
  """
  graphdef, params = search_engines.random_network(case)
  own = case.of_device

  def program(num_rounds):
    def search(shared, tokens_BP, rng_key_B):
      return _search(
        graphdef, own, keeps_candidates, *shared, tokens_BP, rng_key_B
      )

    return search_engines.compiled(
      case,
      search,
      (params, jnp.int32(num_rounds)),
      search_engines.prompts(case),
      search_engines.tree_keys(case),
    )

  full = program(case.num_nodes - 1)
  root_alone = functools.cache(lambda: program(0))
  return Engine(
    compile_seconds=full.seconds,
    program_bytes=full.num_bytes,
    first=lambda: root_alone().run(),
    full=full.run,
  )
