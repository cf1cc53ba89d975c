"""The device side of play: the phases of a table of trees, compiled.

A *table* is the state of B searches. A tree that is done makes room for another
problem while its neighbours go on.
"""

import functools
import os

import chex
import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qstar_jax.config import ModelConfig, SearchConfig, TextConfig
from qstar_jax.errors import UserError
from qstar_jax.model import step_cache
from qstar_jax.search import driver
from qstar_jax.search import tree as tree_lib
from qstar_jax.search.driver import SearchState
from qstar_jax.search.expand import ExpandFn
from qstar_jax.search.tree import SearchTree


def _rows(tree: SearchTree, row_G: chex.Array) -> SearchTree:
  """Some trees; a row past the end is any."""
  return jax.tree.map(lambda x: x.at[row_G].get(mode="clip"), tree)


class Phases:
  """Compiled functions of a table; every device has trees of its own.

  `row_G` lists trees of each device by their places on it: int32 [S * G], G for
  each of S devices; what is past the end is no tree. States are consumed.

  Attributes:
    empty: () -> state, a table at which all trees are done.
    seat: (params, state, row_G, prompt_GP, length_G, before_G, seed_G,
      budget_G) -> state, with new trees at their first move in the place of
      others; before_G are steps that the prompts end with.
    take: (tree, row_G) -> trees [S * G].
    play: (params, state, num_done) -> state; stops when as many trees of each
      device are done. Outcomes come from the network.
    expand: (params, state) -> (state, leaf_BW, expansion), half a round.
    insert: (state, expansion, judgement) -> state, the other half; moves that
      are over are committed.
    by_tree: sharding of arrays whose first axis is B, or S * G.
    replicated: sharding of parameters.
  """

  def __init__(
    self,
    graphdef: nnx.GraphDef,
    expand_fn: ExpandFn,
    *,
    model: ModelConfig,
    text: TextConfig,
    search: SearchConfig,
    num_trees: int,
    mesh: Mesh,
  ):
    """Compiles nothing yet; see `Player` for the arguments."""
    self._graphdef = graphdef
    self._search, self._max_steps = search, text.max_steps
    num_nodes = driver.num_nodes_needed(search, text.max_steps)
    self._new_tree = functools.partial(
      tree_lib.new_tree,
      num_nodes=num_nodes,
      num_candidates=search.num_candidates,
      max_step_tokens=text.max_step_tokens,
    )
    self._empty_store = functools.partial(
      step_cache.empty_store,
      model,
      num_blocks=num_nodes,
      num_candidates=search.num_candidates,
      max_prompt_tokens=text.max_prompt_tokens,
      max_step_tokens=text.max_step_tokens,
      max_steps=text.max_steps,
    )
    self._check_memory(num_trees, mesh)
    self._compile(expand_fn, num_trees, mesh)

  def _check_memory(self, num_trees: int, mesh: Mesh) -> None:
    """UserError if the trees and their store are larger than the memory."""
    state = jax.eval_shape(functools.partial(self._empty, num_trees))
    needed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    device = mesh.devices.flat[0]
    stats = device.memory_stats() or {}
    # CPU devices share what the machine has.
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if "bytes_limit" in stats:
      limit = stats["bytes_limit"] * mesh.shape["data"]
    if needed > limit:
      search = self._search
      raise UserError(
        f"search: {num_trees} trees of {state.num_nodes} nodes and their step "
        f"cache need {needed / 1e9:,.0f} GB, over the {limit / 1e9:,.0f} GB of "
        f"memory; lower search.beam_width ({search.beam_width}), "
        f"search.num_simulations ({search.num_simulations}), "
        f"search.num_lines ({search.num_lines}), search.num_candidates "
        f"({search.num_candidates}), or the batch size"
      )

  def _compile(self, expand_fn: ExpandFn, num_trees: int, mesh: Mesh) -> None:
    """Wraps the phases for the mesh."""
    trees, params = P("data"), P()
    store = jax.tree.map(
      lambda axis: P(*(None,) * axis, "data"),
      step_cache.tree_axes(
        jax.eval_shape(lambda: self._empty_store(num_trees=1))
      ),
    )
    state = SearchState(trees, store, trees, trees)
    how = expand_fn, self._search, self._max_steps

    def sharded(fn, in_specs, out_specs, donate=()):
      # Scalars are equal on all devices by construction, not by inference.
      mapped = jax.shard_map(
        fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
      )
      return jax.jit(mapped, donate_argnums=donate)

    self.seat = sharded(
      self._seat, (params, state, *(trees,) * 6), state, donate=1
    )
    self.take = sharded(_rows, (trees, trees), trees)
    self.play = sharded(
      lambda params, state, num_done: driver.play(
        params, state, *how, num_done
      ),
      (params, state, P()),
      state,
      donate=1,
    )
    self.expand = sharded(
      lambda params, state: driver.select_and_expand(params, state, *how),
      (params, state),
      (state, trees, trees),
      donate=1,
    )
    self.insert = sharded(self._insert, (state, trees, trees), state, donate=0)
    self.empty = jax.jit(
      functools.partial(self._empty, num_trees),
      out_shardings=jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        state,
        is_leaf=lambda x: isinstance(x, P),
      ),
    )
    self.by_tree = NamedSharding(mesh, trees)
    self.replicated = NamedSharding(mesh, params)

  def _empty(self, num_trees: int) -> SearchState:
    tree = self._new_tree(
      problem_value_B=jnp.zeros(num_trees),
      prompt_length_B=jnp.zeros(num_trees, jnp.int32),
    )
    return SearchState(
      tree=tree.replace(is_done=jnp.ones(num_trees, bool)),
      store=self._empty_store(num_trees=num_trees),
      round=jnp.zeros(num_trees, jnp.int32),
      rng_key=jax.random.split(jax.random.key(0), num_trees),
    )

  def _seat(
    self, params, state, row_G, prompt_GP, length_G, before_G, seed_G, budget_G
  ) -> SearchState:
    model = nnx.merge(self._graphdef, params)
    store = step_cache.prefill(model, state.store, prompt_GP, length_G, row_G)
    heads = model.heads(store.prompt_hidden.at[row_G].get(mode="clip"))
    tree = self._new_tree(
      problem_value_B=jax.nn.sigmoid(heads.value_logit),
      prompt_length_B=length_G,
      token_budget=budget_G,
      steps_before=before_G,
    )
    keys_G = jax.vmap(jax.random.key)(seed_G)
    new = SearchState(tree, (), jnp.zeros_like(row_G), keys_G)
    new = driver.begin_move(new, self._search, self._max_steps)

    def put(old, new):
      return old.at[row_G].set(new, mode="drop")

    return state._replace(
      tree=jax.tree.map(put, state.tree, new.tree),
      store=store,
      rng_key=put(state.rng_key, keys_G),
    )

  def _insert(self, state, expansion, judgement) -> SearchState:
    state = driver.insert_and_backup(
      state, expansion, judgement, self._search, self._max_steps
    )
    return driver.advance(state, self._search, self._max_steps)
