"""Who exchanges data with whom: the replica groups of HLO text.

XLA writes them in three ways. Lists of partitions, `{{0,1},{2,3}}`. Iotas:
`[2,4]<=[8]` is 8 numbers in 2 groups of 4, `[4,2]<=[2,4]T(1,0)` those of a
[2, 4] array transposed. And axes of a mesh of XLA's own, which has no names of
ours: `mesh['a'=2,'b'=4] {'b'}` is 2 groups of 4 neighbours; `'b':(2)2` is the
part of size 2 of axis b that has 2 before it, and `device_ids=` another order.
"""

import math
import re

import numpy as np

_LISTS = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})?\}")
_IOTA = r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?"
_IOTA_GROUPS = re.compile(rf"replica_groups={_IOTA}")
_MESH_GROUPS = re.compile(
  r"replica_groups=mesh\[(?P<mesh>[^\]]*)\]"
  r"(?:,\s*device_ids=\((?P<ids>[^\s]*)\))?\s*\{(?P<axes>[^}]*)\}"
)
_AXIS = re.compile(r"'?([\w.]+)'?(?::\((\d+)\)(\d+))?")


def replica_groups(attributes: str, num_partitions: int) -> list[list[int]]:
  """The groups of a collective, or the pairs of a permutation.

  Args:
    attributes: of the instruction.
    num_partitions: of the program.

  Raises:
    ValueError: groups of a form that is not known here.
  """
  if found := _MESH_GROUPS.search(attributes):
    return _of_mesh(found["mesh"], found["ids"], found["axes"])
  if found := _IOTA_GROUPS.search(attributes):
    shape = _numbers(found[1])
    return _iota(found[2] or found[1], found[3]).reshape(shape).tolist()
  if found := _LISTS.search(attributes):
    groups = re.findall(r"\{([\d,]*)\}", found[1] or "")
    # No list at all: everybody.
    return [*map(_numbers, groups)] or [list(range(num_partitions))]
  raise ValueError(f"replica groups of an unknown form: {attributes[:200]}")


def _numbers(text: str | None) -> list[int]:
  return [int(number) for number in re.findall(r"\d+", text or "")]


def _iota(dims: str, order: str | None) -> np.ndarray:
  sizes = _numbers(dims)
  ids = np.arange(math.prod(sizes)).reshape(sizes)
  return ids.transpose(_numbers(order)) if order else ids


def _of_mesh(mesh: str, ids: str | None, axes: str) -> list[list[int]]:
  """Groups along axes, or parts of axes, of a mesh."""
  sizes = {
    name: int(size) for name, size in re.findall(r"'?([\w.]+)'?=(\d+)", mesh)
  }
  # Axes that only a part of is meant are cut into what is before the part, the
  # part, and what is behind it.
  cuts = {name: [size] for name, size in sizes.items()}
  wanted = {}
  for name, before, size in _AXIS.findall(axes):
    wanted[name] = 0
    if before:
      behind = sizes[name] // (int(before) * int(size))
      cuts[name], wanted[name] = [int(before), int(size), behind], 1
  shape = [size for name in sizes for size in cuts[name]]
  starts = dict(
    zip(
      sizes, np.cumsum([0, *(len(cuts[name]) for name in sizes)]), strict=False
    )
  )
  inner = [int(starts[name]) + part for name, part in wanted.items()]
  outer = [axis for axis in range(len(shape)) if axis not in inner]
  grid = _mesh_ids(ids, math.prod(shape)).reshape(shape)
  group_size = math.prod(shape[axis] for axis in inner)
  return grid.transpose(*outer, *inner).reshape(-1, group_size).tolist()


def _mesh_ids(ids: str | None, size: int) -> np.ndarray:
  """Partitions in the order of the mesh, row by row."""
  if not ids:
    return np.arange(size)
  if found := re.fullmatch(_IOTA, ids):
    return _iota(found[2] or found[1], found[3])
  return np.array(_numbers(ids))
