"""The engines that `bench_search.py` compares: one search, several caches.

All sample with the same functions of the same network, A steps of exactly T
tokens at each of N nodes of each tree: no token ends a step, and no step ends
a line before the last depth.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from qstar_jax.config import MeshConfig, ModelConfig, SearchConfig
from qstar_jax.distributed.mesh import make_mesh
from qstar_jax.model import decoding, sampling, step_cache
from qstar_jax.model.attention import mask_bias
from qstar_jax.model.proposal import independent
from qstar_jax.model.step_cache import Prefix
from qstar_jax.model.transformer import Transformer, init_model
from qstar_jax.search import driver
from qstar_jax.search import tree as tree_lib
from qstar_jax.search.driver import SearchState
from qstar_jax.search.expand import Expansion
from qstar_jax.selfplay import network_expand


@dataclasses.dataclass(frozen=True)
class Case:
  """What is searched.

  Attributes:
    prompt_tokens: P, all in use.
    step_tokens: T, all in use.
    max_steps: D.
    num_trees: B.
    num_nodes: N, expanded in each tree, the root among them.
    num_candidates: A.
    vocabulary_size: V.
    model: the network's shape; its weights are random.
    num_devices: divides B; the trees are split over so many.
  """

  prompt_tokens: int
  step_tokens: int
  max_steps: int
  num_trees: int
  num_nodes: int
  num_candidates: int = 8
  vocabulary_size: int = 655
  model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
  num_devices: int = 1

  @property
  def of_device(self) -> "Case":
    """The share of one device."""
    num_trees = self.num_trees // self.num_devices
    return dataclasses.replace(self, num_trees=num_trees, num_devices=1)

  @property
  def prefix_tokens(self) -> int:
    """Tokens before the candidates of the deepest node."""
    return self.prompt_tokens + (self.max_steps - 1) * self.step_tokens

  @property
  def search(self) -> SearchConfig:
    return SearchConfig(
      num_candidates=self.num_candidates, num_simulations=self.num_nodes - 1
    )


class Result(NamedTuple):
  """What an engine found.

  Attributes:
    tokens: int32 [B, A, T], the root's candidates.
    log_prob: float32 [B, A], theirs.
    visits: int32 [B, A], of the root's candidates.
    num_expansions: int32 [B], in each tree.
  """

  tokens: chex.Array
  log_prob: chex.Array
  visits: chex.Array
  num_expansions: chex.Array


@dataclasses.dataclass(frozen=True)
class Engine:
  """A compiled search.

  Attributes:
    compile_seconds: of all its programs.
    program_bytes: of the program's arguments, outputs and temporaries, on all
      devices.
    first: allocates and runs a search up to the root's own expansion; compiles
      what it needs when first called.
    full: allocates and runs a search of N expansions.
  """

  compile_seconds: float
  program_bytes: int
  first: Callable[[], Result]
  full: Callable[[], Result]


class Program(NamedTuple):
  """A compiled function with its arguments in place, and what it takes."""

  run: Callable[[], Any]
  seconds: float
  num_bytes: int


def compiled(case: Case, fn, shared: Any, *by_tree: Any) -> Program:
  """Compiles a function and splits its trees over the devices.

  Args:
    case: says how many devices.
    fn: (shared, *by_tree) -> arrays that begin with the trees; it sees those of
      one device.
    shared: arrays that all devices have.
    *by_tree: arrays that begin with the trees.
  """
  mesh = make_mesh(MeshConfig(), jax.devices()[: case.num_devices])
  specs = (P(), *(P("data") for _ in by_tree))
  args = [
    jax.device_put(value, NamedSharding(mesh, spec))
    for value, spec in zip((shared, *by_tree), specs, strict=True)
  ]
  split = jax.shard_map(
    fn, mesh=mesh, in_specs=specs, out_specs=P("data"), check_vma=False
  )
  start = time.perf_counter()
  call = jax.jit(split).lower(*args).compile()
  seconds = time.perf_counter() - start
  memory = call.memory_analysis()
  num_bytes = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
  )
  return Program(lambda: call(*args), seconds, num_bytes * case.num_devices)


def never_ends(case: Case) -> chex.Array:
  """[V] bool, no token ends a step."""
  return jnp.zeros((case.vocabulary_size,), bool)


def every_candidate(case: Case) -> chex.Array:
  """int32 [B], every tree's leaf wants all of its candidates."""
  return jnp.full((case.num_trees,), case.num_candidates)


def random_network(case: Case) -> tuple[nnx.GraphDef, nnx.State]:
  return init_model(case.model, case.vocabulary_size, seed=0)


def prompts(case: Case) -> chex.Array:
  """[B, P] int32."""
  shape = (case.num_trees, case.prompt_tokens)
  return jax.random.randint(jax.random.key(1), shape, 0, case.vocabulary_size)


def tree_keys(case: Case) -> chex.PRNGKey:
  """[B]."""
  return jax.random.split(jax.random.key(2), case.num_trees)


def empty_store(case: Case, **changes) -> step_cache.StepStore:
  sizes = {
    "num_trees": case.num_trees,
    "num_blocks": case.num_nodes,
    "num_candidates": case.num_candidates,
    "max_prompt_tokens": case.prompt_tokens,
    "max_step_tokens": case.step_tokens,
    "max_steps": case.max_steps,
  }
  return step_cache.empty_store(case.model, **(sizes | changes))


def prefill(
  model: Transformer, case: Case, tokens_BS: chex.Array, length_B: chex.Array
) -> step_cache.StepStore:
  """A store of no blocks that has run whole lines as its prompts."""
  store = empty_store(case, num_blocks=0, max_prompt_tokens=tokens_BS.shape[1])
  return step_cache.prefill(model, store, tokens_BS, length_B)


def line_prefix(store: step_cache.StepStore) -> Prefix:
  """The prefix that the store's prompts are, without any block."""
  size = store.prompt_keys[0].shape[2]
  return Prefix(
    keys=store.prompt_keys,
    values=store.prompt_values,
    bias=mask_bias(jnp.arange(size)[None] < store.prompt_length[:, None]),
  )


def to_expansion(model: Transformer, steps: decoding.DecodedSteps) -> Expansion:
  """An expansion of one leaf a tree, whose lines go on."""
  expansion = network_expand.to_expansion(model, steps, end_token=0)
  goes_on = jnp.zeros_like(steps.is_complete)
  expansion = expansion._replace(ended=goes_on, truncated=goes_on)
  return jax.tree.map(lambda x: x[:, None], expansion)


def step_tree_expand(graphdef: nnx.GraphDef, case: Case):
  """The product's expand function; its steps, all cut, go on nevertheless."""
  expand = network_expand.make_expand_fn(
    graphdef,
    ends_step=np.zeros(case.vocabulary_size),
    end_token=0,
    temperature=1.0,
  )

  def expand_on(params, rng_key_B, store, leaf_BW, width_BW, block):
    expansion, store = expand(
      params, rng_key_B, store, leaf_BW, width_BW, block
    )
    goes_on = jnp.zeros_like(expansion.truncated)
    return expansion._replace(ended=goes_on, truncated=goes_on), store

  return expand_on


def start_search(
  model: Transformer,
  case: Case,
  store: Any,
  hidden_BM: chex.Array,
  rng_key_B: chex.PRNGKey,
) -> SearchState:
  """A search at its first move."""
  tree = tree_lib.new_tree(
    num_nodes=case.num_nodes,
    num_candidates=case.num_candidates,
    max_step_tokens=case.step_tokens,
    problem_value_B=jax.nn.sigmoid(model.heads(hidden_BM).value_logit),
    prompt_length_B=jnp.full((case.num_trees,), case.prompt_tokens),
  )
  state = SearchState(
    tree, store, jnp.zeros((case.num_trees,), jnp.int32), rng_key_B
  )
  return driver.begin_move(state, case.search, case.max_steps)


def _driven(case: Case, params: Any, start_fn, expand_fn) -> Engine:
  """Our search, whatever expands its leaves."""

  def program(search_fn):
    def search(params, tokens_BP, rng_key_B):
      state = start_fn(params, tokens_BP, rng_key_B)
      arguments = expand_fn, case.search, case.max_steps
      tree = search_fn(params, state, *arguments).tree
      return Result(
        tree.tokens[:, 0],
        tree.log_prob[:, 0],
        tree.visits[:, 0],
        jnp.sum(tree.depth >= 0, axis=1),
      )

    return compiled(case, search, params, prompts(case), tree_keys(case))

  full = program(driver.search_move)
  one_round = functools.cache(lambda: program(driver.search_round))
  return Engine(
    compile_seconds=full.seconds,
    program_bytes=full.num_bytes,
    first=lambda: one_round().run(),
    full=full.run,
  )


def step_tree(case: Case) -> Engine:
  """The product's search over its step cache."""
  graphdef, params = random_network(case)
  own = case.of_device

  def start(params, tokens_BP, rng_key_B):
    model = nnx.merge(graphdef, params)
    length_B = jnp.full(own.num_trees, case.prompt_tokens)
    store = step_cache.prefill(model, empty_store(own), tokens_BP, length_B)
    return start_search(model, own, store, store.prompt_hidden, rng_key_B)

  return _driven(case, params, start, step_tree_expand(graphdef, case))


class LineStore(NamedTuple):
  """What re-prefilling remembers: text alone.

  Attributes:
    prompt: int32 [B, P].
    steps: int32 [N, B, (D - 1) * T], steps up to and with the node's own.
    depth: int32 [N, B], their number.
    candidates: int32 [N, B, A, T].
  """

  prompt: chex.Array
  steps: chex.Array
  depth: chex.Array
  candidates: chex.Array


def _chosen_line(
  store: LineStore, leaf_B: chex.Array
) -> tuple[chex.Array, chex.Array]:
  """Steps [B, (D - 1) * T] and depth [B] of the node that leaves become."""
  num_candidates, t = store.candidates.shape[2:]
  parent_B, slot_B = jnp.divmod(jnp.maximum(leaf_B, 0), num_candidates)

  def one_tree(steps_NS, depth_N, candidates_NAT, parent, slot, leaf):
    steps_S = jax.lax.dynamic_update_slice(
      steps_NS[parent], candidates_NAT[parent, slot], (depth_N[parent] * t,)
    )
    is_root = leaf < 0
    depth = jnp.where(is_root, 0, depth_N[parent] + 1)
    return jnp.where(is_root, 0, steps_S), depth

  return jax.vmap(one_tree, in_axes=(1, 1, 1, 0, 0, 0))(
    store.steps, store.depth, store.candidates, parent_B, slot_B, leaf_B
  )


def reprefill(case: Case) -> Engine:
  """Our search with no cache between expansions: each runs its whole line."""
  graphdef, params = random_network(case)
  own = case.of_device
  b, n = own.num_trees, case.num_nodes
  a, t = case.num_candidates, case.step_tokens

  def start(params, tokens_BP, rng_key_B):
    model = nnx.merge(graphdef, params)
    length_B = jnp.full(b, case.prompt_tokens)
    hidden_BM = prefill(model, own, tokens_BP, length_B).prompt_hidden
    store = LineStore(
      prompt=tokens_BP,
      steps=jnp.zeros((n, b, (case.max_steps - 1) * t), jnp.int32),
      depth=jnp.zeros((n, b), jnp.int32),
      candidates=jnp.zeros((n, b, a, t), jnp.int32),
    )
    return start_search(model, own, store, hidden_BM, rng_key_B)

  def expand(params, rng_key_B, store, leaf_BW, width_BW, block):
    model = nnx.merge(graphdef, params)
    steps_BS, depth_B = _chosen_line(store, leaf_BW[:, 0])
    line_BS = jnp.concatenate([store.prompt, steps_BS], axis=1)
    length_B = case.prompt_tokens + depth_B * t
    line = prefill(model, own, line_BS, length_B)
    steps = decoding.decode_streams(
      model,
      model.layer_stack(),
      line_prefix(line),
      line.prompt_hidden,
      length_B,
      sampling.per_row_uniform(rng_key_B, (a, t, 1)),
      every_candidate(own),
      never_ends(case),
      independent(1.0),
    ).steps
    store = store._replace(
      steps=store.steps.at[block].set(steps_BS),
      depth=store.depth.at[block].set(depth_B),
      candidates=store.candidates.at[block].set(steps.tokens),
    )
    return to_expansion(model, steps), store

  return _driven(case, params, start, expand)
