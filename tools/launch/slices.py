"""TPU slices: how many chips and hosts they have, and what clouds call them."""

import dataclasses
import itertools
import math
import re

from qstar_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Generation:
  """A generation of TPU chips.

  Attributes:
    accelerator: how Cloud TPU's accelerator types begin.
    cores_per_chip: in the unit that accelerator types count.
    gke_accelerator: the node label cloud.google.com/gke-tpu-accelerator.
    runtime: software version of a Cloud TPU VM.
    shapes: of its slices; empty where they are three-dimensional.
  """

  accelerator: str
  cores_per_chip: int
  gke_accelerator: str
  runtime: str
  shapes: tuple[tuple[int, ...], ...] = ()


_PLANES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
# Of three dimensions, below 4x4x4. Larger ones are multiples of 4 each way.
_SMALL_CUBES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
# Of 4x4x4, in the largest slice of v5p.
_MAX_CUBES = 140

GENERATIONS = {
  "v5e": Generation(
    "v5litepod", 1, "tpu-v5-lite-podslice", "v2-alpha-tpuv5-lite", _PLANES
  ),
  "v5p": Generation("v5p", 2, "tpu-v5p-slice", "v2-alpha-tpuv5"),
  "v6e": Generation("v6e", 1, "tpu-v6e-slice", "v2-alpha-tpuv6e", _PLANES),
}


@dataclasses.dataclass(frozen=True)
class Slice:
  """Chips that are wired together, on one host or several.

  Attributes:
    name: of the generation, a key of GENERATIONS.
    shape: chips each way.
  """

  name: str
  shape: tuple[int, ...]

  @property
  def generation(self) -> Generation:
    return GENERATIONS[self.name]

  @property
  def topology(self) -> str:
    """Chips each way, e.g. `4x4`."""
    return "x".join(map(str, self.shape))

  @property
  def num_chips(self) -> int:
    return math.prod(self.shape)

  @property
  def chips_per_host(self) -> int:
    """4; 1 of 1x1; and all 8 of 2x4, which is a machine type of its own."""
    whole = self.num_chips if len(self.shape) == 2 else 4
    return whole if whole in (1, 8) else 4

  @property
  def num_hosts(self) -> int:
    return self.num_chips // self.chips_per_host

  @property
  def size(self) -> str:
    """In words, e.g. `16 chips on 4 hosts`."""
    chips, hosts = (
      f"{count} {noun}{'s' * (count != 1)}"
      for count, noun in ((self.num_chips, "chip"), (self.num_hosts, "host"))
    )
    return f"{chips} on {hosts}"

  @property
  def accelerator_type(self) -> str:
    """What Cloud TPU calls it, by its number of cores, e.g. `v5p-128`.

    Raises:
      UserError: the type of so many cores is a slice of another shape.
    """
    usual = _usual_shape(self)
    if usual != self.shape:
      other = Slice(self.name, usual)
      raise UserError(
        f"topology is {self}: Cloud TPU names slices by their size, and its "
        f"{self.num_chips} chips are {other}; use that, or the targets gke or "
        "xpk"
      )
    cores = self.num_chips * self.generation.cores_per_chip
    return f"{self.generation.accelerator}-{cores}"

  def __str__(self) -> str:
    return f"{self.name}:{self.topology}"


def _usual_shape(tpu_slice: Slice) -> tuple[int, ...]:
  """Of all slices with so many chips, the most compact one."""
  if len(tpu_slice.shape) == 2 or tpu_slice.shape in _SMALL_CUBES:
    return tpu_slice.shape
  cubes = tpu_slice.num_chips // 64
  divisors = [d for d in range(1, cubes + 1) if cubes % d == 0]
  shapes = [
    (4 * x, 4 * y, 4 * cubes // (x * y))
    for x, y in itertools.combinations_with_replacement(divisors, 2)
    if cubes % (x * y) == 0 and x * y * y <= cubes
  ]
  return min(shapes, key=sum)


def parse_slice(text: str) -> Slice:
  """The slice that `GENERATION:TOPOLOGY` names, e.g. `v5e:4x4`.

  Raises:
    UserError: there is no such generation, or no such slice of it.
  """
  match = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", text)
  if match is None or match[1] not in GENERATIONS:
    raise UserError(
      f"topology is {text!r}: must be a generation ("
      f"{', '.join(GENERATIONS)}) and its chips each way, as in v5e:4x4 or "
      "v5p:4x4x4"
    )
  found = Slice(match[1], tuple(map(int, match[2].split("x"))))
  if found.generation.shapes:
    known = ", ".join(
      Slice(match[1], s).topology for s in found.generation.shapes
    )
    if found.shape not in found.generation.shapes:
      raise UserError(
        f"topology is {text}: slices of {match[1]} are {known}; use one of "
        "those"
      )
  elif not _is_cuboid(found.shape):
    raise UserError(
      f"topology is {text}: slices of {match[1]} are 2x2x1, 2x2x2, 2x2x4, "
      "2x4x4, or three multiples of 4 in ascending order with at most "
      f"{64 * _MAX_CUBES:,} chips; use one of those"
    )
  return found


def _is_cuboid(shape: tuple[int, ...]) -> bool:
  """Whether slices of three dimensions have this shape."""
  is_large = (
    len(shape) == 3
    and list(shape) == sorted(shape)
    and shape[0] > 0
    and all(chips % 4 == 0 for chips in shape)
    and math.prod(shape) <= 64 * _MAX_CUBES
  )
  return shape in _SMALL_CUBES or is_large
