"""The store is written in place: compiled temporaries do not grow with N."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qstar_jax.config import ModelConfig, SearchConfig
from qstar_jax.model import step_cache
from qstar_jax.model.transformer import init_model
from qstar_jax.search import driver
from qstar_jax.search import tree as tree_lib
from qstar_jax.selfplay.network_expand import make_expand_fn

B, A, T, P, D, V = 4, 3, 5, 6, 4, 23


def new_state(model, num_nodes, max_steps):
  """A state of which only the shapes are looked at."""
  return driver.SearchState(
    tree=tree_lib.new_tree(
      num_nodes=num_nodes,
      num_candidates=A,
      max_step_tokens=T,
      problem_value_B=jnp.zeros((B,)),
      prompt_length_B=jnp.full((B,), P),
    ),
    store=step_cache.empty_store(
      model,
      num_trees=B,
      num_blocks=num_nodes,
      num_candidates=A,
      max_prompt_tokens=P,
      max_step_tokens=T,
      max_steps=max_steps,
    ),
    round=jnp.zeros((B,), jnp.int32),
    rng_key=jax.random.split(jax.random.key(0), B),
  )


def compiled_memory(
  search_fn,
  num_nodes=None,
  *,
  scan_layers=False,
  leaves_per_round=1,
  max_steps=D,
  compact=False,
):
  """Of a search function with donated state, and the size of that state."""
  model = ModelConfig(
    num_layers=1,
    model_dim=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    ffn_dim=24,
    scan_layers=scan_layers,
  )
  config = SearchConfig(
    num_candidates=A,
    num_simulations=8,
    leaves_per_round=leaves_per_round,
    compact=compact,
  )
  if num_nodes is None:
    num_nodes = driver.num_nodes_needed(config, max_steps)
  graphdef, params = init_model(model, V, seed=0)
  expand_fn = make_expand_fn(
    graphdef, ends_step=np.arange(V) == 1, end_token=1, temperature=1.0
  )

  shapes = jax.eval_shape(lambda: new_state(model, num_nodes, max_steps))
  program = jax.jit(
    lambda params, state: search_fn(
      params, state, expand_fn, config, max_steps
    ),
    donate_argnums=1,
  )
  memory = program.lower(params, shapes).compile().memory_analysis()
  num_bytes = sum(
    x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes.store)
  )
  return memory, num_bytes


@pytest.mark.parametrize(
  ("search_fn", "scan_layers", "leaves_per_round"),
  [
    (driver.select_and_expand, False, 1),
    (driver.select_and_expand, False, 2),
    (driver.select_and_expand, True, 1),
    (driver.search_move, False, 1),
  ],
)
def test_temporaries_do_not_grow(search_fn, scan_layers, leaves_per_round):
  sizes = {"scan_layers": scan_layers, "leaves_per_round": leaves_per_round}
  small, small_store = compiled_memory(search_fn, 32, **sizes)
  large, large_store = compiled_memory(search_fn, 128, **sizes)
  growth = large.temp_size_in_bytes - small.temp_size_in_bytes
  # A copy of the keys would be a third of the store.
  assert growth < 0.05 * (large_store - small_store)
  # The donated state is the output, in place.
  assert large.alias_size_in_bytes > large_store


def test_compaction_saves_memory():
  """There is room for three moves of twelve, and for moving them."""
  sizes = [
    compiled_memory(driver.play, max_steps=12, compact=compact)
    for compact in (False, True)
  ]
  (whole, whole_store), (small, small_store) = sizes
  assert small_store < 0.4 * whole_store
  total, small_total = (
    memory.argument_size_in_bytes + memory.temp_size_in_bytes
    for memory in (whole, small)
  )
  assert small_total < 0.65 * total
