"""Compiled programs as XLA prints them: computations and their instructions.

`compiled.as_text()` is read here and nothing is run: the text of a program that
was compiled for another machine does as well. What is read of an instruction is
what costs depend on; the rest stays text, in `attributes`.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "all-to-all",
  "collective-broadcast",
  "collective-permute",
  "ragged-all-to-all",
  "reduce-scatter",
)
_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
# Instructions that are another's second half.
_SECOND_HALVES = ("-done", "-update")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=\s]*)\](\{[^{}]*\})?")
_HEADER = re.compile(r"(ENTRY\s+)?%?([\w.\-]+)\s*\(.*->.*\{\s*$")
_INSTRUCTION = re.compile(r"\s+(ROOT\s+)?%?([\w.\-]+)\s*=\s*(.*)$")
_COMMENT = re.compile(r"/\*.*?\*/")
_CALLEES = re.compile(
  r"\b(?:calls|to_apply|body|condition|branch_computations|true_computation|"
  r"false_computation|called_computations|async_execution_thread_computation)"
  r"=(\{[^{}]*\}|%?[\w.\-]+)"
)


@dataclasses.dataclass(frozen=True)
class Array:
  """What an instruction reads or makes; of a tuple, one of its leaves.

  Attributes:
    dtype: as XLA names it, e.g. `bf16`.
    dims: its shape.
    space: of memory; 0 is a TPU's HBM, others are memories on the chip.
  """

  dtype: str
  dims: tuple[int, ...]
  space: int = 0

  @property
  def size(self) -> int:
    """Number of elements."""
    return math.prod(self.dims)

  @property
  def bytes(self) -> float:
    """Without the padding of layouts."""
    if self.dtype in _BITS:
      return self.size * _BITS[self.dtype] / 8
    return self.size * int(re.search(r"\d+", self.dtype).group()) / 8

  @property
  def hbm_bytes(self) -> float:
    """`bytes` in a TPU's HBM, or a CPU's memory."""
    return self.bytes if self.space == 0 else 0.0


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: unique in its computation.
    opcode: e.g. `fusion`; of an asynchronous pair, `all-gather-start` begins
      what `all-gather-done` ends.
    arrays: the leaves of what it makes.
    operands: names of instructions of the same computation.
    attributes: text behind the operands.
    callees: computations it runs, in the order of the text.
    is_root: what it makes is what the computation returns.
  """

  name: str
  opcode: str
  arrays: tuple[Array, ...]
  operands: tuple[str, ...]
  attributes: str
  callees: tuple[str, ...]
  is_root: bool

  @property
  def array(self) -> Array:
    """What it makes, where that is one array."""
    return self.arrays[0]

  @property
  def is_second_half(self) -> bool:
    """The end of an asynchronous pair, whose cost is counted at its start."""
    return self.opcode.endswith(_SECOND_HALVES)

  @property
  def kind(self) -> str:
    """The opcode, that of an asynchronous start without `-start`."""
    return self.opcode.removesuffix("-start")

  def attribute(self, name: str) -> str:
    """Text of an attribute such as `index`; empty if it has none."""
    found = re.search(rf"\b{name}=(\{{[^{{}}]*\}}|[^\s,]+)", self.attributes)
    return found.group(1) if found else ""

  def numbers(self, name: str) -> tuple[int, ...]:
    """All whole numbers in an attribute such as `lhs_contracting_dims={1}`."""
    return tuple(map(int, re.findall(r"\d+", self.attribute(name))))

  @property
  def op_name(self) -> str:
    """Where it comes from in the program that was traced."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found.group(1) if found else self.name


@dataclasses.dataclass(frozen=True)
class Computation:
  """Instructions in order; operands come before those who read them."""

  name: str
  instructions: dict[str, Instruction]

  @functools.cached_property
  def root(self) -> Instruction:
    """What the computation returns."""
    return next(x for x in self.instructions.values() if x.is_root)

  @functools.cached_property
  def parameters(self) -> dict[int, Instruction]:
    """By number; those that nothing reads may be missing."""
    return {
      int(x.operands[0]): x
      for x in self.instructions.values()
      if x.opcode == "parameter"
    }

  @functools.cached_property
  def users(self) -> dict[str, list[Instruction]]:
    """Instructions by the name of an operand of theirs."""
    users: dict[str, list[Instruction]] = {x: [] for x in self.instructions}
    for instruction in self.instructions.values():
      for operand in dict.fromkeys(instruction.operands):
        if operand in users:
          users[operand].append(instruction)
    return users

  def operand(self, instruction: Instruction, index: int) -> Instruction:
    """The instruction that makes an operand."""
    return self.instructions[instruction.operands[index]]


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled program.

  Attributes:
    computations: by name.
    entry: name of the one that is run.
    num_partitions: devices it is compiled for.
  """

  computations: dict[str, Computation]
  entry: str
  num_partitions: int


def parse(text: str) -> Program:
  """Reads the text of a compiled program.

  Raises:
    ValueError: it is no such text.
  """
  computations: dict[str, Computation] = {}
  entry, current = "", None
  for line in text.splitlines():
    if current is None:
      header = _HEADER.match(line)
      if header and not line.startswith("HloModule"):
        current = Computation(header.group(2), {})
        computations[current.name] = current
        entry = current.name if header.group(1) else entry
    elif line.startswith("}"):
      current = None
    elif found := _INSTRUCTION.match(line):
      root, name, rest = found.groups()
      current.instructions[name] = _instruction(name, bool(root), rest)
  if not entry:
    raise ValueError("no ENTRY computation: not the text of an HLO program")
  partitions = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
  num_partitions = int(partitions.group(1)) if partitions else 1
  return Program(computations, entry, num_partitions)


def _instruction(name: str, is_root: bool, rest: str) -> Instruction:
  """Of the text behind `name =`."""
  rest = _COMMENT.sub("", rest)
  shape, rest = _split_shape(rest)
  opcode, _, rest = rest.strip().partition("(")
  inside, attributes = _split_at_close(rest)
  if opcode == "parameter":
    operands = (inside.strip(),)
  elif opcode == "constant":
    operands = ()
    attributes = f"value={inside}{attributes}"
  else:
    operands = tuple(
      # Some printers put the operand's shape before its name.
      operand.split()[-1].removeprefix("%")
      for operand in _split_commas(inside)
      if operand.strip()
    )
  callees = tuple(
    callee.strip().removeprefix("%")
    for group in _CALLEES.findall(attributes)
    for callee in group.strip("{}").split(",")
    if callee.strip()
  )
  arrays = tuple(_arrays(shape))
  return Instruction(
    name, opcode, arrays, operands, attributes, callees, is_root
  )


def _arrays(shape: str) -> Iterator[Array]:
  for dtype, dims, layout in _ARRAY.findall(shape):
    space = re.search(r"S\((\d+)\)", layout)
    yield Array(
      dtype,
      tuple(int(x) for x in re.findall(r"\d+", dims)),
      int(space.group(1)) if space else 0,
    )


def _split_shape(rest: str) -> tuple[str, str]:
  """A shape, in parentheses if it is a tuple's, and what stands behind it."""
  if not rest.startswith("("):
    shape, _, rest = rest.partition(" ")
    return shape, rest
  inside, rest = _split_at_close(rest[1:])
  return inside, rest


def _split_at_close(text: str) -> tuple[str, str]:
  """At the parenthesis that closes one opened before the text."""
  depth = 1
  for found in re.finditer(r"[()]", text):
    depth += 1 if found.group() == "(" else -1
    if depth == 0:
      return text[: found.start()], text[found.end() :]
  raise ValueError(f"unbalanced parentheses in HLO text: {text[:80]!r}")


def _split_commas(text: str) -> Iterator[str]:
  """At commas outside of all brackets."""
  depth, start = 0, 0
  for found in re.finditer(r"[()\[\]{},]", text):
    if found.group() in "([{":
      depth += 1
    elif found.group() in ")]}":
      depth -= 1
    elif depth == 0:
      yield text[start : found.start()]
      start = found.end()
  yield text[start:]
