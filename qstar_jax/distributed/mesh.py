"""The device mesh."""

import math

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


def make_mesh(config: MeshConfig) -> Mesh:
  """The mesh over all devices, for automatic partitioning."""
  shape = mesh_shape(config, jax.device_count())
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))
