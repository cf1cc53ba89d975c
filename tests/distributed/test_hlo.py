"""Collectives as they stand in HLO text, made up and compiled."""

import itertools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from qstar_jax.config import MeshConfig
from qstar_jax.distributed import hlo
from qstar_jax.distributed.mesh import make_mesh

_SHAPE = {"data": 2, "fsdp": 2, "model": 2}
_TEXT = """\
HloModule made_up, is_scheduled=true

%body.7 (arg: (s32[], f32[4,2])) -> (s32[], f32[4,2]) {
  %g = f32[8,2]{1,0:T(8,128)} all-gather(%x), channel_id=1, \
replica_groups=[4,2]<=[8], dimensions={0}, use_global_device_ids=true
  %s = (bf16[4]{0}, bf16[8]{0}) all-gather-start(%x), channel_id=2, \
replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}
  %d = bf16[8]{0} all-gather-done(%s)
}

ENTRY %main.3_spmd (p: f32[2]) -> f32[2] {
  %r = (f32[3]{0}, pred[5]{0}) all-reduce(%a, %b), channel_id=3, \
replica_groups={{0,2},{1,3},{4,6},{5,7}}, to_apply=%add
  %c = (s32[], f32[4,2]) call(%a), to_apply=%body.7
  %again = (s32[], f32[4,2]) call(%a), to_apply=%body.7
  %all = f32[] all-reduce(%a), replica_groups={}, to_apply=%add
  %p = f32[6]{0} collective-permute(%a), channel_id=4, \
source_target_pairs={{0,3},{3,0}}
  ROOT %alone = f32[2]{0} reduce-scatter(%a), channel_id=5, \
replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
}
"""


_ONE = """\
ENTRY %main (p: f32[3]) -> f32[3] {{
  ROOT %r = f32[3] all-reduce(%p), replica_groups={groups}, to_apply=%add
}}
"""


def test_every_form_of_groups_is_read():
  all_found = hlo.collectives(_TEXT, _SHAPE)
  # Where a computation runs twice, so do its collectives.
  assert [c.name for c in all_found].count("g") == 2
  found = {c.name: c for c in all_found}
  expected = {
    "g": ("all-gather", {"model"}, 64, "body.7"),
    "s": ("all-gather", {"data"}, 16, "body.7"),
    "r": ("all-reduce", {"fsdp"}, 17, "main.3_spmd"),
    "all": ("all-reduce", {"data", "fsdp", "model"}, 4, "main.3_spmd"),
    "p": ("collective-permute", {"fsdp", "model"}, 24, "main.3_spmd"),
    "alone": ("reduce-scatter", set(), 8, "main.3_spmd"),
  }
  assert found.keys() == expected.keys()
  for name, (kind, axes, num_bytes, computation) in expected.items():
    assert found[name][:6] == (kind, axes, num_bytes, name, computation, 1)


@pytest.mark.parametrize(
  ("groups", "axes"),
  [
    ("mesh['x'=4,'y'=1,'z'=2] {'x'}", {"data", "fsdp"}),
    ("mesh['x'=4,'y'=1,'z'=2] {'z'}", {"model"}),
    ("mesh['x'=4,'y'=2] {'x':(1)2}", {"data"}),
    ("mesh['x'=4,'y'=2] {'x':(2)2}", {"fsdp"}),
    ("mesh['x'=4,'y'=2] {'x':(2)2,'y'}", {"fsdp", "model"}),
    ("mesh['x'=2,'y'=2,'z'=2], device_ids=([2,2,2]T(2,1,0)) {'x'}", {"model"}),
    ("mesh['x'=2,'y'=4], device_ids=([2,4]T(1,0)) {'x'}", {"fsdp"}),
    ("mesh['x'=2,'y'=4], device_ids=(0,2,4,6,1,3,5,7) {'x'}", {"model"}),
  ],
)
def test_groups_along_the_axes_of_another_mesh(groups, axes):
  text = _ONE.format(groups=groups)
  (found,) = hlo.collectives(text, _SHAPE)
  assert found.axes == axes


def test_groups_of_an_unknown_form_are_refused():
  text = _ONE.format(groups="@mesh")
  with pytest.raises(ValueError, match="@mesh"):
    hlo.collectives(text, _SHAPE)


@pytest.mark.parametrize(
  "axes",
  [
    axes
    for size in range(4)
    for axes in itertools.combinations(("data", "fsdp", "model"), size)
  ],
)
def test_a_compiled_sum_crosses_the_axes_that_it_is_over(axes):
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2))
  in_spec = P(("data", "fsdp", "model"))
  out_spec = P(tuple(name for name in mesh.shape if name not in axes) or None)

  def add(x):
    return jax.lax.psum(x, axes) if axes else x

  fn = jax.jit(
    jax.shard_map(add, mesh=mesh, in_specs=in_spec, out_specs=out_spec)
  )
  text = fn.lower(jnp.zeros((16, 3))).compile().as_text()
  found = hlo.collectives(text, mesh.shape)
  assert {c.axes for c in found} == ({frozenset(axes)} if axes else set())
  assert sum(c.num_bytes for c in found) == (2 * 3 * 4 if axes else 0)
