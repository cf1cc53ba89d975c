"""What TPU chips can do, and the names of slices of them.

Sources. Peak, HBM size and bandwidth: the pages of each generation at
docs.cloud.google.com/tpu/docs. Links: "How to Scale Your Model" (Austin et al.
2025, jax-ml.github.io/scaling-book), chapter on TPUs; they have a bidirectional
link to each neighbour. HBM that programs may use: the limit that libtpu 0.0.42
names when it refuses a program that is too large.
"""

import dataclasses
import math
import re

from qstar_jax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """A generation of TPUs. Figures are those of a JAX device.

  A device is a chip, but for TPU7x, where it is one of a chip's two halves.

  Attributes:
    name: first part of a topology's name.
    peak_flops: bfloat16 multiplications and additions a second.
    hbm_gib: memory that programs may use.
    hbm_bandwidth: bytes a second.
    link_bandwidth: bytes a second to one neighbour, in one direction; both
      directions may be used at once.
    dimensions: of the torus that a pod is.
    wrap_multiple: an axis of a slice is a ring, and no line, where its length
      is a multiple of this.
    devices_per_chip: JAX devices.
    libtpu_options: for `get_topology_desc`.
  """

  name: str
  peak_flops: float
  hbm_gib: float
  hbm_bandwidth: float
  link_bandwidth: float
  dimensions: int
  wrap_multiple: int
  devices_per_chip: int = 1
  libtpu_options: tuple[tuple[str, str], ...] = ()


# One device of two cores, as on real slices.
_MEGACORE = (("chip_config_name", "megacore"),)

CHIPS = {
  chip.name: chip
  for chip in (
    Chip("v4", 275e12, 30.75, 1.228e12, 45e9, 3, 4, libtpu_options=_MEGACORE),
    Chip("v5e", 197e12, 15.75, 0.819e12, 45e9, 2, 16),
    Chip("v5p", 459e12, 95.74, 2.765e12, 90e9, 3, 4, libtpu_options=_MEGACORE),
    Chip("v6e", 918e12, 31.25, 1.640e12, 90e9, 2, 16),
    Chip("tpu7x", 1153e12, 94.75, 3.69e12, 90e9, 3, 4, devices_per_chip=2),
  )
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice.

  Attributes:
    chip: its generation.
    shape: chips along each axis of the torus.
  """

  chip: Chip
  shape: tuple[int, ...]

  @property
  def name(self) -> str:
    """As in `v5e:4x4`."""
    return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

  @property
  def num_chips(self) -> int:
    """In the slice."""
    return math.prod(self.shape)

  @property
  def num_devices(self) -> int:
    """JAX devices of the slice."""
    return self.num_chips * self.chip.devices_per_chip

  def bandwidth(self, extents: tuple[int, ...]) -> float:
    """Bytes a second that each device of a group sends and receives at best.

    Every axis that the group extends along carries a part of the data, in both
    directions where it is a ring.

    Args:
      extents: chips of the group along each axis of the torus.
    """
    links = sum(
      2 if self._is_ring(axis, extent) else 1
      for axis, extent in enumerate(extents)
      if extent > 1
    )
    # The halves of a chip are joined by more than any neighbours.
    links = links or 2 * self.chip.dimensions
    return links * self.chip.link_bandwidth / self.chip.devices_per_chip

  def num_hops(self, extents: tuple[int, ...]) -> int:
    """Links that data passes on its way to the last of a group."""
    return sum(
      extent // 2 if self._is_ring(axis, extent) else extent - 1
      for axis, extent in enumerate(extents)
    )

  def _is_ring(self, axis: int, extent: int) -> bool:
    """Whether a group that extends so far along an axis closes to a ring."""
    is_whole = extent == self.shape[axis]
    return is_whole and extent % self.chip.wrap_multiple == 0


def parse_topology(name: str) -> Topology:
  """The topology of a name such as `v5e:4x4` or `v5p:4x4x4`.

  Raises:
    UserError: no such generation, or no shape of one of its slices.
  """
  generation, _, shape = name.partition(":")
  chip = CHIPS.get(generation)
  if chip is None:
    raise UserError(
      f"topology {name!r}: must be GENERATION:SHAPE with one of "
      f"{', '.join(CHIPS)}, e.g. v5e:4x4"
    )
  axes = "x".join(["4"] * chip.dimensions)
  if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
    raise UserError(
      f"topology {name!r}: the shape must be numbers of chips along each axis, "
      f"e.g. {generation}:{axes}"
    )
  sizes = tuple(int(size) for size in shape.split("x"))
  if len(sizes) != chip.dimensions:
    raise UserError(
      f"topology {name!r}: a slice of {generation} has {chip.dimensions} axes, "
      f"not {len(sizes)}, e.g. {generation}:{axes}"
    )
  return Topology(chip, sizes)
