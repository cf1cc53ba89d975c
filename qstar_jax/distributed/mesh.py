"""The device mesh."""

import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from qstar_jax.config import MeshConfig
from qstar_jax.errors import UserError

AXES = ("data", "fsdp", "model")


def mesh_shape(config: MeshConfig, num_devices: int) -> tuple[int, int, int]:
  """Sizes of the mesh's axes, with -1 filled in.

  Args:
    config: at most one axis may be -1.
    num_devices: to be used up.

  Returns:
    Sizes of (data, fsdp, model); their product is num_devices.

  Raises:
    UserError: the axes do not multiply to the devices.
  """
  sizes = [config.data, config.fsdp, config.model]
  fixed = math.prod(size for size in sizes if size != -1)
  if -1 in sizes and num_devices % fixed == 0:
    sizes[sizes.index(-1)] = num_devices // fixed
  if math.prod(sizes) != num_devices:
    raise UserError(
      f"mesh (data, fsdp, model) = ({config.data}, {config.fsdp}, "
      f"{config.model}) does not fit {num_devices} devices: the axes must "
      f"multiply to {num_devices}; set mesh.data to -1 to fill in the rest"
    )
  return tuple(sizes)


def make_mesh(
  config: MeshConfig, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """The mesh over devices, all by default, for automatic partitioning."""
  devices = jax.devices() if devices is None else devices
  shape = mesh_shape(config, len(devices))
  return jax.make_mesh(
    shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
  )
