"""Times at a chip's peaks, against closed forms."""

import jax
import jax.numpy as jnp
import pytest

from qstar_jax.distributed import chips, hlo, hlo_program, roofline

V5E = chips.parse_topology("v5e:4x4")
# Of 16 chips, row by row.
GRID = [(x, y, 0) for x in range(4) for y in range(4)]


def _collective(kind, num_bytes, groups):
  return hlo.Collective(kind, frozenset(), num_bytes, "c", "main", 1, groups)


def test_a_product_takes_the_longer_of_its_work_and_its_bytes():
  m = 512
  shape = jax.ShapeDtypeStruct((m, m), jnp.float32)
  compiled = jax.jit(lambda x, y: x @ y).lower(shape, shape).compile()
  program = hlo_program.parse(compiled.as_text())
  found = roofline.estimate(program, {"data": 1}, [(0, 0, 0)], V5E)
  compute = 2 * m**3 / V5E.chip.peak_flops
  memory = 3 * 4 * m**2 / V5E.chip.hbm_bandwidth
  assert found.compute_seconds == pytest.approx(compute)
  assert found.memory_seconds == pytest.approx(memory)
  assert found.seconds == pytest.approx(memory)
  assert (found.binding, found.collective_share) == ("memory", 0.0)
  assert not found.traffic and not found.unbounded_loops


def test_a_gather_takes_what_its_links_carry():
  link, hop = V5E.chip.link_bandwidth, 1e-6
  rows = [[4 * i + j for j in range(4)] for i in range(4)]
  along_one = _collective("all-gather", 4_000_000, rows)
  seconds = roofline.collective_seconds(along_one, GRID, V5E)
  assert seconds == pytest.approx(3_000_000 / link + 3 * hop)
  along_both = _collective("all-gather", 4_000_000, [[*range(16)]])
  seconds = roofline.collective_seconds(along_both, GRID, V5E)
  assert seconds == pytest.approx(3_750_000 / (2 * link) + 6 * hop)


def test_a_group_of_one_takes_no_time():
  alone = _collective("all-reduce", 4_000_000, [[i] for i in range(16)])
  assert roofline.collective_seconds(alone, GRID, V5E) == 0.0


def test_traffic_is_summed_by_kind_and_axes():
  text = """\
HloModule m, num_partitions=16

ENTRY %main (x: f32[1000]) -> f32[1000] {
  %x = f32[1000]{0} parameter(0)
  %a = f32[1000]{0} all-reduce(%x), replica_groups=[4,4]<=[16], to_apply=%add
  %b = f32[1000]{0} all-reduce(%a), replica_groups=[4,4]<=[16], to_apply=%add
  ROOT %c = f32[1000]{0} all-reduce(%b), replica_groups=[1,16]<=[16]
}
"""
  program = hlo_program.parse(text)
  shape = {"data": 4, "fsdp": 4}
  found = roofline.estimate(program, shape, GRID, V5E)
  times = {(x.kind, x.axes): x.times for x in found.traffic}
  assert times == {("all-reduce", "fsdp"): 2, ("all-reduce", "data,fsdp"): 1}
  assert found.binding == "interconnect"
  assert 0.99 < found.collective_share <= 1.0
