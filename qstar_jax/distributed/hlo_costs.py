"""What a compiled program costs: operations and bytes, loops multiplied out.

Operations are those of matrix products, which keep a TPU's matrix unit busy;
what else is computed is a small part of them. Bytes are those that each
instruction reads from and writes to memory, as in XLA's cost analysis: what a
fusion makes inside is free, of an array that is only sliced the slice counts,
of one that is updated in place the update. What lies in the fast memory on the
chip costs nothing.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from qstar_jax.distributed import hlo_loops
from qstar_jax.distributed.hlo_program import (
  COLLECTIVES,
  Array,
  Computation,
  Instruction,
  Program,
)

# They make nothing: they name, or run other computations that are counted.
_FREE = frozenset(
  (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
    *("while", "conditional", "call", "after-all", "partition-id"),
    *("replica-id", "optimization-barrier", "async-start", "domain"),
  )
)
_SLICES = frozenset(("dynamic-slice", "slice", "gather"))
# Operands that are an array to update and what it becomes.
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}


class Operation(NamedTuple):
  """An instruction that runs as one on a device.

  Attributes:
    instruction: a fusion with all that it holds, or a single one.
    times: that it runs.
    flops: multiplications and additions in matrix products, each time.
    hbm_bytes: read and written, each time.
  """

  instruction: Instruction
  times: int
  flops: float
  hbm_bytes: float


def operations(program: Program) -> list[Operation]:
  """All that one device runs, in the order of the text."""
  found: list[Operation] = []
  for scope, instruction in hlo_loops.scopes(program):
    computation = scope.computation
    flops = matrix_flops(computation, instruction)
    if scope.is_fused:
      # What a fusion holds comes right behind it.
      found[-1] = found[-1]._replace(flops=found[-1].flops + flops)
    else:
      moved = hbm_bytes(program, computation, instruction)
      found.append(Operation(instruction, scope.times, flops, moved))
  return found


def total_flops(program: Program) -> float:
  """Of one device, each time the program runs."""
  return sum(x.times * x.flops for x in operations(program))


def total_bytes(program: Program) -> float:
  """Read and written by one device, each time the program runs."""
  return sum(x.times * x.hbm_bytes for x in operations(program))


def matrix_flops(computation: Computation, instruction: Instruction) -> float:
  """Multiplications and additions of a product; 0 for all else."""
  if instruction.opcode == "dot":
    left = computation.operand(instruction, 0).array
    contracted = instruction.numbers("lhs_contracting_dims")
    shared = math.prod(left.dims[axis] for axis in contracted)
    return 2.0 * instruction.array.size * shared
  if instruction.opcode == "convolution":
    return _convolution_flops(computation, instruction)
  return 0.0


def _convolution_flops(
  computation: Computation, instruction: Instruction
) -> float:
  """Of a convolution, which a TPU's products of matrices are.

  Batches of products are axes of the window there, dilated or padded so that
  each output meets one of its inputs only: others are no work.
  """
  image, kernel = (
    computation.operand(instruction, i).array.dims for i in range(2)
  )
  labels = instruction.attribute("dim_labels").replace("->", "_").split("_")
  image_at, kernel_at, output_at = (
    {label: axis for axis, label in enumerate(part)} for part in labels
  )
  output = instruction.array.dims
  window = _Window(instruction.attribute("window"))
  spatial = sorted(label for label in image_at if label.isdigit())
  taps = math.prod(
    window.taps(
      axis,
      image[image_at[label]],
      kernel[kernel_at[label]],
      output[output_at[label]],
    )
    for axis, label in enumerate(spatial)
  )
  outer = output[output_at["b"]] * output[output_at["f"]]
  groups = max([1, *instruction.numbers("batch_group_count")])
  return 2.0 * outer * kernel[kernel_at["i"]] * taps / groups


class _Window:
  """The window of a convolution, such as `{size=3x3 pad=1_1x1_1}`."""

  def __init__(self, text: str):
    fields = dict(x.split("=") for x in text.strip("{}").split())
    self._fields = {name: x.split("x") for name, x in fields.items()}

  def _number(self, name: str, axis: int, default: int) -> int:
    values = self._fields.get(name)
    return int(values[axis].split("_")[0]) if values else default

  def taps(self, axis: int, image: int, kernel: int, output: int) -> int:
    """Pairs of an output and a kernel position that meet an input."""
    stride = self._number("stride", axis, 1)
    padding = self._number("pad", axis, 0)
    image_step = self._number("lhs_dilate", axis, 1)
    kernel_step = self._number("rhs_dilate", axis, 1)
    last = (image - 1) * image_step
    return sum(
      0 <= at <= last and at % image_step == 0
      for i in range(output)
      for at in range(
        i * stride - padding,
        i * stride - padding + kernel * kernel_step,
        kernel_step,
      )
    )


def hbm_bytes(
  program: Program, computation: Computation, instruction: Instruction
) -> float:
  """What an instruction reads and writes, run once."""
  if instruction.opcode in _FREE or instruction.is_second_half:
    return 0.0
  operands = [computation.instructions[name] for name in instruction.operands]
  if instruction.opcode == "fusion":
    fused = program.computations[instruction.callees[0]]
    read = sum(
      _read_in_fusion(program, fused, index, sum(map(_bytes, operand.arrays)))
      for index, operand in enumerate(operands)
    )
    return read + _written_by_fusion(program, fused, instruction)
  made = sum(map(_bytes, instruction.arrays))
  if instruction.kind in _SLICES:
    return _sliced(instruction, operands[0])
  if instruction.opcode in _UPDATES:
    update = operands[_UPDATES[instruction.opcode]]
    return 2 * _bytes(update.array)
  if instruction.opcode == "copy-start":
    # (what it makes, its operand, and a word of context).
    return sum(map(_bytes, instruction.arrays[:2]))
  return made + sum(_bytes(x) for operand in operands for x in operand.arrays)


def _bytes(array: Array) -> float:
  return array.hbm_bytes


def _sliced(slice_: Instruction, whole: Instruction) -> float:
  """Read of an array as much as is kept, where both may be on the chip."""
  # One that has only been started makes (operand, result, context).
  kept = slice_.arrays[1 if slice_.opcode.endswith("-start") else 0]
  read = kept.bytes if whole.array.space == 0 else 0.0
  return read + kept.hbm_bytes


def _read_in_fusion(
  program: Program, fused: Computation, index: int, whole: float
) -> float:
  """Bytes that a fusion reads of its operand of so many."""
  parameter = fused.parameters.get(index)
  if parameter is None or whole == 0:
    return 0.0
  read = sum(_read_by_users(program, fused, parameter.name, whole))
  return min(whole, read)


def _read_by_users(
  program: Program, fused: Computation, name: str, whole: float
) -> Iterator[float]:
  """Of a value, by those who use it inside a fusion."""
  for user in fused.users[name]:
    is_first = user.operands[0] == name
    if user.opcode == "bitcast":
      yield from _read_by_users(program, fused, user.name, whole)
    elif user.opcode == "fusion":
      inner = program.computations[user.callees[0]]
      for index, operand in enumerate(user.operands):
        if operand == name:
          yield _read_in_fusion(program, inner, index, whole)
    elif user.opcode in _SLICES and is_first:
      yield user.array.bytes
    elif user.opcode in _UPDATES and is_first:
      yield 0.0  # In place.
    elif user.opcode == "tuple" or user.kind in COLLECTIVES:
      yield 0.0  # Handed on, or on its way to others.
    else:
      yield whole
  # Returned as it is.
  if fused.instructions[name].is_root:
    yield whole


def _written_by_fusion(
  program: Program, fused: Computation, instruction: Instruction
) -> float:
  """Bytes that a fusion writes: of what it updates in place, the update."""
  roots = [fused.root]
  if fused.root.opcode == "tuple":
    roots = [fused.instructions[name] for name in fused.root.operands]
  if len(roots) != len(instruction.arrays):
    return sum(map(_bytes, instruction.arrays))
  return sum(
    _update_bytes(program, fused, root, array.hbm_bytes)
    for root, array in zip(roots, instruction.arrays, strict=True)
  )


def _update_bytes(
  program: Program, fused: Computation, root: Instruction, whole: float
) -> float:
  while root.opcode == "bitcast":
    root = fused.operand(root, 0)
  if root.opcode == "fusion":
    inner = program.computations[root.callees[0]]
    return _update_bytes(program, inner, inner.root, whole)
  if root.opcode == "parameter" or root.kind in COLLECTIVES:
    return 0.0
  if root.opcode not in _UPDATES:
    return whole
  update = fused.operand(root, _UPDATES[root.opcode])
  return min(whole, update.array.bytes)
