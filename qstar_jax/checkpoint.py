"""Checkpoints: what a run needs to go on, saved atomically with Orbax.

A checkpoint has the items `params`, `opt_state` and `meta`; and, where they are
kept, `average`, `reference`, `target_heads` and `earlier`, which is the earlier
player of the proposer. `meta` is a JSON object with the resolved config, the
vocabulary, counters and the states of replay, curriculum and gate. The
checkpoint's number is the learner's gradient step. Random numbers are functions
of the seed and the counters and need no state.
"""

import base64
import contextlib
import dataclasses
import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers

from qstar_jax import configuration
from qstar_jax.config import CheckpointConfig, ExperimentConfig, MeshConfig
from qstar_jax.distributed import hosts, rules
from qstar_jax.distributed.mesh import make_mesh
from qstar_jax.errors import UserError
from qstar_jax.learner.train_step import TrainState
from qstar_jax.model import partitioning
from qstar_jax.model.transformer import abstract_model
from qstar_jax.store import files
from qstar_jax.text.vocabulary import Vocabulary, from_bytes

# Raise this when `meta` or the tree of parameters changes shape.
SCHEMA_VERSION = 1

# Attempts to list the checkpoints of a run that may remove some meanwhile.
_OPENINGS = 10

_LOGGER = logging.getLogger("absl")


class CheckpointError(UserError):
  """A checkpoint cannot be read: it is damaged, or is being removed."""


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


class _Pinned(checkpoint_managers.PreservationPolicy):
  """Keeps the checkpoints of some steps, which may change."""

  def __init__(self):
    self.steps: frozenset[int] = frozenset()

  def should_preserve(
    self,
    checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
    *,
    context: checkpoint_managers.PreservationContext,
  ) -> Sequence[bool]:
    return [checkpoint.step in self.steps for checkpoint in checkpoints]


class Checkpointer:
  """The checkpoints of one run, for its one writer. A context manager."""

  def __init__(self, run_dir: epath.PathLike, config: CheckpointConfig):
    """Opens `run_dir`/checkpoints, which need not exist yet.

    What a kill left half-written there is removed.
    """
    self._pinned = _Pinned()
    options = ocp.CheckpointManagerOptions(
      preservation_policy=checkpoint_managers.AnyPreservationPolicy(
        [checkpoint_managers.LatestN(config.keep), self._pinned]
      ),
      cleanup_tmp_directories=True,
    )
    directory = epath.Path(run_dir).resolve() / "checkpoints"
    with _explain_failed_save(directory):
      self._manager = ocp.CheckpointManager(directory, options=options)

  def __enter__(self) -> "Checkpointer":
    # Orbax logs an error of its threads many times before it raises it here.
    self._log_level = _LOGGER.level
    _LOGGER.setLevel(logging.CRITICAL)
    return self

  def __exit__(self, *_) -> None:
    try:
      with _explain_failed_save(self._manager.directory):
        self._manager.close()
    finally:
      _LOGGER.setLevel(self._log_level)

  def latest_step(self) -> int | None:
    """Gradient step of the newest checkpoint; None if there is none."""
    return self._manager.latest_step()

  def save(
    self,
    state: TrainState,
    meta: dict[str, Any],
    earlier: nnx.State | None = None,
  ) -> None:
    """Saves in the background; an older save is waited for first.

    Args:
      state: of the learner; may be consumed once this returns. Its step is
        larger than that of every checkpoint before.
      meta: JSON-able.
      earlier: params of an earlier player, if one is kept.

    Raises:
      UserError: this or the save before could not be written; the checkpoints
        before that are whole.
    """
    step = int(state.step)
    meta = {**meta, "schema_version": SCHEMA_VERSION, "step": step}
    if gate := meta.get("gate"):
      # Also that of the player before: the newest whole checkpoint may name it.
      before = max(self._pinned.steps, default=gate["step"])
      self._pinned.steps = frozenset({gate["step"], before})
    _check_space(self._manager.directory, (state, earlier))
    with _explain_failed_save(self._manager.directory):
      self._manager.save(
        step,
        args=ocp.args.Composite(
          meta=ocp.args.JsonSave(meta),
          **{
            name: ocp.args.StandardSave(item)
            for name, item in _items(state, earlier).items()
          },
        ),
      )

  def wait(self) -> None:
    """Waits for the save in the background; UserError if it failed."""
    with _explain_failed_save(self._manager.directory):
      self._manager.wait_until_finished()

  def restore(
    self,
    state: TrainState,
    earlier: nnx.State | None = None,
    *,
    step: int | None = None,
  ) -> tuple[TrainState, dict[str, Any]]:
    """The newest checkpoint, or one of the others that are kept.

    Args:
      state: of the same shapes, e.g. a fresh one; consumed. Its shardings are
        the new ones, whatever the devices and the mesh were that saved.
      earlier: likewise, if one was kept; overwritten with it.
      step: of the checkpoint; the newest by default.

    Returns:
      The state and the meta that were saved.

    Raises:
      UserError: the checkpoint is of another schema.
      CheckpointError: it cannot be read, or does not fit.
    """
    self.wait()
    step = self._manager.latest_step() if step is None else step
    directory = self._manager.directory / str(step)
    meta = _read_meta(self._manager, step, directory)
    if gate := meta.get("gate"):
      self._pinned.steps = frozenset({gate["step"]})
    items = _restore(self._manager, step, directory, _items(state, earlier))
    for name, params in _networks(state, earlier).items():
      nnx.replace_by_pure_dict(params, items[name])
    structure = jax.tree.structure(_adapted(state))
    leaves = jax.tree.leaves(items["opt_state"])
    opt_state, kl_coefficient = jax.tree.unflatten(structure, leaves)
    return state._replace(
      step=jax.device_put(jax.numpy.int32(step), state.step.sharding),
      opt_state=opt_state,
      kl_coefficient=kl_coefficient,
    ), meta


def _networks(
  state: TrainState, earlier: nnx.State | None
) -> dict[str, nnx.State]:
  """The parameters that a checkpoint holds by the names of their items."""
  networks = {
    "params": state.params,
    "average": state.average,
    "reference": state.reference,
    "target_heads": state.target_heads,
    "earlier": earlier,
  }
  return {k: params for k, params in networks.items() if params is not None}


def _adapted(state: TrainState) -> tuple[Any, Any]:
  """What the steps adapt beside parameters; None has no leaves."""
  return state.opt_state, state.kl_coefficient


def _items(state: TrainState, earlier: nnx.State | None) -> dict[str, Any]:
  """The arrays of a checkpoint by the names of their items."""
  networks = _networks(state, earlier)
  return {
    "opt_state": _as_pure(_adapted(state)),
    **{name: nnx.to_pure_dict(params) for name, params in networks.items()},
  }


def _check_space(directory: epath.Path, state: Any) -> None:
  """Refuses arrays that the disk has no room for.

  TensorStore would find out too, but late, in its threads, and at length.
  """
  if files.is_local(directory):
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(directory).free
    if free < num_bytes:
      raise UserError(
        f"{directory}: a checkpoint takes {num_bytes} bytes and {free} are "
        "free; free space there and run again: the checkpoints before are whole"
      )


@contextlib.contextmanager
def _explain_failed_save(directory: epath.Path) -> Iterator[None]:
  """Turns what Orbax raises in context into a UserError."""
  try:
    yield
  except Exception as error:
    hosts.raise_if_lost(error)
    raise UserError(
      f"{directory}: no checkpoint could be written ({_reason(error)}); free "
      "space there or make it writable, and run again: the checkpoints before "
      "are whole"
    ) from error


def _reason(error: Exception) -> str:
  """What was at the bottom of an error of Orbax, which may be of any type.

  TensorStore's read `CODE: place: place: cause [details='..']`.
  """
  while error.__cause__ is not None:
    error = error.__cause__
  lines = str(error).strip().splitlines() or [type(error).__name__]
  line = re.sub(r" \[\w+='.*", "", lines[0])
  if re.match(r"[A-Z_]+: ", line):
    line = line.rsplit(": ", maxsplit=1)[-1]
  return line[:200]


def _as_pure(tree: Any) -> dict[str, Any]:
  """Any pytree as a flat dictionary of its leaves, in order."""
  return {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))}


def _read_meta(manager, step: int, directory: epath.Path) -> dict[str, Any]:
  try:
    meta = _attempt(manager, step, directory, meta=ocp.args.JsonRestore())[
      "meta"
    ]
    version = meta["schema_version"]
  except files.UnreachableError:
    raise
  except Exception as error:
    hosts.raise_if_lost(error)
    raise CheckpointError(
      f"{directory} is no readable checkpoint ({_reason(error)}); restore it "
      "from a copy, or remove it so that the one before it is used"
    ) from error
  if version != SCHEMA_VERSION:
    raise UserError(
      f"{directory} has checkpoint schema {version}, this program reads "
      f"{SCHEMA_VERSION}; use the version of qstar_jax that made it, or start "
      "a new run directory"
    )
  return meta


def _restore(
  manager, step: int, directory: epath.Path, items: dict[str, Any]
) -> dict[str, Any]:
  """Restores items into the shapes and shardings of the given ones.

  Those are arrays, or `jax.ShapeDtypeStruct`s with shardings.
  """

  def abstract(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

  args = {
    name: ocp.args.StandardRestore(jax.tree.map(abstract, item))
    for name, item in items.items()
  }
  try:
    restored = _attempt(manager, step, directory, **args)
  except files.UnreachableError:
    raise
  except Exception as error:
    hosts.raise_if_lost(error)
    raise CheckpointError(
      f"{directory} does not hold the arrays of its config's network "
      f"({_reason(error)}); it is damaged or was edited: restore it from a "
      "copy, or remove it so that the one before it is used"
    ) from error
  return {name: restored[name] for name in items}


def _attempt(manager, step: int, directory: epath.Path, **args) -> Any:
  return files.attempt(
    directory, lambda: manager.restore(step, args=ocp.args.Composite(**args))
  )


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


def latest_meta(run_dir: epath.PathLike) -> dict[str, Any] | None:
  """The meta of a run's newest checkpoint; None if it has no checkpoint.

  Raises:
    UserError: it cannot be read, or is of another schema.
  """
  root = epath.Path(run_dir).resolve() / "checkpoints"
  if not files.exists(root):
    return None
  with _open_for_reading(root) as manager:
    step = manager.latest_step()
    if step is None:
      return None
    return _read_meta(manager, step, root / str(step))


def finished_steps(run_dir: epath.PathLike) -> list[int]:
  """Steps of a run's whole checkpoints, ascending; none if there is no run."""
  root = epath.Path(run_dir).resolve() / "checkpoints"
  if not files.exists(root):
    return []
  with _open_for_reading(root) as manager:
    return sorted(manager.all_steps())


def _open_for_reading(root: epath.Path) -> ocp.CheckpointManager:
  if not files.exists(root):
    raise UserError(
      f"{root.parent} is no run directory: it has no checkpoints/; give a "
      "directory made by `qstar train`, or RUN/checkpoints/STEP"
    )
  # One that is called read-only warns of its own defaults. Every process reads
  # in its own time.
  me = hosts.index()
  options = ocp.CheckpointManagerOptions(
    create=False,
    multiprocessing_options=ocp.options.MultiprocessingOptions(
      primary_host=me,
      active_processes={me},
      barrier_sync_key_prefix=f"process_{me}",
    ),
  )
  for _ in range(_OPENINGS):
    try:
      return files.attempt(
        root, lambda: ocp.CheckpointManager(root, options=options)
      )
    except FileNotFoundError as error:
      # A run that goes on has removed a checkpoint that was just listed.
      failure = error
    except OSError as error:
      failure = error
      break
  raise UserError(
    f"{root} cannot be listed ({_reason(failure)}); check that it is there and "
    "readable, and run again"
  ) from failure


def load(path: epath.PathLike, mesh: Mesh | None = None) -> Loaded:
  """What plays in a run, or one of its checkpoints by its own directory.

  That is the newest checkpoint; behind a gate, the one that it accepted last.

  Args:
    path: a run directory, or `RUN/checkpoints/STEP`.
    mesh: that the parameters come to lie on in the actor's layout, whatever the
      run's was; by default all devices have them whole.

  Returns:
    The checkpoint.

  Raises:
    CheckpointError: there is none, or it cannot be read.
    UserError: it is of another schema, or the mesh does not divide its network.
  """
  path = epath.Path(path).resolve()
  is_one = path.name.isdigit() and path.parent.name == "checkpoints"
  root = path.parent if is_one else path / "checkpoints"
  with _open_for_reading(root) as manager:
    steps = manager.all_steps()
    step = int(path.name) if is_one else manager.latest_step()
    if step not in steps:
      known = ", ".join(map(str, sorted(steps))) or "none yet"
      raise CheckpointError(
        f"{path} is no finished checkpoint; use one of those that there are: "
        f"{known}"
      )
    meta = _read_meta(manager, step, root / str(step))
    if (gate := meta.get("gate")) and not is_one:
      step = gate["step"]
      meta = _read_meta(manager, step, root / str(step))
    directory = root / str(step)
    config = configuration.from_json(meta["config"])
    vocabulary = vocabulary_from_json(meta["vocabulary"])
    graphdef, params = abstract_model(config.model, vocabulary.size)
    params = partitioning.abstract_params(
      params, rules.ACTOR, mesh or make_mesh(MeshConfig())
    )
    played = "average" if config.learner.ema_decay > 0 else "params"
    items = _restore(
      manager, step, directory, {played: nnx.to_pure_dict(params)}
    )
  nnx.replace_by_pure_dict(params, items[played])
  return Loaded(config, vocabulary, graphdef, params, step, meta)
