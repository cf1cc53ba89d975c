"""The mode `alternate`: one mesh, on which play and learning take turns.

Everything random is a function of the seed and of counters, and everything
else is in the checkpoint: killed at any instant and run again, such a run ends
with the same parameters, bit for bit, as if it had not been.

On several hosts each plays its share of the problems. All have all trees then,
and draw the same batches from them; one host keeps the store. A tree does not
depend on who plays it, so a run may go on with another number of hosts.
"""

from collections.abc import Callable
from typing import Any

from flax import nnx

from qstar_jax.distributed import hosts, publication
from qstar_jax.records import TreeRecord
from qstar_jax.replay import EMPTY_CURSOR, ReplayWriter
from qstar_jax.training.progress import Progress
from qstar_jax.training.self_play import SelfPlay
from qstar_jax.training.trainer import Trainer


class Alternate:
  """Plays an iteration's trees itself; see `TreeSource`.

  Attributes:
    self_play: None in a run that plays nothing.
  """

  def __init__(self, trainer: Trainer):
    """Opens the store.

    Raises:
      UserError: another process runs in the run directory.
    """
    self._trainer = trainer
    self._writer: ReplayWriter | None = None
    hosts.on_first(self._open)
    self.self_play: SelfPlay | None = None
    if trainer.plays:
      self.self_play = SelfPlay(
        trainer.actor_setup,
        trainer.played,
        trainer.window,
        trainer.reporter,
        trainer.flag,
      )
    self._num_plays = trainer.config.self_play.problems_per_iteration
    self._params: nnx.State | None = None
    self._params_version = 0

  def _open(self) -> None:
    """Opens the store, on the host that keeps it."""
    trainer = self._trainer
    self._writer = ReplayWriter(
      trainer.replay_dir, shard_trees=trainer.config.replay.shard_trees
    )

  def __enter__(self) -> "Alternate":
    return self

  def __exit__(self, *error) -> None:
    # What is not in a checkpoint is played again.
    if self._writer is not None:
      self._writer.close()

  @property
  def earlier(self) -> nnx.State | None:
    """See `TreeSource`."""
    proposer = self.self_play and self.self_play.proposer
    return proposer and publication.seen_on(
      proposer.earlier, self._trainer.mesh
    )

  @earlier.setter
  def earlier(self, params: nnx.State | None) -> None:
    if params is not None:
      own_mesh = self._trainer.actor_setup.mesh
      self.self_play.proposer.earlier = publication.seen_on(params, own_mesh)

  def publish(self, params: Callable[[], nnx.State], step: int) -> None:
    """See `TreeSource`."""
    self._params, self._params_version = params(), step

  def bring(self, progress: Progress, step: int) -> dict[str, Any]:
    """See `TreeSource`. The window is self-play's own."""
    played = self.self_play.play(
      self._params,
      params_version=self._params_version,
      step=step,
      index=progress.iteration,
      first_sequence=progress.num_trees,
      num_plays=self._num_plays,
    )
    hosts.on_first(lambda: self._store(played.records))
    return progress.count(len(played.records), played.tokens) | played.metrics

  def _store(self, records: list[TreeRecord]) -> None:
    for record in records:
      self._writer.append(record)
    self._writer.flush()

  def state_dict(self) -> dict[str, Any]:
    """See `TreeSource`. The host that keeps the store also writes the meta."""
    state = {"replay": self._writer and dict(self._writer.cursor)}
    if self.self_play is not None:
      state["curriculum"] = self.self_play.curriculum.state_dict()
    return state

  def load_state_dict(self, meta: dict[str, Any]) -> None:
    """See `TreeSource`."""
    hosts.on_first(lambda: self._writer.truncate(meta["replay"]))
    if self.self_play is not None:
      self.self_play.curriculum.load_state_dict(meta["curriculum"])

  def start_anew(self) -> None:
    """See `TreeSource`."""
    hosts.on_first(lambda: self._writer.truncate(EMPTY_CURSOR))
