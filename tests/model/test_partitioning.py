"""The network on a mesh: every part has a place, and the numbers are one's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qstar_jax.config import MeshConfig, ModelConfig
from qstar_jax.distributed import hlo, rules
from qstar_jax.distributed.mesh import make_mesh
from qstar_jax.errors import UserError
from qstar_jax.model import partitioning, step_cache
from qstar_jax.model.transformer import abstract_model, init_model

# Padded to 24.
_V = 23


def _config(vocabulary_multiple=2, **fields):
  return ModelConfig(
    num_layers=2,
    model_dim=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_dim=24,
    vocabulary_multiple=vocabulary_multiple,
    **fields,
  )


@pytest.fixture(scope="module")
def mesh():
  return make_mesh(MeshConfig(data=2, fsdp=2, model=2))


def _names(params):
  return {".".join(path) for path, _ in nnx.to_flat_state(params)}


def test_every_parameter_has_a_rule_and_every_rule_a_parameter(mesh):
  _, params = init_model(_config(token_q=True), _V, seed=0)
  assert _names(params) == set(partitioning._PARAMETER_AXES)
  layouts = partitioning.shardings(params, rules.LEARNER, mesh)
  matrices = [
    (value.shape, lies)
    for value, lies in zip(
      jax.tree.leaves(params["layers"]),
      jax.tree.leaves(layouts["layers"]),
      strict=True,
    )
    if value.ndim == 3
  ]
  assert len(matrices) == 7
  for shape, lies in matrices:
    # An equal part of each matrix for each of fsdp * model.
    assert 4 * np.prod(lies.shard_shape(shape)) == np.prod(shape)


def test_a_parameter_without_a_rule_is_an_error(mesh):
  params = nnx.State({"new_head": {"kernel": nnx.Param(jnp.zeros((4, 1)))}})
  with pytest.raises(ValueError, match=r"new_head.*has no logical axes"):
    partitioning.shardings(params, rules.LEARNER, mesh)


def test_every_array_of_the_step_cache_has_a_rule():
  b, n, k = 4, 3, 2
  store = step_cache.empty_store(
    _config(),
    num_trees=b,
    num_blocks=n,
    num_candidates=5,
    max_prompt_tokens=7,
    max_step_tokens=6,
    max_steps=9,
  )
  size = {"trees": b, "kv_heads": k}
  for name, axes in partitioning.STORE_AXES._asdict().items():
    for x in jax.tree.leaves(getattr(store, name)):
      for place, axis in enumerate(axes):
        assert x.shape[place] == size.get(axis, n), name
      assert ("kv_heads" in axes) == (x.ndim >= 4 and x.shape[-1] == 8), name


def test_what_does_not_divide_is_told_with_what_would(mesh):
  shape = {"data": 1, "fsdp": 5, "model": 3}
  assert partitioning.misfits(_config(), shape) == [
    "model.model_dim is 16: must be divisible by mesh.fsdp = 5; use 15 or 20, "
    "or set mesh.fsdp to 4 or 8",
    "model.num_heads is 4: must be divisible by mesh.model = 3; use 3 or 6, or "
    "set mesh.model to 2 or 4",
    "model.num_kv_heads is 2: must be divisible by mesh.model = 3; use 3, or "
    "set mesh.model to 2",
    "model.vocabulary_multiple is 2: must be divisible by mesh.model = 3; use "
    "3, or set mesh.model to 2",
  ]
  assert partitioning.misfits(_config(), mesh.shape) == []
  assert partitioning.misfits(_config(1), mesh.shape) == [
    "model.vocabulary_multiple is 1: must be divisible by mesh.model = 2; use "
    "2, or set mesh.model to 1"
  ]
  _, params = abstract_model(_config(1), 25)
  with pytest.raises(UserError) as caught:
    partitioning.shardings(params, rules.ACTOR, mesh)
  assert str(caught.value) == (
    "the network has 25 of vocabulary: must be divisible by mesh.model = 2; "
    "use 24 or 26, or set mesh.model to 1 or 5"
  )


def test_shapes_say_what_a_network_is():
  for config in (_config(), _config(token_q=True)):
    graphdef, params = init_model(config, _V, seed=0)
    abstract, shapes = abstract_model(config, _V)
    assert abstract == graphdef and hash(abstract) == hash(graphdef)
    assert jax.tree.structure(shapes) == jax.tree.structure(params)
    for x, shape in zip(*map(jax.tree.leaves, (params, shapes)), strict=True):
      assert isinstance(shape, jax.ShapeDtypeStruct)
      assert (x.shape, x.dtype) == (shape.shape, shape.dtype)


@pytest.mark.parametrize("layout", [rules.LEARNER, rules.ACTOR])
@pytest.mark.parametrize("scan_layers", [False, True])
def test_eight_devices_compute_the_logits_of_one(mesh, layout, scan_layers):
  graphdef, params = init_model(_config(scan_layers=scan_layers), _V, seed=0)
  tokens_BT = np.random.default_rng(0).integers(0, _V, (8, 5))

  @jax.jit
  def logits(params, tokens_BT):
    model = nnx.merge(graphdef, params)
    return model.logits(model.forward(tokens_BT))

  split = partitioning.params_in(layout, params, mesh)
  lines = jax.device_put(tokens_BT, rules.sharding(("lines",), layout, mesh))
  one, eight = logits(params, tokens_BT), logits(split, lines)
  assert len(eight.sharding.device_set) == 8
  np.testing.assert_allclose(one, eight, rtol=0, atol=1e-5)
  assert np.ptp(one[..., :_V]) > 1


def test_publication_moves_each_byte_once(mesh):
  """Compiled from shapes alone."""
  _, params = init_model(_config(), _V, seed=0)
  source, target = (
    partitioning.shardings(params, layout, mesh)
    for layout in (rules.LEARNER, rules.ACTOR)
  )
  shapes = jax.tree.map(
    lambda x, lies: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies),
    params,
    source,
  )
  publish = partitioning.make_publish(shapes, mesh)
  text = publish.lower(shapes).compile().as_text()
  found = hlo.collectives(text, mesh.shape)
  assert {(c.kind, c.axes) for c in found} == {
    ("all-gather", frozenset({"fsdp"}))
  }
  needed = sum(
    4 * np.prod(there.shard_shape(x.shape))
    for x, here, there in zip(
      *map(jax.tree.leaves, (params, source, target)), strict=True
    )
    if here != there
  )
  assert sum(c.num_bytes for c in found) == needed > 0
