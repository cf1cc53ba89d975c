"""Logical axes of the network's parameters and of its step cache.

Optimizer state follows the parameters: its paths end in theirs. Vectors and the
heads' few columns are whole everywhere.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.tree_util import KeyPath

from qstar_jax.config import ModelConfig
from qstar_jax.distributed import publication, rules
from qstar_jax.distributed.rules import Layout
from qstar_jax.errors import UserError, nearest_divisors, nearest_multiples
from qstar_jax.model.step_cache import StepStore
from qstar_jax.model.transformer import abstract_model, init_model

# Layers are stacked on L, and twin heads on Z: the first axis of theirs.
_PARAMETER_AXES = {
  "embedding.embedding": ("vocabulary", "embed"),
  "layers.attention_norm.scale": (None, None),
  "layers.query.kernel": (None, "embed", "heads"),
  "layers.key.kernel": (None, "embed", "kv_heads"),
  "layers.value.kernel": (None, "embed", "kv_heads"),
  "layers.output.kernel": (None, "heads", "embed"),
  "layers.mlp_norm.scale": (None, None),
  "layers.gate.kernel": (None, "embed", "ffn"),
  "layers.up.kernel": (None, "embed", "ffn"),
  "layers.down.kernel": (None, "ffn", "embed"),
  "final_norm.scale": (None,),
  "value_head.kernel": (None, None),
  "value_head.bias": (None,),
  "prm_head.kernel": (None, None),
  "prm_head.bias": (None,),
  "token_q_heads.hidden.kernel": (None, "embed", None),
  "token_q_heads.hidden.bias": (None, None),
  "token_q_heads.query.kernel": (None, "embed", None),
  "token_q_heads.query.bias": (None, None),
  "token_value_head.kernel": (None, None),
  "token_value_head.bias": (None,),
}

# A list of layers has the axes of each.
STORE_AXES = StepStore(
  prompt_keys=("trees", "kv_heads"),
  prompt_values=("trees", "kv_heads"),
  prompt_length=("trees",),
  prompt_hidden=("trees",),
  block_keys=(None, "trees", "kv_heads"),
  block_values=(None, "trees", "kv_heads"),
  block_length=(None, "trees"),
  path=(None, "trees"),
  next_position=(None, "trees"),
  tokens=(None, "trees"),
  length=(None, "trees"),
  hidden=(None, "trees"),
  decode_slots=("trees",),
)

# What the mesh splits of a network, and over which of its axes.
_SPLIT = {
  "model_dim": "fsdp",
  "num_heads": "model",
  "num_kv_heads": "model",
  "ffn_dim": "model",
  "vocabulary_multiple": "model",
}


def misfits(config: ModelConfig, mesh_shape: Mapping[str, int]) -> list[str]:
  """What of a network does not divide by the axes of a mesh.

  Args:
    config: of the network.
    mesh_shape: sizes of the mesh's axes by name.

  Returns:
    Lines of value, rule and fix, of a `UserError`; none if it fits.
  """
  return [
    f"model.{field} is {size}: must be divisible by mesh.{axis} = {parts}; use "
    f"{nearest_multiples(parts, size)}, or set mesh.{axis} to "
    f"{nearest_divisors(size, parts)}"
    for field, axis in _SPLIT.items()
    if (size := getattr(config, field)) % (parts := mesh_shape[axis])
  ]


def _axes_of(path: KeyPath, value: Any) -> tuple[str | None, ...] | None:
  """Logical axes of what a path ends in; None if that is no parameter."""
  names = [str(key.key) for key in path if hasattr(key, "key")]
  for start in range(len(names)):
    axes = _PARAMETER_AXES.get(".".join(names[start:]))
    if axes is not None and len(axes) == value.ndim:
      return axes
  return None


def shardings(params: Any, layout: Layout, mesh: Mesh) -> Any:
  """How parameters lie on a mesh.

  Args:
    params: of the network: a tree of arrays, or of shapes.
    layout: the learner's or the actor's.
    mesh: with the axes of `distributed.mesh.AXES`.

  Returns:
    A `NamedSharding` for each leaf.

  Raises:
    ValueError: a parameter is not in the table above.
    UserError: the mesh does not divide an axis.
  """

  def of_leaf(path, value):
    axes = _axes_of(path, value)
    if axes is None:
      raise ValueError(
        f"parameter {jax.tree_util.keystr(path)} of shape {value.shape} has no "
        "logical axes; name them in qstar_jax/model/partitioning.py"
      )
    for name, size in zip(axes, value.shape, strict=True):
      _check_divides(name, size, layout, mesh)
    return rules.sharding(axes, layout, mesh)

  return jax.tree.map_with_path(of_leaf, params)


def optimizer_shardings(state: Any, layout: Layout, mesh: Mesh) -> Any:
  """How what is kept of parameters lies on a mesh: as they do.

  Args:
    state: an optimizer's, or any other tree of trees of parameters, as arrays
      or as shapes. What is no parameter's, such as counts, is whole.
    layout: see `shardings`.
    mesh: that divides the parameters.
  """
  return jax.tree.map_with_path(
    lambda path, x: rules.sharding(_axes_of(path, x) or (), layout, mesh), state
  )


def _check_divides(
  name: str | None, size: int, layout: Layout, mesh: Mesh
) -> None:
  for axis in layout[name] if name else ():
    if size % (parts := mesh.shape[axis]):
      raise UserError(
        f"the network has {size} of {name}: must be divisible by mesh.{axis} = "
        f"{parts}; use {nearest_multiples(parts, size)}, or set mesh.{axis} to "
        f"{nearest_divisors(size, parts)}"
      )


def abstract_params(params: Any, layout: Layout, mesh: Mesh) -> Any:
  """Shapes of parameters with their `shardings`.

  Args:
    params: see `shardings`.
    layout: likewise.
    mesh: likewise; its devices need not be there.

  Returns:
    A `jax.ShapeDtypeStruct` for each leaf.

  Raises:
    UserError: the mesh does not divide an axis.
  """
  return jax.tree.map(
    lambda x, lies: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies),
    params,
    shardings(params, layout, mesh),
  )


def init_params(
  config: ModelConfig,
  vocabulary_size: int,
  seed: int,
  layout: Layout,
  mesh: Mesh,
) -> tuple[nnx.GraphDef, nnx.State]:
  """`transformer.init_model`, made where it lies: no device has the whole.

  The values do not depend on the mesh.

  Args:
    config: shapes.
    vocabulary_size: tokens that there are.
    seed: of the initial values, in [0, 2**32).
    layout: the learner's or the actor's.
    mesh: also of several processes.

  Raises:
    UserError: the mesh does not divide an axis.
  """
  graphdef, shapes = abstract_model(config, vocabulary_size)
  # A constant seed would have the compiler compute the values, one by one.
  make = jax.jit(
    lambda seed: init_model(config, vocabulary_size, seed)[1],
    out_shardings=shardings(shapes, layout, mesh),
  )
  return graphdef, make(np.uint32(seed))


def params_in(layout: Layout, params: nnx.State, mesh: Mesh) -> nnx.State:
  """Parameters, moved to where a layout wants them; those there stay.

  They are moved one by one, and their layouts may be of two meshes: between two
  layouts of one, `distributed.publication` is quicker.
  """
  return jax.device_put(params, shardings(params, layout, mesh))


def make_publish(
  params: nnx.State, mesh: Mesh
) -> Callable[[nnx.State], nnx.State]:
  """`publication.make_publish` where learner and actor share a mesh.

  Args:
    params: of the network, or their shapes.
    mesh: of both.
  """
  source, target = (
    shardings(params, layout, mesh) for layout in (rules.LEARNER, rules.ACTOR)
  )
  return publication.make_publish(source, target)
