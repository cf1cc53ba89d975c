"""The table of axes: what a layout splits, and over what."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from qstar_jax.config import MeshConfig
from qstar_jax.distributed import rules
from qstar_jax.distributed.mesh import make_mesh

_BATCH = ("data", "fsdp")


def test_the_layouts_part_ways_at_fsdp_alone():
  axes = ("trees", None, "embed", "ffn")
  assert rules.spec(axes, rules.LEARNER) == P(_BATCH, None, "fsdp", "model")
  assert rules.spec(axes, rules.ACTOR) == P(_BATCH, None, None, "model")
  assert rules.spec(axes, rules.BY_HAND) == P(_BATCH, None, None, None)
  for name in rules.LEARNER:
    left = set(rules.LEARNER[name]) - set(rules.ACTOR[name])
    assert left <= {"fsdp"}


def test_every_name_has_a_rule():
  with pytest.raises(KeyError, match="width"):
    rules.spec(("width",), rules.LEARNER)


def test_shards_of_a_batch():
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2))
  lies = rules.sharding(("lines", None), rules.LEARNER, mesh)
  assert lies.shard_shape((8, 3)) == (2, 3)
  assert rules.num_shards(mesh.shape) == 4


def test_arrays_are_constrained_where_there_is_a_mesh():
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2))

  def make(x):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return rules.constrain(x + 1, ("lines", "ffn"))

  # As the compiler would not have it by itself.
  x = jax.device_put(
    jnp.zeros((8, 4)), jax.NamedSharding(mesh, P(None, _BATCH))
  )
  assert jax.jit(make)(x).sharding.spec == P(_BATCH, "model")
  assert rules.constrain(x, ("lines", "ffn")) is x
