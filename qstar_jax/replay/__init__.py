"""Replay: the store of search trees, and the window that learners sample."""

from qstar_jax.replay.reader import ReplayReader
from qstar_jax.replay.window import ReplayWindow
from qstar_jax.replay.writer import ReplayWriter
from qstar_jax.store.manifest import EMPTY_CURSOR
from qstar_jax.store.reader import DamagedShardError

__all__ = [
  "EMPTY_CURSOR",
  "DamagedShardError",
  "ReplayReader",
  "ReplayWindow",
  "ReplayWriter",
]
