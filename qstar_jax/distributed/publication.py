"""From the learner's layout of the parameters to the actor's.

Self-play reads all parameters for every token, so it never reads them where the
learner keeps them, split over fsdp. Each version crosses once.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding


def make_publish(source: Any, target: Any) -> Callable[[Any], Any]:
  """A compiled function that moves parameters from one layout to another.

  Args:
    source: `NamedSharding`s, a tree like the parameters'.
    target: likewise, on the same devices.

  Returns:
    params -> params, of which each device receives the parts that it does not
    have, once. Nothing is consumed, and what comes shares no memory with it.
  """

  # The learner's next step consumes its own.
  def publish(params):
    return jax.tree.map(jnp.copy, params)

  return jax.jit(publish, in_shardings=(source,), out_shardings=target)


class Publisher:
  """Publishes what is new, and hands out again what is not."""

  def __init__(self, publish: Callable[[Any], Any]):
    """Moves nothing yet; see `make_publish`."""
    self._publish = publish
    self._arrays: list[jax.Array] = []
    self._published: Any = None

  def __call__(self, params: Any) -> Any:
    """The parameters in the actor's layout.

    Args:
      params: in the learner's. Arrays do not change: the same ones are the same
        version.
    """
    arrays = jax.tree.leaves(params)
    is_known = len(arrays) == len(self._arrays) and all(
      new is old for new, old in zip(arrays, self._arrays, strict=True)
    )
    if not is_known:
      # Before the next one is there.
      self._published = None
      self._published, self._arrays = self._publish(params), arrays
    return self._published


def seen_on(arrays: Any, mesh: Mesh) -> Any:
  """The same numbers on the same devices, as arrays of another mesh.

  That is how what lies on the mesh of all processes becomes what a process has
  of it, see `mesh.own_part`, and the other way round. Nothing is moved.

  Args:
    arrays: a tree; split over model at most, as the actor's layout is, so that
      every process has all of each.
    mesh: of which this process has the same devices.
  """

  def array_on(x):
    sharding = NamedSharding(mesh, x.sharding.spec)
    parts = [shard.data for shard in x.addressable_shards]
    return jax.make_array_from_single_device_arrays(x.shape, sharding, parts)

  return jax.tree.map(array_on, arrays)
