"""Reads the collectives of a compiled program from its HLO text.

Replica groups are written in three ways:

* as lists of partitions, `{{0,1},{2,3}}`;
* as an iota: `[2,4]<=[8]` is 8 numbers in 2 groups of 4, `[4,2]<=[2,4]T(1,0)`
  those of a [2, 4] array transposed;
* along axes of a mesh that the compiler makes up, `mesh['a'=2,'b'=4] {'a'}`,
  whose places may have `device_ids=([2,4]T(1,0))`, or along a part of an axis:
  `'b':(2)2` is b without its first factor, 2.

Partition i is the i-th device of our mesh, row by row.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

KINDS = (
  "all-gather",
  "all-reduce",
  "all-to-all",
  "collective-broadcast",
  "collective-permute",
  "ragged-all-to-all",
  "reduce-scatter",
)

# The shape, up to the operation's name; `-done` belongs to its `-start`.
_OPERATION = re.compile(
  rf"^\s*(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<shape>.+?) "
  rf"(?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\((?P<rest>.*)$"
)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.-]+) \(.*\{$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_LISTS = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})?\}")
_ARRANGED = r"\[(?P<dims>[\d,]+)\](?:T\((?P<order>[\d,]+)\))?"
_IOTA = re.compile(rf"replica_groups=\[(?P<shape>[\d,]+)\]<={_ARRANGED}")
_MESH = re.compile(
  r"replica_groups=mesh\[(?P<sizes>[^\]]+)\](?:, device_ids=\((?P<ids>.+?)\))?"
  r" \{(?P<over>[^}]*)\}"
)
_SIZE = re.compile(r"'([^']+)'=(\d+)")
_OVER = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


class Collective(NamedTuple):
  """An operation in which devices exchange data.

  Attributes:
    kind: one of `KINDS`.
    axes: of the mesh that it crosses; none where every group is one device.
    num_bytes: of its results on one device, each time that it runs.
    name: of the operation.
    computation: that it stands in, such as the body of a loop.
  """

  kind: str
  axes: frozenset[str]
  num_bytes: int
  name: str
  computation: str


def collectives(text: str, mesh_shape: Mapping[str, int]) -> list[Collective]:
  """The collectives of a program.

  Args:
    text: of a compiled module, `compiled.as_text()`.
    mesh_shape: sizes of the mesh's axes by name, in their order.

  Raises:
    ValueError: groups of a form that is not known here.
  """
  return list(_collectives(text, mesh_shape))


def _collectives(
  text: str, mesh_shape: Mapping[str, int]
) -> Iterator[Collective]:
  computation = ""
  for line in text.splitlines():
    if header := _COMPUTATION.match(line):
      computation = header["name"]
    if found := _OPERATION.match(line):
      groups = _groups(found["rest"], math.prod(mesh_shape.values()))
      yield Collective(
        found["kind"],
        _crossed(groups, mesh_shape),
        _result_bytes(found["shape"], found["kind"], bool(found["start"])),
        found["name"],
        computation,
      )


def _numbers(text: str) -> list[int]:
  return [int(number) for number in re.findall(r"\d+", text)]


def _groups(rest: str, num_devices: int) -> list[list[int]]:
  """Who exchanges with whom."""
  if iota := _IOTA.search(rest):
    return _arranged(iota).reshape(_numbers(iota["shape"])).tolist()
  if mesh := _MESH.search(rest):
    return _groups_of_mesh(mesh)
  if lists := _LISTS.search(rest):
    found = re.findall(r"\{([\d,]*)\}", lists[1] or "")
    # No list at all: everybody.
    return [*map(_numbers, found)] or [list(range(num_devices))]
  raise ValueError(f"replica groups of an unknown form: {rest}")


def _arranged(found: re.Match[str]) -> np.ndarray:
  """0, 1, 2, ... as an array of some dimensions, transposed."""
  dims = _numbers(found["dims"])
  order = _numbers(found["order"] or "") or range(len(dims))
  return np.arange(math.prod(dims)).reshape(dims).transpose(order)


def _groups_of_mesh(found: re.Match[str]) -> list[list[int]]:
  """Those who differ along some axes, or parts of them, and no others."""
  sizes = {name: int(size) for name, size in _SIZE.findall(found["sizes"])}
  ids = np.arange(math.prod(sizes.values()))
  if found["ids"]:
    arranged = re.fullmatch(_ARRANGED, found["ids"])
    ids = _arranged(arranged) if arranged else np.array(_numbers(found["ids"]))
  names = list(sizes)
  place = np.array(np.unravel_index(range(ids.size), tuple(sizes.values())))
  for name, before, size in _OVER.findall(found["over"]):
    axis = names.index(name)
    # Behind the part, and with it.
    inner = sizes[name] // (int(before or 1) * int(size or sizes[name]))
    outer = inner * int(size or sizes[name])
    place[axis] -= place[axis] % outer - place[axis] % inner
  groups: dict[tuple[int, ...], list[int]] = {}
  for partition, shared in zip(ids.flat, place.T, strict=True):
    groups.setdefault(tuple(shared.tolist()), []).append(int(partition))
  return list(groups.values())


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


def _result_bytes(shape: str, kind: str, is_start: bool) -> int:
  """Bytes of a shape; of what has only been started, without the operands."""
  arrays = [
    _bits(dtype) * math.prod(_numbers(dims)) // 8
    for dtype, dims in _ARRAY.findall(shape)
  ]
  if is_start and kind == "collective-permute":
    # (operand, result, and two words of context).
    return arrays[1]
  if is_start and kind == "all-gather":
    # (operands, results).
    return sum(arrays[len(arrays) // 2 :])
  return sum(arrays)


def _bits(dtype: str) -> int:
  """Of one value, e.g. 16 of `bf16`; a truth value takes a byte."""
  if dtype == "pred":
    return 8
  # Complex numbers say how long both parts are; f8e4m3 is 8 bits long.
  digits = re.search(r"\d+", dtype)
  return int(digits[0]) if digits else 0
