"""Publication: what is new crosses, once, and lives by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from qstar_jax.config import MeshConfig
from qstar_jax.distributed import hlo, publication
from qstar_jax.distributed.mesh import make_mesh

_SPECS = {
  "matrix": (P("fsdp", "model"), P(None, "model")),
  "tied": (P("model", "fsdp"), P("model")),
  "vector": (P(), P()),
}
_SHAPES = {"matrix": (8, 6), "tied": (4, 8), "vector": (5,)}


@pytest.fixture(scope="module")
def mesh():
  return make_mesh(MeshConfig(data=2, fsdp=2, model=2))


def _layouts(mesh):
  return (
    {name: NamedSharding(mesh, specs[i]) for name, specs in _SPECS.items()}
    for i in (0, 1)
  )


def _params(mesh, seed):
  rng = np.random.default_rng(seed)
  source, _ = _layouts(mesh)
  return {
    name: jax.device_put(rng.random(shape, np.float32), source[name])
    for name, shape in _SHAPES.items()
  }


def test_each_byte_crosses_once(mesh):
  source, target = _layouts(mesh)
  publish = publication.make_publish(source, target)
  params = _params(mesh, 0)
  published = publish(params)
  for name, x in published.items():
    assert x.sharding == target[name]
    np.testing.assert_array_equal(x, params[name])
  found = hlo.collectives(publish.lower(params).compile().as_text(), mesh.shape)
  assert {(c.kind, c.axes) for c in found} == {
    ("all-gather", frozenset({"fsdp"}))
  }
  # What a device gets, its own part of it included; the vector it has.
  assert sum(c.num_bytes for c in found) == 4 * (8 * 3 + 2 * 8)


def test_what_is_published_outlives_the_learners_own(mesh):
  alone = make_mesh(MeshConfig(), mesh.devices.flat[:1])
  lies = NamedSharding(alone, P())
  publish = publication.make_publish(lies, lies)
  x = jax.device_put(jnp.arange(4.0), lies)
  published = publish(x)
  jax.jit(lambda x: x + 1, donate_argnums=0)(x)
  assert x.is_deleted()
  np.testing.assert_array_equal(published, np.arange(4))


def test_the_same_version_is_published_once():
  calls = []

  def publish(params):
    calls.append(params)
    return len(calls)

  publisher = publication.Publisher(publish)
  one, other = jnp.zeros(3), jnp.zeros(3)
  # In other containers, of which one is changed in place.
  params = {"a": one, "b": other}
  assert [publisher(params), publisher(dict(params))] == [1, 1]
  params["b"] = one
  assert [publisher(params), publisher(params)] == [2, 2]
  assert publisher({"a": one}) == 3
