"""The phases of a table on a mesh of data, fsdp and model."""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qstar_jax.config import MeshConfig, ModelConfig, SearchConfig, TextConfig
from qstar_jax.distributed import hlo, rules
from qstar_jax.distributed.mesh import make_mesh
from qstar_jax.errors import UserError
from qstar_jax.model import partitioning
from qstar_jax.model.transformer import init_model
from qstar_jax.search import expand as expand_lib
from qstar_jax.search import testing
from qstar_jax.search.tree import NONE, UNLIMITED
from qstar_jax.selfplay.network_expand import make_expand_fn
from qstar_jax.selfplay.phases import Phases
from qstar_jax.selfplay.player import group_size

# Padded to 300, V is cut into groups for sampling that two devices do not
# divide.
A, B, V = 3, 16, 299
TEXT = TextConfig(max_prompt_tokens=B, max_step_tokens=2, max_steps=4)
SEARCH = SearchConfig(num_candidates=A, num_simulations=8, leaves_per_round=2)
MODEL = ModelConfig(
  num_layers=2,
  model_dim=16,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  ffn_dim=24,
  vocabulary_multiple=2,
)
MESHES = {"one": (1, 1, 1), "eight": (2, 2, 2)}


@functools.cache
def network():
  graphdef, params = init_model(MODEL, V, seed=0)
  rng = np.random.default_rng(0)
  return graphdef, jax.tree.map(
    lambda x: x + 0.3 * rng.standard_normal(x.shape, np.float32), params
  )


def made_up_expand(params, rng_key, store, leaf_BW, width_BW, block):
  """Hashes of the path instead of a network; the step cache keeps them."""
  as_hash = functools.partial(
    jax.lax.bitcast_convert_type, new_dtype=jnp.uint32
  )
  hashes = testing.HashStore(
    as_hash(store.prompt_length), as_hash(store.length)
  )
  expand = testing.make_hash_expand_fn(A, end_probability=0.2)
  expansion, hashes = expand(params, rng_key, hashes, leaf_BW, width_BW, block)
  states = jax.lax.bitcast_convert_type(hashes.states, jnp.int32)
  return expansion, store._replace(length=states)


def network_expand():
  return make_expand_fn(
    network()[0],
    ends_step=np.arange(V) % 3 == 1,
    end_token=1,
    temperature=1.0,
  )


def make_phases(mesh, expand_fn, num_trees=B, search=SEARCH):
  return Phases(
    network()[0],
    expand_fn,
    model=MODEL,
    text=TEXT,
    search=search,
    num_trees=num_trees,
    mesh=mesh,
  )


def mesh_of(name):
  num_devices = int(np.prod(MESHES[name]))
  return make_mesh(MeshConfig(*MESHES[name]), jax.devices()[:num_devices])


def played(name, expand_fn):
  """The trees of a whole table, played to the end."""
  mesh = mesh_of(name)
  phases = make_phases(mesh, expand_fn)
  params = partitioning.params_in(rules.ACTOR, network()[1], mesh)
  size = B // rules.num_shards(mesh.shape)
  rng = np.random.default_rng(0)
  state = phases.seat(
    params,
    phases.empty(),
    np.arange(B, dtype=np.int32) % size,
    rng.integers(3, V, (B, TEXT.max_prompt_tokens), np.int32),
    np.arange(1, B + 1, dtype=np.int32),
    np.zeros(B, np.int32),
    np.arange(B, dtype=np.uint32),
    np.full(B, UNLIMITED, np.int32),
  )
  state = phases.play(params, state, jnp.int32(size))
  for x, shape in zip(
    jax.tree.leaves(state), jax.tree.leaves(phases.state), strict=True
  ):
    assert x.sharding == shape.sharding
  tree = jax.device_get(state.tree)
  assert tree.is_done.all()
  return tree


@pytest.mark.parametrize("expands", ["made up", "network"])
def test_eight_devices_make_the_trees_of_one(expands):
  expand_fn = made_up_expand if expands == "made up" else network_expand()
  one, eight = (played(name, expand_fn) for name in MESHES)
  is_node = one.depth != NONE
  assert len(set(is_node.sum(axis=1))) > 1
  np.testing.assert_array_equal(is_node, eight.depth != NONE)
  for name in one:
    left, right = one[name], eight[name]
    if left.shape[:2] == is_node.shape:
      left, right = left[is_node], right[is_node]
    if left.dtype == np.float32:
      np.testing.assert_allclose(
        left, right, rtol=1e-5, atol=2e-5, err_msg=name
      )
    else:
      np.testing.assert_array_equal(left, right, err_msg=name)


@pytest.mark.parametrize("phase", ["seat", "play", "expand", "insert", "take"])
def test_no_phase_has_a_collective_over_data_or_fsdp(phase):
  """Compiled from shapes alone."""
  mesh = mesh_of("eight")
  phases = make_phases(mesh, network_expand())
  params = jax.tree.map(
    lambda x, lies: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies),
    network()[1],
    partitioning.shardings(network()[1], rules.ACTOR, mesh),
  )
  shards = rules.num_shards(mesh.shape)
  rows = shards * group_size(B // shards)

  def by_tree(*shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=phases.by_tree)

  expanded = jax.eval_shape(phases.expand, params, phases.state)
  judgement = jax.eval_shape(expand_lib.unjudged, expanded[2])
  args = {
    "seat": (
      *(params, phases.state, by_tree(rows)),
      by_tree(rows, TEXT.max_prompt_tokens),
      *(by_tree(rows), by_tree(rows)),
      by_tree(rows, dtype=jnp.uint32),
      by_tree(rows),
    ),
    "play": (params, phases.state, jax.ShapeDtypeStruct((), jnp.int32)),
    "expand": (params, phases.state),
    "insert": (phases.state, expanded[2], judgement),
    "take": (phases.state.tree, by_tree(rows)),
  }[phase]
  text = getattr(phases, phase).lower(*args).compile().as_text()
  found = hlo.collectives(text, mesh.shape)
  # Others may wait for all devices, of which some are in no loop any more.
  assert {c.kind for c in found} <= {"all-gather", "all-reduce"}
  crossed = {c.axes for c in found}
  assert crossed <= {frozenset({"model"})}
  # The network is split: its layers' sums cross model.
  assert bool(crossed) == (phase in ("seat", "play", "expand"))


def test_a_device_has_its_own_trees_and_its_own_heads():
  one, eight = (make_phases(mesh_of(name), made_up_expand) for name in MESHES)
  assert one.num_bytes() > 5 * eight.num_bytes()
  assert eight.num_bytes() > one.num_bytes() / 8
  one.check_memory()
  with pytest.raises(UserError, match=r"lower .*or the batch size"):
    make_phases(mesh_of("one"), made_up_expand, 10**9).check_memory()


def test_memory_is_that_of_all_tables():
  """Two, where the judge looks at each round."""
  mesh = mesh_of("one")
  total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  of_a_tree = make_phases(mesh, made_up_expand).num_bytes() / B
  num_trees = int(0.75 * total / of_a_tree)
  make_phases(mesh, made_up_expand, num_trees).check_memory()
  search = dataclasses.replace(SEARCH, terminal_value="outcome")
  two = make_phases(mesh, made_up_expand, num_trees, search)
  with pytest.raises(UserError, match=f"search: 2 x {num_trees} trees of"):
    two.check_memory()


def test_a_network_that_the_mesh_does_not_divide():
  mesh = make_mesh(MeshConfig(model=4))
  with pytest.raises(UserError, match=r"num_kv_heads is 2: .*mesh.model = 4"):
    make_phases(mesh, made_up_expand)
