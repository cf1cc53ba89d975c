"""How long a compiled program takes on a topology, at least.

Every operation takes as long as its matrix products at the chip's peak, or its
bytes at the bandwidth of memory, whichever is longer; a collective what its
bytes take over the links that its group has, and a hop's delay for each link on
the way. Operations come one after another: what the compiler overlaps, such as
a gather with a product, is faster than that, and what does not reach the peak
is slower. `compute_seconds` alone is the bound that no schedule can pass.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from qstar_jax.distributed import hlo, hlo_costs, hlo_loops
from qstar_jax.distributed.chips import Topology
from qstar_jax.distributed.hlo_program import Program

# From one chip to the next: "How to Scale Your Model" (see `chips`).
_HOP_SECONDS = 1e-6


class Traffic(NamedTuple):
  """The collectives of one kind over the same axes of the mesh.

  Attributes:
    kind: e.g. `all-gather`.
    axes: of the mesh, joined by commas.
    times: that they run, in one run of the program.
    num_bytes: of their results on one device, in all.
    wire_bytes: sent by one device, in all.
    seconds: that they take.
  """

  kind: str
  axes: str
  times: int
  num_bytes: float
  wire_bytes: float
  seconds: float


class Estimate(NamedTuple):
  """Of one run of a program, on one device.

  Attributes:
    flops: of its matrix products.
    hbm_bytes: read and written.
    compute_seconds: of the products at the chip's peak.
    memory_seconds: of the bytes at the bandwidth of memory.
    operation_seconds: of all operations one after another, each taking the
      longer of the two.
    collective_seconds: of all collectives one after another.
    traffic: the collectives.
    unbounded_loops: that are counted as if they ran once.
  """

  flops: float
  hbm_bytes: float
  compute_seconds: float
  memory_seconds: float
  operation_seconds: float
  collective_seconds: float
  traffic: list[Traffic]
  unbounded_loops: list[str]

  @property
  def seconds(self) -> float:
    """Of operations and collectives, with nothing overlapped."""
    return self.operation_seconds + self.collective_seconds

  @property
  def collective_share(self) -> float:
    """Of `seconds`, in [0, 1]."""
    return self.collective_seconds / self.seconds if self.seconds else 0.0

  @property
  def binding(self) -> str:
    """What it takes longest for: `compute`, `memory` or `interconnect`."""
    seconds = {
      "compute": self.compute_seconds,
      "memory": self.memory_seconds,
      "interconnect": self.collective_seconds,
    }
    return max(seconds, key=seconds.get)


def estimate(
  program: Program,
  mesh_shape: Mapping[str, int],
  places: Sequence[tuple[int, ...]],
  topology: Topology,
) -> Estimate:
  """Estimates one run of a program.

  Args:
    program: compiled for all devices of a mesh.
    mesh_shape: sizes of the mesh's axes by name, in their order.
    places: of the devices' chips in the torus, row by row of the mesh.
    topology: of the chips.
  """
  chip = topology.chip
  operations = hlo_costs.operations(program)
  flops = sum(x.times * x.flops for x in operations)
  hbm_bytes = sum(x.times * x.hbm_bytes for x in operations)
  traffic = _traffic(program, mesh_shape, places, topology)
  return Estimate(
    flops=flops,
    hbm_bytes=hbm_bytes,
    compute_seconds=flops / chip.peak_flops,
    memory_seconds=hbm_bytes / chip.hbm_bandwidth,
    operation_seconds=sum(
      x.times * max(x.flops / chip.peak_flops, x.hbm_bytes / chip.hbm_bandwidth)
      for x in operations
    ),
    collective_seconds=sum(x.seconds for x in traffic),
    traffic=traffic,
    unbounded_loops=hlo_loops.unbounded_loops(program),
  )


def _traffic(
  program: Program,
  mesh_shape: Mapping[str, int],
  places: Sequence[tuple[int, ...]],
  topology: Topology,
) -> list[Traffic]:
  total: dict[tuple[str, str], list[float]] = collections.defaultdict(
    lambda: [0, 0.0, 0.0, 0.0]
  )
  for x in hlo.collectives(program, mesh_shape):
    axes = ",".join(axis for axis in mesh_shape if axis in x.axes)
    seconds = x.times * collective_seconds(x, places, topology)
    amounts = x.times, x.times * x.num_bytes, x.times * x.wire_bytes, seconds
    for i, amount in enumerate(amounts):
      total[x.kind, axes][i] += amount
  found = [Traffic(*key, *amounts) for key, amounts in total.items()]
  return sorted(found, key=lambda x: -x.seconds)


def collective_seconds(
  collective: hlo.Collective,
  places: Sequence[tuple[int, ...]],
  topology: Topology,
) -> float:
  """Of one run of a collective, in its slowest group.

  Args:
    collective: of a program.
    places: of the partitions' chips in the torus.
    topology: of the chips.
  """

  def of_group(group: list[int]) -> float:
    extents = tuple(
      len({places[partition][axis] for partition in group})
      for axis in range(len(topology.shape))
    )
    hops = topology.num_hops(extents)
    hops *= 2 if collective.kind == "all-reduce" else 1
    bandwidth = topology.bandwidth(extents)
    return collective.wire_bytes / bandwidth + hops * _HOP_SECONDS

  if collective.group_size == 1:
    return 0.0
  return max(map(of_group, collective.groups))
