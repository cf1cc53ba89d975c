"""Checkpoints: what a run needs to go on, saved atomically with Orbax.

A checkpoint has three items: `params`, `opt_state`, and `meta`, a JSON object
with the resolved config, the vocabulary, counters and the states of replay and
curriculum. Its number is the learner's gradient step. Random numbers are
functions of the seed and the counters and need no state.
"""

import base64
import dataclasses
from typing import Any

from etils import epath
from flax import nnx
import jax
from jax.sharding import NamedSharding, PartitionSpec as P
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from qstar_jax import configuration
from qstar_jax.config import CheckpointConfig, ExperimentConfig
from qstar_jax.errors import UserError
from qstar_jax.learner.train_step import TrainState
from qstar_jax.model.transformer import init_model
from qstar_jax.text.vocabulary import Vocabulary, from_bytes

# Raise this when `meta` or the tree of parameters changes shape.
SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A checkpoint for playing: parameters and what gives them meaning.

  Attributes:
    config: of the run that made it.
    vocabulary: of the network.
    graphdef: structure of the network.
    params: of the network.
    step: gradient steps taken.
    meta: everything else, see the module's docstring.
  """

  config: ExperimentConfig
  vocabulary: Vocabulary
  graphdef: nnx.GraphDef
  params: nnx.State
  step: int
  meta: dict[str, Any]


class Checkpointer:
  """The checkpoints of one run, newest first in line."""

  def __init__(self, run_dir: epath.PathLike, config: CheckpointConfig):
    """Opens `run_dir`/checkpoints, which need not exist yet."""
    options = ocp.CheckpointManagerOptions(
      preservation_policy=checkpoint_managers.LatestN(config.keep),
      cleanup_tmp_directories=True,
    )
    self._manager = ocp.CheckpointManager(
      (epath.Path(run_dir) / "checkpoints").resolve(), options=options
    )

  def __enter__(self) -> "Checkpointer":
    return self

  def __exit__(self, *_) -> None:
    self._manager.close()

  def latest_step(self) -> int | None:
    """Gradient step of the newest checkpoint; None if there is none."""
    return self._manager.latest_step()

  def save(self, state: TrainState, meta: dict[str, Any]) -> None:
    """Saves in the background; an older save is waited for first.

    Args:
      state: of the learner; may be consumed once this returns.
      meta: JSON-able.
    """
    step = int(state.step)
    meta = {**meta, "schema_version": SCHEMA_VERSION, "step": step}
    self._manager.save(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardSave(nnx.to_pure_dict(state.params)),
        opt_state=ocp.args.StandardSave(_as_pure(state.opt_state)),
        meta=ocp.args.JsonSave(meta),
      ),
    )

  def wait(self) -> None:
    """Waits for a save in the background; raises what went wrong in it."""
    self._manager.wait_until_finished()
    self._manager.check_for_errors()

  def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """The newest checkpoint.

    Args:
      state: of the same shapes and shardings, e.g. a fresh one; consumed.

    Returns:
      The state and the meta that were saved.

    Raises:
      UserError: the checkpoint is of another schema or does not fit.
    """
    step = self._manager.latest_step()
    directory = self._manager.directory / str(step)
    meta = _read_meta(self._manager, step, directory)
    params, opt_state = _restore(
      self._manager,
      step,
      directory,
      params=nnx.to_pure_dict(state.params),
      opt_state=_as_pure(state.opt_state),
    )
    nnx.replace_by_pure_dict(state.params, params)
    structure = jax.tree.structure(state.opt_state)
    opt_state = jax.tree.unflatten(structure, jax.tree.leaves(opt_state))
    step_array = jax.device_put(
      jax.numpy.int32(step), state.step.sharding
    )
    return TrainState(step_array, state.params, opt_state), meta


def _as_pure(tree: Any) -> dict[str, Any]:
  """Any pytree as a flat dictionary of its leaves, in order."""
  return {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))}


def _read_meta(manager, step: int, directory: epath.Path) -> dict[str, Any]:
  try:
    meta = manager.restore(
      step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
    )["meta"]
  except (OSError, ValueError, KeyError) as error:
    raise UserError(
      f"{directory} is no readable checkpoint ({type(error).__name__}); restore "
      "it from a copy, or remove it so that the one before it is used"
    ) from error
  version = meta.get("schema_version")
  if version != SCHEMA_VERSION:
    raise UserError(
      f"{directory} has checkpoint schema {version}, this program reads "
      f"{SCHEMA_VERSION}; use the version of qstar_jax that made it, or start a "
      "new run directory"
    )
  return meta


def _restore(manager, step: int, directory: epath.Path, **items) -> list[Any]:
  """Restores items into the shapes and shardings of the given ones."""

  def abstract(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

  args = {
    name: ocp.args.StandardRestore(jax.tree.map(abstract, item))
    for name, item in items.items()
  }
  try:
    restored = manager.restore(step, args=ocp.args.Composite(**args))
  except (OSError, ValueError, KeyError) as error:
    reason = str(error).strip().splitlines()[0]
    raise UserError(
      f"{directory} does not fit the network of its config ({reason[:200]}); "
      "the checkpoint is damaged or was edited: restore it from a copy"
    ) from error
  return [restored[name] for name in items]


def vocabulary_to_json(vocabulary: Vocabulary) -> dict[str, str]:
  """For `meta`; the fingerprint guards against damage."""
  return {
    "bytes": base64.b64encode(vocabulary.to_bytes()).decode(),
    "fingerprint": vocabulary.fingerprint,
  }


def vocabulary_from_json(value: dict[str, str]) -> Vocabulary:
  """The inverse of `vocabulary_to_json`.

  Raises:
    UserError: the vocabulary is not the one that was saved.
  """
  vocabulary = from_bytes(base64.b64decode(value["bytes"]))
  if vocabulary.fingerprint != value["fingerprint"]:
    raise UserError(
      f"the checkpoint's vocabulary has fingerprint {vocabulary.fingerprint}, "
      f"its parameters were trained with {value['fingerprint']}; they mean "
      "nothing with another vocabulary: restore the checkpoint from a copy"
    )
  return vocabulary


def load(path: epath.PathLike) -> Loaded:
  """The newest checkpoint of a run, or one given by its own directory.

  Args:
    path: a run directory, or `RUN/checkpoints/STEP`.

  Returns:
    The checkpoint, with replicated parameters on all devices.

  Raises:
    UserError: there is none, or it cannot be read.
  """
  path = epath.Path(path).resolve()
  is_one = path.name.isdigit() and path.parent.name == "checkpoints"
  root = path.parent if is_one else path / "checkpoints"
  if not root.exists():
    raise UserError(
      f"{path} is no run directory: it has no checkpoints/; give a directory "
      "made by `qstar train`, or RUN/checkpoints/STEP"
    )
  with ocp.CheckpointManager(
    root, options=ocp.CheckpointManagerOptions(read_only=True)
  ) as manager:
    steps = manager.all_steps()
    step = int(path.name) if is_one else manager.latest_step()
    if step not in steps:
      known = ", ".join(map(str, sorted(steps))) or "none yet"
      raise UserError(f"{path} has no finished checkpoint; there are: {known}")
    directory = root / str(step)
    meta = _read_meta(manager, step, directory)
    config = configuration.from_json(meta["config"])
    vocabulary = vocabulary_from_json(meta["vocabulary"])
    graphdef, params = init_model(config.model, vocabulary.size, config.seed)
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    params = jax.device_put(params, NamedSharding(mesh, P()))
    (pure,) = _restore(
      manager, step, directory, params=nnx.to_pure_dict(params)
    )
  nnx.replace_by_pure_dict(params, pure)
  return Loaded(config, vocabulary, graphdef, params, step, meta)
