"""Where an iteration's trees come from: what the modes of a run differ in."""

from collections.abc import Callable
from typing import Any, Protocol

from flax import nnx

from qstar_jax.training.progress import Progress


class TreeSource(Protocol):
  """Brings the learner trees. A context manager: entered before all else.

  Attributes:
    earlier: params of the proposer's earlier player, which a checkpoint is to
      hold, on the learner's mesh; set after one was restored. None if there is
      none, or if it is kept elsewhere.
  """

  earlier: nnx.State | None

  def __enter__(self) -> "TreeSource": ...

  def __exit__(self, *error) -> None: ...

  def publish(self, params: Callable[[], nnx.State], step: int) -> None:
    """Says which params play from now on.

    Called before the first trees are asked for, and after every iteration.

    Args:
      params: gives them, until the learner's next step. It moves them to the
        actor's layout: not called where nobody here plays with them.
      step: gradient step of the params.
    """

  def bring(self, progress: Progress, step: int) -> dict[str, Any]:
    """Puts the trees of an iteration into the learner's window.

    Args:
      progress: of the run; the trees are counted in it.
      step: of the learner.

    Returns:
      What to log of them.

    Raises:
      Preempted: the run is asked to stop.
      UserError: no trees can be had.
    """

  def state_dict(self) -> dict[str, Any]:
    """What a checkpoint's meta is to hold, JSON-able."""

  def load_state_dict(self, meta: dict[str, Any]) -> None:
    """Goes back to a checkpoint, of which `meta` is the whole meta."""

  def start_anew(self) -> None:
    """Forgets trees of a run that was cut before its first checkpoint."""
