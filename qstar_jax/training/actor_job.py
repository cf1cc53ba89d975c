"""The mode `files`, an actor's side: one of any number of such jobs.

On several hosts the first looks at the run and stores trees; each loads what
plays, and plays its share.
"""

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from etils import epath

from qstar_jax import configuration
from qstar_jax.checkpoint import Loaded
from qstar_jax.config import ExperimentConfig
from qstar_jax.distributed import hosts
from qstar_jax.distributed.mesh import make_mesh, own_part
from qstar_jax.errors import UserError
from qstar_jax.replay import ReplayReader, ReplayWindow, ReplayWriter
from qstar_jax.replay.codec import TREES
from qstar_jax.store import files
from qstar_jax.store import manifest as manifest_lib
from qstar_jax.training import setup as setup_lib
from qstar_jax.training.preemption import PreemptionFlag
from qstar_jax.training.reporting import Reporter, Silence, open_reporter
from qstar_jax.training.self_play import Round, SelfPlay
from qstar_jax.training.waiting import Waiter
from qstar_jax.training.watch import RunWatch, Status


class ActorJob:
  """Plays shards of trees with what the learner has published."""

  def __init__(
    self,
    config: ExperimentConfig,
    run_dir: epath.Path,
    writer: ReplayWriter | None,
    reporter: Reporter | Silence,
    flag: PreemptionFlag,
    *,
    actor_id: int,
  ):
    """Waits for the first params that are to play.

    Args:
      config: of the run, validated, also for the devices.
      run_dir: of the run.
      writer: of this actor's trees; None on hosts that store none.
      reporter: hears of every shard.
      flag: asks to stop.
      actor_id: who plays, >= 0.

    Raises:
      Preempted: the flag was set.
      UserError: the run is one of another config, or cannot be read.
    """
    self._config = config
    self._run_dir = run_dir
    self._writer = writer
    self._reporter = reporter
    self._waiter = Waiter(run_dir, flag)
    self._watch = RunWatch(run_dir, self._waiter)
    self._manifests = manifest_lib.Manifests(run_dir / "replay", TREES)
    self._mesh = own_part(make_mesh(config.mesh))
    loaded = self._waiter.until(
      self._newest, f"params of the learner in {run_dir / 'checkpoints'}"
    )
    # It may have begun only now.
    hosts.on_first(lambda: configuration.check_run_dir(run_dir, config))
    setup = setup_lib.of_checkpoint(config, loaded, self._mesh)
    self._params, self._version = loaded.params, loaded.step
    progress, self._num_trees, own = hosts.on_first(
      lambda: (
        writer.progress,
        writer.next_sequence,
        {writer.folder.name: writer.cursor},
      )
    )
    self._rounds = progress.get("rounds", 0)
    self._num_tokens = progress.get("num_tokens", 0)
    window = ReplayWindow(config.replay, seed=config.seed)
    window.update(
      ReplayReader(run_dir / "replay", skip_damaged=True, cursors=own)
    )
    self._self_play = SelfPlay(
      setup,
      self._params,
      window,
      reporter,
      flag,
      actor_id=actor_id,
    )
    if "curriculum" in progress:
      self._self_play.curriculum.load_state_dict(progress["curriculum"])

  def run(self) -> None:
    """Plays until the learner says that the run is done.

    Raises:
      Preempted: the flag was set; what is stored is whole.
      UserError: the run or the disk are at fault.
    """
    while not self._wait_for_room().is_done:
      if (loaded := self._newer()) is not None:
        self._params, self._version = loaded.params, loaded.step
      start = time.monotonic()
      played = self._self_play.play(
        self._params,
        params_version=self._version,
        step=self._version,
        index=self._rounds,
        first_sequence=self._num_trees,
        num_plays=self._config.replay.shard_trees,
      )
      self._store(played)
      self._reporter.log(
        {
          "kind": "self_play",
          "step": self._version,
          "round": self._rounds,
          "trees": self._num_trees,
          "tokens": self._num_tokens,
          **played.metrics,
          "seconds": time.monotonic() - start,
        }
      )

  def _store(self, played: Round) -> None:
    """Makes a shard of a round, together with what the next round needs."""
    self._rounds += 1
    self._num_trees += len(played.records)
    self._num_tokens += played.tokens
    progress = {
      "rounds": self._rounds,
      "num_tokens": self._num_tokens,
      "curriculum": played.curriculum,
    }

    def write():
      self._writer.extend(played.records, progress)
      self._writer.flush()

    hosts.on_first(write)

  def _newest(self) -> Loaded | None:
    """What is to play, if the learner has come so far."""
    status = hosts.on_first(self._watch.status)
    if status is None or not status.is_warm:
      return None
    return self._load(status.player_step)

  def _newer(self) -> Loaded | None:
    """What is to play in the place of what does, if there is such."""
    status = hosts.on_first(self._watch.status)
    if status.player_step == self._version:
      return None
    return self._load(status.player_step)

  def _load(self, step: int) -> Loaded | None:
    """A checkpoint for playing; None if it vanished before all had it."""
    own: list[Loaded | None] = []
    hosts.together(lambda: own.append(self._watch.load(step, self._mesh)))
    is_there = all(hosts.exchange(own[0] is not None))
    return own[0] if is_there else None

  def _oldest(self, status: Status) -> int:
    """Version that trees need to be learned in the iteration that is next.

    Those that are too old take no room: nobody will make any.
    """
    config = self._config
    if config.replay.max_staleness == 0:
      return 0
    last_step = status.step + config.learner.steps_per_iteration - 1
    return last_step - config.replay.max_staleness

  def _wait_for_room(self) -> Status:
    """Until the run is done, or the learner has room for trees."""
    config = self._config
    room = config.self_play.max_lead * config.self_play.problems_per_iteration

    def look() -> Status | None:
      status = self._watch.status()
      ahead = trees_ahead(
        self._manifests.read(), status.next_sequence, self._oldest(status)
      )
      return status if status.is_done or ahead < room else None

    return self._waiter.until(
      lambda: hosts.on_first(look),
      f"the learner of {self._run_dir}: {room} trees and more are stored that "
      "it has not counted, as many as self_play.max_lead allows",
    )


def trees_ahead(
  manifests: Mapping[epath.Path, manifest_lib.Manifest],
  counted: Mapping[int, int],
  oldest: int,
) -> int:
  """Trees in the store that the learner has not counted yet, and may learn.

  Args:
    manifests: of the store.
    counted: for each actor, the first tree that was not counted.
    oldest: version of the params of trees that are not too old.
  """
  return sum(
    max(0, shard.last_sequence + 1 - max(shard.first_sequence, first))
    for manifest in manifests.values()
    for first in [counted.get(manifest.stream_id, 0)]
    for shard in manifest.shards
    if shard.max_params_version >= oldest
  )


def run(
  config: ExperimentConfig,
  run_dir: epath.PathLike,
  actor_id: int,
  flag: PreemptionFlag,
  **display: Any,
) -> None:
  """Plays as an actor of a run until the run is done.

  Args:
    config: of the run, validated, also for the devices.
    run_dir: of the run.
    actor_id: who plays, >= 0; no two processes are the same actor.
    flag: asks to stop.
    **display: of `Reporter`.

  Raises:
    Preempted: the flag was set; what is stored is whole.
    UserError: another process is this actor; the run is one of another config;
      or the disk is at fault.
  """
  run_dir = epath.Path(run_dir)
  hosts.on_first(lambda: configuration.check_run_dir(run_dir, config))
  writer: ReplayWriter | None = None
  with contextlib.ExitStack() as stack:

    def open_writer() -> str:
      nonlocal writer
      # Its lock is what keeps a second process out of the metrics too.
      writer = _open_writer(run_dir, actor_id, config.replay.shard_trees)
      stack.callback(writer.close)
      return writer.folder.name

    directory = run_dir / "actors" / hosts.on_first(open_writer)
    reporter = stack.enter_context(
      open_reporter(directory, config=config, **display)
    )
    ActorJob(config, run_dir, writer, reporter, flag, actor_id=actor_id).run()


def _open_writer(
  run_dir: epath.Path, actor_id: int, shard_trees: int
) -> ReplayWriter:
  try:
    return ReplayWriter(run_dir / "replay", actor_id, shard_trees=shard_trees)
  except files.HeldError:
    raise UserError(
      f"--actor-id {actor_id}: plays for {run_dir} in another process already; "
      "stop that one, or give this one an id of its own"
    ) from None
