"""A run as another process sees it: by its checkpoints, which it only reads."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from etils import epath
from jax.sharding import Mesh

from qstar_jax import checkpoint as checkpoint_lib
from qstar_jax import configuration
from qstar_jax.checkpoint import CheckpointError
from qstar_jax.store import files
from qstar_jax.training.progress import Progress
from qstar_jax.training.waiting import Waiter

# Looks at a checkpoint that cannot be read. One that is being removed is gone
# by then; one that is there still is damaged.
_LOOKS = 10

T = TypeVar("T")


class Status(NamedTuple):
  """What the newest checkpoint says of a run.

  Attributes:
    step: of the checkpoint.
    player_step: of the checkpoint whose params play.
    is_warm: the warm start is over.
    is_done: so is the run.
    next_sequence: for each actor, the first tree that was not counted yet.
  """

  step: int
  player_step: int
  is_warm: bool
  is_done: bool
  next_sequence: dict[int, int]


class RunWatch:
  """Looks at the checkpoints of a run that goes on.

  A checkpoint that is listed may be gone before it is read: the learner keeps
  the newest few.
  """

  def __init__(self, run_dir: epath.PathLike, waiter: Waiter):
    """Reads nothing yet."""
    self._run_dir = epath.Path(run_dir)
    self._waiter = waiter
    self._status: Status | None = None
    self._names: set[str] | None = None
    self._steps: list[int] = []

  def steps(self) -> list[int]:
    """Steps of the checkpoints that there are, ascending.

    They are looked into only when others are listed than before.
    """
    names = self._listed()
    if names != self._names:
      # Those that were listed before are about to be removed.
      with _orbax_quiet():
        self._steps = checkpoint_lib.finished_steps(self._run_dir)
      # In a bucket what is listed may be finished later.
      finished = set(map(str, self._steps))
      self._names = names if names <= finished else None
    return self._steps

  def _listed(self) -> set[str]:
    """Names of the checkpoints, of those too that are not finished."""
    try:
      children = files.children(self._run_dir / "checkpoints")
    except files.MissingError:
      return set()
    return {path.name for path in children if path.name.isdigit()}

  def status(self) -> Status | None:
    """Of the newest checkpoint; None as long as there is none.

    Raises:
      Preempted: the run is asked to stop.
      UserError: it cannot be read, and is not about to be replaced.
    """
    steps = self.steps()
    known = self._status and self._status.step
    if steps and steps[-1] != known:
      meta = self.read(
        steps[-1], lambda: checkpoint_lib.latest_meta(self._run_dir)
      )
      if meta is not None:
        self._status = _status(meta)
    return self._status

  def load(self, step: int, mesh: Mesh) -> checkpoint_lib.Loaded | None:
    """A checkpoint for playing; None if it vanished. Raises as `status`.

    Args:
      step: of the checkpoint.
      mesh: that the params are to lie on, in the actor's layout.
    """
    path = self._run_dir / "checkpoints" / str(step)
    return self.read(step, lambda: checkpoint_lib.load(path, mesh))

  def read(self, step: int, look: Callable[[], T]) -> T | None:
    """What `look` reads of a checkpoint; None if it vanished meanwhile.

    Args:
      step: of the checkpoint.
      look: raises CheckpointError if it cannot be read.

    Raises:
      Preempted: the run is asked to stop.
      CheckpointError: of `look`; the checkpoint is damaged.
      UserError: of `look`, at once.
    """
    for _ in range(_LOOKS):
      try:
        with _orbax_quiet():
          return look()
      except CheckpointError as error:
        failure = error
      self._waiter.pause()
      if step not in self.steps():
        return None
    raise failure


@contextlib.contextmanager
def _orbax_quiet() -> Iterator[None]:
  """Without its warnings of files that have just been removed."""
  logger = logging.getLogger("absl")
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(level)


def _status(meta: dict[str, Any]) -> Status:
  config = configuration.from_json(meta["config"])
  progress = Progress(**meta["progress"])
  gate = meta.get("gate")
  return Status(
    step=meta["step"],
    player_step=gate["step"] if gate else meta["step"],
    is_warm=progress.warm_steps >= config.warm_start.steps,
    is_done=progress.is_done(config),
    next_sequence=dict(meta["window"]["next_sequence"]),
  )
