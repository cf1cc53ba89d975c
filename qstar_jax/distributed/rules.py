"""One table: which logical axis of an array lies on which axes of the mesh.

Arrays are described by logical axes, one name for each of their axes, None for
those that are whole everywhere; `model.partitioning` has those of parameters
and step cache. A layout says where the names lie. The learner splits parameters
over fsdp besides: they are gathered for every use, which a gradient step pays
for and a decoded token would not. The actor has them whole, but for the heads
and hidden units that lie on model.
"""

import math
from collections.abc import Mapping, Sequence

import chex
import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# By logical axis, the axes of the mesh that split it; none are ().
Layout = Mapping[str, tuple[str, ...]]

# Over these each device has lines and trees of its own, and nothing to tell.
BATCH_AXES = ("data", "fsdp")

# Logical axis: (learner, actor).
_TABLE = {
  "lines": (BATCH_AXES, BATCH_AXES),
  "trees": (BATCH_AXES, BATCH_AXES),
  "embed": (("fsdp",), ()),
  "vocabulary": (("model",), ("model",)),
  "heads": (("model",), ("model",)),
  "kv_heads": (("model",), ("model",)),
  "ffn": (("model",), ("model",)),
}
LEARNER: Layout = {name: axes for name, (axes, _) in _TABLE.items()}
ACTOR: Layout = {name: axes for name, (_, axes) in _TABLE.items()}
# Of the actor's layout, what a `shard_map` over `BATCH_AXES` splits by hand.
BY_HAND: Layout = {
  name: axes if axes == BATCH_AXES else () for name, axes in ACTOR.items()
}


def spec(axes: Sequence[str | None], layout: Layout) -> P:
  """Where an array of these logical axes lies; axes behind them are whole."""
  return P(*(layout[name] or None if name else None for name in axes))


def sharding(
  axes: Sequence[str | None], layout: Layout, mesh: Mesh
) -> NamedSharding:
  """`spec` on the devices of a mesh."""
  return NamedSharding(mesh, spec(axes, layout))


def num_shards(mesh_shape: Mapping[str, int]) -> int:
  """Into how many parts a mesh of these axes splits lines or trees."""
  return math.prod(mesh_shape[name] for name in BATCH_AXES)


def constrain(x: chex.Array, axes: Sequence[str | None]) -> chex.Array:
  """Lays an array out as the learner's while its program is traced.

  Where there is no mesh in context, or a shard's own, as in play and
  evaluation, it stays as it is. Without it the compiler may follow the
  parameters, and split the stream between layers by its width instead of by
  lines.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.manual_axes:
    return x
  return jax.lax.with_sharding_constraint(x, spec(axes, LEARNER))


def whole(x: chex.Array) -> chex.Array:
  """Has an array whole on all devices of a shard, inside a `shard_map`.

  What is cut into pieces that the mesh does not divide would be passed on from
  neighbour to neighbour instead, which may wait for the devices of all shards:
  in a loop that ends when a shard's own trees do, for ever.
  """
  if not jax.sharding.get_abstract_mesh().manual_axes:
    return x
  return jax.lax.with_sharding_constraint(x, P())
