"""Where the time of `bench_search.py` goes: decoding, and a round in parts."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from qstar_jax.model import decoding, sampling, step_cache
from qstar_jax.model.attention import Segment, attend, mask_bias
from qstar_jax.model.proposal import independent
from qstar_jax.model.step_cache import Prefix
from qstar_jax.model.transformer import rotation_at
from qstar_jax.search import driver
from qstar_jax.search.expand import Expansion, unjudged
from tools import search_engines
from tools.search_engines import Case

_TIMES = 5


def seconds(fn: Callable[[], Any]) -> float:
  """Of one call."""
  start = time.perf_counter()
  jax.block_until_ready(fn())
  return time.perf_counter() - start


def best_seconds(fn: Callable[[], Any]) -> float:
  """Of the fastest of a few calls, as others use the machine too."""
  return min(seconds(fn) for _ in range(_TIMES))


class Product(NamedTuple):
  """A matrix product that every token of every layer needs, or the head.

  Attributes:
    left: shape, contracted over its last axis.
    right: shape, contracted over its last axis, or its last but one.
    right_axis: the one contracted.
    per_token: number of times, each with a right side of its own.
  """

  left: tuple[int, ...]
  right: tuple[int, ...]
  right_axis: int
  per_token: int


def decode_products(case: Case) -> dict[str, Product]:
  """Every product of one token's decoding at the deepest node, by name."""
  model = case.model
  m, f, c, k = (
    model.model_dim,
    model.ffn_dim,
    model.head_dim,
    model.num_kv_heads,
  )
  b, a, t, s = (
    case.num_trees,
    case.num_candidates,
    case.step_tokens,
    case.prefix_tokens,
  )
  rows = b * a
  heads_dim = model.num_heads * c
  g = model.num_heads // k

  def per_layer(left, right, right_axis=-2):
    return Product(left, right, right_axis, model.num_layers)

  return {
    "query, key, value": per_layer((rows, m), (m, heads_dim + 2 * k * c)),
    "output": per_layer((rows, heads_dim), (heads_dim, m)),
    "gate, up": per_layer((rows, m), (m, 2 * f)),
    "down": per_layer((rows, f), (f, m)),
    "prefix scores": per_layer((b, k, a * g, c), (b, k, c, s)),
    "prefix values": per_layer((b, k, a * g, s), (b, k, s, c)),
    "own scores": per_layer((b, k, a, g, c), (b, k, a, t, c), -1),
    "own values": per_layer((b, k, a, g, t), (b, k, a, t, c)),
    "head": Product((rows, m), (case.vocabulary_size, m), -1, 1),
  }


def product_loop(case: Case, product: Product) -> Callable[[], chex.Array]:
  """A compiled loop of nothing but one product, for a step of T tokens.

  Every device runs its own.
  """
  keys = jax.random.split(jax.random.key(0), product.per_token + 1)
  left = jax.random.normal(keys[0], product.left)
  rights = [jax.random.normal(key, product.right) for key in keys[1:]]
  batch = tuple(range(left.ndim - 2))
  axes = (left.ndim - 1,), (product.right_axis % left.ndim,)

  def loop(operands):
    left, rights = operands

    def body(_, left):
      for right in rights:
        y = jax.lax.dot_general(left, right, (axes, (batch, batch)))
        # The next product waits for this one, at the cost of one number.
        y = jax.lax.optimization_barrier(y)
        left = left.at[(0,) * left.ndim].set(y[(0,) * y.ndim])
      return left

    return jax.lax.fori_loop(0, case.step_tokens, body, left)

  return search_engines.compiled(case, loop, (left, rights)).run


def products(case: Case) -> Callable[[], float]:
  """Times the products of a step of T tokens, each in a loop of its own."""
  loops = [
    product_loop(case, product)
    for product in decode_products(case.of_device).values()
  ]
  return lambda: sum(best_seconds(loop) for loop in loops)


def _random_prefix(case: Case) -> Prefix:
  """[B, ...] arrays."""
  model, b, s = case.model, case.num_trees, case.prefix_tokens
  k, c = model.num_kv_heads, model.head_dim

  def per_layer(shape):
    keys = jax.random.split(jax.random.key(0), model.num_layers)
    return [jax.random.normal(key, shape) for key in keys]

  shape = b, k, s, c
  return Prefix(per_layer(shape), per_layer(shape), jnp.zeros((b, s)))


def decode(case: Case) -> Callable[[], float]:
  """Times `decode_streams` behind full prefixes."""
  graphdef, params = search_engines.random_network(case)
  program = search_engines.compiled(
    case,
    functools.partial(_decode, graphdef, case.of_device),
    params,
    _random_prefix(case),
    jnp.ones((case.num_trees, case.model.model_dim)),
    search_engines.tree_keys(case),
  )
  return lambda: best_seconds(program.run)


def _decode(graphdef, case, params, prefix, hidden_XM, rng_key_B):
  model = nnx.merge(graphdef, params)
  shape = (case.num_candidates, case.step_tokens, 1)
  return decoding.decode_streams(
    model,
    model.layer_stack(),
    prefix,
    hidden_XM,
    jnp.full((case.num_trees,), case.prefix_tokens),
    sampling.per_row_uniform(rng_key_B, shape),
    search_engines.every_candidate(case),
    search_engines.never_ends(case),
    independent(1.0),
  ).steps


def profile_round(case: Case) -> dict[str, float]:
  """Median seconds of a round's stages, in a search run stage by stage."""
  graphdef, params = search_engines.random_network(case)
  select, run_leaf, decode, insert = _stages(graphdef, case)
  model = nnx.merge(graphdef, params)
  store = step_cache.prefill(
    model,
    search_engines.empty_store(case),
    search_engines.prompts(case),
    jnp.full((case.num_trees,), case.prompt_tokens),
  )
  # The stages hand the store on apart from the rest.
  state = search_engines.start_search(
    model, case, (), store.prompt_hidden, search_engines.tree_keys(case)
  )
  keys = search_engines.tree_keys(case)
  times: dict[str, list[float]] = {}

  def timed(name, fn, *args):
    start = time.perf_counter()
    result = jax.block_until_ready(fn(*args))
    times.setdefault(name, []).append(time.perf_counter() - start)
    return result

  for _ in range(case.num_nodes):
    block = state.block(case.search)
    state, leaf_BW = timed("selection", select, state)
    store, prefix, hidden = timed(
      "run of the chosen step", run_leaf, params, store, leaf_BW, block
    )
    steps = timed("decoding", decode, params, prefix, hidden, keys)
    state, store = timed(
      "insertion and backup", insert, params, state, store, steps
    )
  # The first round compiles.
  return {name: statistics.median(many[1:]) for name, many in times.items()}


def _stages(graphdef: nnx.GraphDef, case: Case) -> tuple[Callable, ...]:
  """A round as four programs."""
  arguments = case.search, case.max_steps

  def select(state):
    def no_expansion(params, rng_key_B, store, leaf_BW, width_BW, block):
      del params, rng_key_B, width_BW, block
      nothing = jnp.zeros((*leaf_BW.shape, case.num_candidates))
      return Expansion(*[nothing] * len(Expansion._fields)), store

    return driver.select_and_expand(None, state, no_expansion, *arguments)[:2]

  def run_leaf(params, store, leaf_BW, block):
    model = nnx.merge(graphdef, params)
    leaf = step_cache.load_leaf(store, leaf_BW)
    store, prefix = step_cache.run_leaf(
      model, model.layer_stack(), store, leaf, block
    )
    return store, prefix, leaf.hidden[:, 0]

  def insert(params, state, store, steps):
    model = nnx.merge(graphdef, params)
    expansion = search_engines.to_expansion(model, steps)
    store = step_cache.write_candidates(
      store,
      state.block(case.search),
      expansion.tokens,
      expansion.length,
      steps.hidden[:, None],
    )
    state = driver.insert_and_backup(
      state, expansion, unjudged(expansion), *arguments
    )
    return state, store

  return (
    jax.jit(select, donate_argnums=0),
    jax.jit(run_leaf, donate_argnums=1),
    jax.jit(functools.partial(_decode, graphdef, case)),
    jax.jit(insert, donate_argnums=(1, 2)),
  )


def profile_decoding(case: Case) -> dict[str, float]:
  """Seconds of the parts of `decode_streams`, each in a loop over T tokens."""
  parts = {
    "layers without attention": _run_layers,
    "attention over the prefix": _attend_prefix,
    "attention over the own step": _attend_own,
    "head and sampling": _sample,
  }
  return {name: _best_of_loop(*part(case)) for name, part in parts.items()}


def _best_of_loop(loop: Callable, *args: Any) -> float:
  call = jax.jit(loop)
  jax.block_until_ready(call(*args))
  return best_seconds(lambda: call(*args))


def _queries(case: Case) -> chex.Array:
  model = case.model
  return jnp.ones(
    (case.num_trees, case.num_candidates, model.num_heads, model.head_dim)
  )


def _run_layers(case: Case):
  graphdef, params = search_engines.random_network(case)
  shape = (case.num_trees, case.num_candidates, case.model.model_dim)

  def loop(params, x_XAM):
    layers = nnx.merge(graphdef, params).layer_stack()
    position_X1 = jnp.zeros((case.num_trees, 1), jnp.int32)
    rotation = rotation_at(position_X1, case.model)

    def fn(layer, x_XAM):
      query, key, value = layer.project(x_XAM, rotation)
      num_groups = query.shape[2] // key.shape[2]
      own = jnp.repeat(key + value, num_groups, axis=2)
      return layer.finish(x_XAM, query + own), ()

    return jax.lax.fori_loop(
      0, case.step_tokens, lambda _, x: layers.run(fn, x)[0], x_XAM
    )

  return loop, params, jnp.ones(shape)


def _attend_prefix(case: Case):
  def loop(prefix, query):
    segments = prefix.segments()

    def token(_, query):
      for segment in segments:
        query = attend(query, [segment])
      return query

    return jax.lax.fori_loop(0, case.step_tokens, token, query)

  return loop, _random_prefix(case), _queries(case)


def _attend_own(case: Case):
  x, a, t = case.num_trees, case.num_candidates, case.step_tokens
  k, c = case.model.num_kv_heads, case.model.head_dim

  def loop(layers, query):
    def token(step, carry):
      layers, query = carry
      bias = mask_bias(jnp.arange(t) <= step)[None, None, None]
      new = jnp.swapaxes(query[:, :, :k], 1, 2)[:, :, :, None]
      written = []
      for own in layers:
        keys, values = (
          jax.lax.dynamic_update_slice_in_dim(old, new, step, axis=3)
          for old in own
        )
        segment = Segment(jnp.swapaxes(keys, 3, 4), values, bias)
        query = attend(query, [segment])
        written.append((keys, values))
      return written, query

    return jax.lax.fori_loop(0, t, token, (layers, query))

  own_XKATC = jnp.ones((x, k, a, t, c))
  layers = [(own_XKATC, own_XKATC)] * case.model.num_layers
  return loop, layers, _queries(case)


def _sample(case: Case):
  graphdef, params = search_engines.random_network(case)
  rows = case.num_trees * case.num_candidates

  def loop(params, hidden_RM):
    model = nnx.merge(graphdef, params)
    uniform_R = jnp.linspace(0.0, 0.99, rows)

    def token(_, hidden_RM):
      sampled = sampling.sample_tokens(model.logits(hidden_RM), uniform_R, 1.0)
      return model.embed(sampled.token)

    return jax.lax.fori_loop(0, case.step_tokens, token, hidden_RM)

  return loop, params, jnp.ones((rows, case.model.model_dim))
