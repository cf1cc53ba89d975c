"""The device mesh, on the eight virtual devices of the test environment."""

import dataclasses
import math
import re
import types

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qstar_jax.config import MeshConfig
from qstar_jax.distributed import mesh as mesh_lib
from qstar_jax.errors import UserError


@pytest.mark.parametrize(
  ("axes", "num_devices", "shape"),
  [
    ((-1, 1, 1), 8, (8, 1, 1)),
    ((-1, 2, 2), 8, (2, 2, 2)),
    ((2, -1, 1), 8, (2, 4, 1)),
    ((1, 2, -1), 6, (1, 2, 3)),
    ((4, 2, 1), 8, (4, 2, 1)),
    ((-1, 1, 1), 1, (1, 1, 1)),
  ],
)
def test_what_is_left_fills_the_open_axis(axes, num_devices, shape):
  config = MeshConfig(*axes)
  assert mesh_lib.mesh_shape(config, num_devices) == shape


@pytest.mark.parametrize(
  ("axes", "num_devices", "advice"),
  [
    ((2, 1, 1), 8, "multiply to 8; set mesh.data to -1"),
    ((16, 1, 1), 8, "multiply to 8; set mesh.data to -1"),
    # What is open already, or would be, does not help.
    ((-1, 3, 1), 8, "fsdp * mesh.model is 3 and must divide 8; make it 2 or 4"),
    ((-1, 16, 1), 8, "mesh.model is 16 and must divide 8; make it 8"),
    ((1, 16, 1), 8, "mesh.model is 16 and must divide 8; make it 8"),
    ((3, -1, 1), 1, "mesh.data * mesh.model is 3 and must divide 1; make it 1"),
    ((3, 2, -1), 8, "mesh.data * mesh.fsdp is 6 and must divide 8"),
  ],
)
def test_axes_that_do_not_fit_the_devices(axes, num_devices, advice):
  message = re.escape(f"({', '.join(map(str, axes))})")
  with pytest.raises(UserError, match=message) as caught:
    mesh_lib.mesh_shape(MeshConfig(*axes), num_devices)
  assert f"fit {num_devices} devices" in str(caught.value)
  assert advice in str(caught.value)
  assert "\n" not in str(caught.value)


@given(
  st.tuples(*[st.sampled_from([-1, 1, 2, 3, 4, 6, 16])] * 3).filter(
    lambda axes: axes.count(-1) <= 1
  ),
  st.integers(1, 24),
)
def test_who_does_what_the_message_says_has_a_mesh(axes, num_devices):
  config = MeshConfig(*axes)
  try:
    mesh_lib.mesh_shape(config, num_devices)
    return
  except UserError as error:
    message = str(error)
  if opened := re.search(r"set mesh\.(\w+) to -1", message):
    mended = dataclasses.replace(config, **{opened[1]: -1})
  else:
    first, second, size = re.search(
      r"mesh\.(\w+) \* mesh\.(\w+) is .* make it (\d+)", message
    ).groups()
    (rest,) = {"data", "fsdp", "model"} - {first, second}
    mended = MeshConfig(**{first: int(size), second: 1, rest: -1})
  assert math.prod(mesh_lib.mesh_shape(mended, num_devices)) == num_devices


def test_the_mesh_is_over_all_devices():
  mesh = mesh_lib.make_mesh(MeshConfig(data=-1, fsdp=2))
  assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "model": 1}
  assert set(mesh.devices.flat) == set(jax.devices())
  # Partitioning is left to the compiler; `make_mesh` alone would not.
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_a_part_of_the_devices_makes_a_mesh_of_its_own():
  halves = jax.devices()[:4], jax.devices()[4:]
  meshes = [mesh_lib.make_mesh(MeshConfig(model=2), half) for half in halves]
  for mesh, half in zip(meshes, halves, strict=True):
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "model": 2}
    assert set(mesh.devices.flat) == set(half)


class _SliceDevice:
  """A device of a machine of several slices, as far as a mesh looks at it."""

  platform = device_kind = "made up"

  def __init__(self, number, slice_index):
    self.id = number
    self.process_index = self.slice_index = slice_index


def _slices(num_slices, size):
  # In turn: their order says nothing of where they are.
  return [_SliceDevice(i, i % num_slices) for i in range(num_slices * size)]


@pytest.mark.parametrize(
  ("num_slices", "axes"), [(2, (4, 2, 1)), (2, (2, 2, 2)), (4, (-1, 1, 2))]
)
def test_slices_are_joined_along_data(num_slices, axes):
  devices = _slices(num_slices, 8 // num_slices)
  mesh = mesh_lib.make_mesh(MeshConfig(*axes), devices)
  slice_of = [
    {device.slice_index for device in part.flat}
    for part in np.split(mesh.devices, num_slices)
  ]
  assert sorted(map(len, slice_of)) == [1] * num_slices
  assert set.union(*slice_of) == set(range(num_slices))


def test_slices_are_not_joined_along_other_axes():
  with pytest.raises(UserError) as caught:
    mesh_lib.make_mesh(MeshConfig(data=3, fsdp=4), _slices(2, 6))
  assert str(caught.value).startswith(
    "mesh.data is 3: must be divisible by the 2 slices, which are joined along "
    "it; use 2 or 4"
  )


class _Device:
  def __init__(self, process_index):
    self.process_index = process_index


def test_devices_that_share_the_network_are_on_one_host():
  grid = np.array([_Device(i // 2) for i in range(4)]).reshape(1, 1, 4)
  mesh = types.SimpleNamespace(
    devices=grid, shape={"data": 1, "fsdp": 1, "model": 4}
  )
  with pytest.raises(UserError, match=r"^mesh.model is 4: .* on one host"):
    mesh_lib.own_part(mesh)


def test_all_of_a_mesh_is_here():
  mesh = mesh_lib.make_mesh(MeshConfig(data=2, fsdp=2, model=2))
  assert mesh_lib.own_part(mesh) is mesh
