"""The device mesh, on the eight virtual devices of the test environment."""

import re

import jax
import pytest

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
  ("axes", "num_devices"),
  [
    ((2, 1, 1), 8),
    ((16, 1, 1), 8),
    ((-1, 3, 1), 8),
    ((-1, 16, 1), 8),
    ((3, -1, 1), 1),
  ],
)
def test_axes_that_do_not_multiply_to_the_devices(axes, num_devices):
  message = re.escape(f"({', '.join(map(str, axes))})")
  with pytest.raises(UserError, match=message) as caught:
    mesh_lib.mesh_shape(MeshConfig(*axes), num_devices)
  assert f"{num_devices} devices" in str(caught.value)
  assert "set mesh.data to -1" in str(caught.value)
  assert "\n" not in str(caught.value)


def test_the_mesh_is_over_all_devices():
  mesh = mesh_lib.make_mesh(MeshConfig(data=-1, fsdp=2))
  assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "model": 1}
  assert set(mesh.devices.flat) == set(jax.devices())
  # Partitioning is left to the compiler; `make_mesh` alone would not.
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
