"""The device mesh."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from qstar_jax.config import MeshConfig
from qstar_jax.errors import UserError, nearest_divisors, nearest_multiples

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
      f"{config.model}) does not fit {num_devices} devices: "
      f"{_advice(config, num_devices)}"
    )
  return tuple(sizes)


def _advice(config: MeshConfig, num_devices: int) -> str:
  """What must hold of axes that do not fit, and how to make it so."""
  sizes = dict(zip(AXES, (config.data, config.fsdp, config.model), strict=True))
  # One that is open already, or could be.
  (open_axis,) = [axis for axis in AXES if sizes[axis] == -1] or ["data"]
  others = [axis for axis in AXES if axis != open_axis]
  product = math.prod(sizes[axis] for axis in others)
  if num_devices % product == 0:
    return (
      f"the axes must multiply to {num_devices}; set mesh.{open_axis} to -1 to "
      "fill in the rest"
    )
  return (
    f"{' * '.join(f'mesh.{axis}' for axis in others)} is {product} and must "
    f"divide {num_devices}; make it {nearest_divisors(num_devices, product)}"
  )


def actor_axes(config: MeshConfig) -> MeshConfig:
  """The axes of self-play's own devices, where it has some."""
  return dataclasses.replace(config, data=-1, fsdp=1)


def make_mesh(
  config: MeshConfig, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """A mesh for automatic partitioning.

  Slices are joined along data alone: between them the network is slow, and
  data is what crosses it least, once in a gradient step.

  Args:
    config: its axes.
    devices: to be used up, of a topology too; all devices by default.

  Returns:
    The mesh, neighbours on it being neighbours on the machine where possible.

  Raises:
    UserError: the axes do not fit the devices, or data their slices.
  """
  devices = jax.devices() if devices is None else devices
  data, *inside = mesh_shape(config, len(devices))
  # Only TPUs have slices.
  num_slices = len({getattr(d, "slice_index", None) for d in devices})
  if data % num_slices:
    raise UserError(
      f"mesh.data is {data}: must be divisible by the {num_slices} slices, "
      "which are joined along it; use "
      f"{nearest_multiples(num_slices, data)}, and mesh.fsdp or mesh.model "
      "within a slice"
    )
  shape = data // num_slices, *inside
  if num_slices == 1:
    grid = mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    )
  else:
    grid = mesh_utils.create_hybrid_device_mesh(
      shape, (num_slices, 1, 1), devices, allow_split_physical_axes=True
    )
  return Mesh(np.asarray(grid), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def own_part(mesh: Mesh) -> Mesh:
  """What of a mesh lies on this process: where it plays, asking no other.

  Args:
    mesh: of all processes.

  Returns:
    A mesh of this process's devices, `data` and `fsdp` joined to `data`; the
    mesh itself if all of it is here.

  Raises:
    UserError: devices that share the network are on several processes.
  """
  here = jax.process_index()
  groups = mesh.devices.reshape(-1, mesh.shape["model"])
  is_here = np.vectorize(lambda d: d.process_index == here)(groups)
  if is_here.all():
    return mesh
  if (is_here.any(axis=1) != is_here.all(axis=1)).any():
    raise UserError(
      f"mesh.model is {mesh.shape['model']}: the devices that it joins must be "
      f"on one host, which has {jax.local_device_count()}, since every host "
      "searches by itself; use "
      f"{nearest_divisors(jax.local_device_count(), mesh.shape['model'])}"
    )
  own = groups[is_here.all(axis=1)]
  return Mesh(own[:, None], AXES, axis_types=mesh.axis_types)
