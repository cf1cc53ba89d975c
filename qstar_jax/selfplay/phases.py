"""The device side of play: the phases of a table of trees, compiled.

A *table* is the state of B searches. A tree that is done makes room for another
problem while its neighbours go on.

The trees are split by hand over the mesh's axes data and fsdp, so that each
device runs as many rounds as its own trees need and asks no other; over model,
where the devices of a group share trees and split the network, by the compiler.
"""

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from qstar_jax.config import ModelConfig, SearchConfig, TextConfig
from qstar_jax.distributed import rules
from qstar_jax.errors import UserError
from qstar_jax.model import partitioning, step_cache
from qstar_jax.search import driver
from qstar_jax.search import tree as tree_lib
from qstar_jax.search.driver import SearchState
from qstar_jax.search.expand import ExpandFn
from qstar_jax.search.tree import SearchTree

# Logical axes, see `distributed.rules`.
Axes = tuple[str | None, ...]


def _rows(tree: SearchTree, row_G: chex.Array) -> SearchTree:
  """Some trees; a row past the end is any."""
  return jax.tree.map(lambda x: x.at[row_G].get(mode="clip"), tree)


def _state_by(by_axes: Callable[[Axes], Any]) -> SearchState:
  """A state's fields, by the logical axes of their arrays."""
  trees = by_axes(("trees",))
  store = step_cache.StepStore(*map(by_axes, partitioning.STORE_AXES))
  return SearchState(trees, store, trees, trees)


class Phases:
  """Compiled functions of a table; every shard has trees of its own.

  A shard is a device, or the group of them that splits the network over model.
  `row_G` lists trees of each shard by their places on it: int32 [S * G], G for
  each of S shards; what is past the end is no tree. States are consumed, params
  are in the actor's layout.

  Attributes:
    num_tables: that a `Player` keeps: while the host judges the trees of one,
      the device works on the other's.
    state: `jax.ShapeDtypeStruct`s of a table's state with their shardings, by
      which the functions can be compiled where there are no such devices.
    empty: () -> state, a table at which all trees are done.
    seat: (params, state, row_G, prompt_GP, length_G, before_G, seed_G,
      budget_G) -> state, with new trees at their first move in the place of
      others; before_G are steps that the prompts end with.
    take: (tree, row_G) -> trees [S * G].
    play: (params, state, num_done) -> state; stops when as many trees of each
      shard are done. Outcomes come from the network.
    expand: (params, state) -> (state, leaf_BW, expansion), half a round.
    insert: (state, expansion, judgement) -> state, the other half; moves that
      are over are committed.
    by_tree: sharding of arrays whose first axis is B, or S * G.
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
    """Compiles nothing yet; see `Player` for the arguments.

    Raises:
      UserError: the network does not divide by the mesh.
    """
    if errors := partitioning.misfits(model, mesh.shape):
      raise UserError("\n".join(errors))
    self._graphdef = graphdef
    self._search, self._max_steps = search, text.max_steps
    self.num_tables = 2 if search.terminal_value == "outcome" else 1
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
    self._compile(expand_fn, num_trees, mesh)

  def num_bytes(self) -> int:
    """Bytes of a table's state on one device."""
    return sum(
      math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
      for x in jax.tree.leaves(self.state)
    )

  def check_memory(self) -> None:
    """UserError if the tables are larger than the memory of their devices."""
    mesh = self.by_tree.mesh
    stats = mesh.devices.flat[0].memory_stats() or {}
    # CPU devices share what the machine has.
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / mesh.size
    limit = stats.get("bytes_limit", limit) * mesh.size
    needed = self.num_tables * self.num_bytes() * mesh.size
    if needed > limit:
      search = self._search
      raise UserError(
        f"search: {self.num_tables} x {self.state.tree.is_done.size} trees of "
        f"{self.state.num_nodes} nodes and their step "
        f"cache need {needed / 1e9:,.0f} GB, over the {limit / 1e9:,.0f} GB of "
        f"memory; lower search.beam_width ({search.beam_width}), "
        f"search.num_simulations ({search.num_simulations}), "
        f"search.num_lines ({search.num_lines}), search.num_candidates "
        f"({search.num_candidates}), or the batch size"
      )

  def _compile(self, expand_fn: ExpandFn, num_trees: int, mesh: Mesh) -> None:
    """Wraps the phases for the mesh."""
    trees, everywhere = rules.spec(("trees",), rules.BY_HAND), P()
    state = _state_by(lambda axes: rules.spec(axes, rules.BY_HAND))
    lies = _state_by(lambda axes: rules.sharding(axes, rules.ACTOR, mesh))
    self.by_tree = rules.sharding(("trees",), rules.ACTOR, mesh)
    how = expand_fn, self._search, self._max_steps

    def sharded(fn, in_specs, out_specs, out_shardings, donate=()):
      mapped = jax.shard_map(
        fn,
        mesh=mesh,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names={*rules.BATCH_AXES},
        # Scalars are equal on all devices by construction, not by inference.
        check_vma=False,
      )
      return jax.jit(mapped, out_shardings=out_shardings, donate_argnums=donate)

    self.seat = sharded(
      self._seat, (everywhere, state, *(trees,) * 6), state, lies, donate=1
    )
    self.take = sharded(_rows, (trees, trees), trees, self.by_tree)
    self.play = sharded(
      lambda params, state, num_done: driver.play(
        params, state, *how, num_done
      ),
      (everywhere, state, everywhere),
      state,
      lies,
      donate=1,
    )
    self.expand = sharded(
      lambda params, state: driver.select_and_expand(params, state, *how),
      (everywhere, state),
      (state, trees, trees),
      (lies, self.by_tree, self.by_tree),
      donate=1,
    )
    self.insert = sharded(
      self._insert, (state, trees, trees), state, lies, donate=0
    )
    empty = functools.partial(self._empty, num_trees)
    self.empty = jax.jit(empty, out_shardings=lies)
    shapes = jax.eval_shape(empty)
    self.state = jax.tree.map(
      lambda x, sharding: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=sharding
      ),
      shapes,
      jax.tree.broadcast(lies, shapes),
    )

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
