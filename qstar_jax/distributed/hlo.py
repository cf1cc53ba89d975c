"""The collectives of a compiled program: what devices tell each other."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from qstar_jax.distributed import hlo_loops, hlo_program
from qstar_jax.distributed.hlo_groups import replica_groups
from qstar_jax.distributed.hlo_program import (
  COLLECTIVES,
  Instruction,
  Program,
)


class Collective(NamedTuple):
  """An operation in which devices exchange data.

  Attributes:
    kind: one of `hlo_program.COLLECTIVES`.
    axes: of the mesh that it crosses; none where every group is one device.
    num_bytes: of its results on one device, each time that it runs.
    name: of the operation.
    computation: that it stands in, such as the body of a loop.
    times: that it runs.
    groups: of partitions that exchange data. Partition i is the i-th device of
      the mesh, row by row.
  """

  kind: str
  axes: frozenset[str]
  num_bytes: int
  name: str
  computation: str
  times: int
  groups: list[list[int]]

  @property
  def group_size(self) -> int:
    """Devices that exchange data with one another."""
    return len(self.groups[0])

  @property
  def wire_bytes(self) -> float:
    """Sent by one device each time, at least.

    Of n devices, each receives n - 1 of n parts to have the whole; a reduction
    of which all get the result sends its parts to where they are summed, too.
    """
    others = self.group_size - 1
    if self.kind in ("collective-permute", "collective-broadcast"):
      return float(self.num_bytes if others else 0)
    if self.kind == "reduce-scatter":
      return float(self.num_bytes * others)
    share = others / self.group_size
    return self.num_bytes * share * (2 if self.kind == "all-reduce" else 1)


def collectives(
  program: str | Program, mesh_shape: Mapping[str, int]
) -> list[Collective]:
  """The collectives of a program, where they run.

  Args:
    program: or its text, `compiled.as_text()`.
    mesh_shape: sizes of the mesh's axes by name, in their order.

  Raises:
    ValueError: no program, or groups of a form that is not known here.
  """
  if isinstance(program, str):
    program = hlo_program.parse(program)
  num_devices = math.prod(mesh_shape.values())
  found = []
  channels = set()
  for scope, instruction in hlo_loops.scopes(program):
    if instruction.kind not in COLLECTIVES or instruction.is_second_half:
      continue
    if scope.is_fused:
      # The TPU compiler lets a collective run beside other work, a piece of it
      # in each of many fusions, and writes all of it in every one of them.
      channel = instruction.attribute("channel_id")
      if channel in channels:
        continue
      channels.add(channel)
    groups = replica_groups(instruction.attributes, num_devices)
    found.append(
      Collective(
        kind=instruction.kind,
        axes=_crossed(groups, mesh_shape),
        num_bytes=_result_bytes(instruction),
        name=instruction.name,
        computation=scope.computation.name,
        times=scope.times,
        groups=groups,
      )
    )
  return found


def _crossed(
  groups: list[list[int]], mesh_shape: Mapping[str, int]
) -> frozenset[str]:
  """The axes along which the members of a group differ."""
  sizes = tuple(mesh_shape.values())
  crossed = set()
  for group in groups:
    places = np.unravel_index(group, sizes)
    for name, place in zip(mesh_shape, places, strict=True):
      if np.ptp(place):
        crossed.add(name)
  return frozenset(crossed)


def _result_bytes(instruction: Instruction) -> int:
  """Bytes it makes; of what has only been started, without the operands."""
  sizes = [int(array.bytes) for array in instruction.arrays]
  if instruction.opcode == "collective-permute-start":
    # (operand, result, and two words of context).
    return sizes[1]
  if instruction.opcode == "all-gather-start":
    # (operands, results).
    return sum(sizes[len(sizes) // 2 :])
  return sum(sizes)
