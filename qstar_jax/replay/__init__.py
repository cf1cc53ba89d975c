"""Replay: a durable store of search trees, and the window learners sample."""

from qstar_jax.replay.manifest import EMPTY_CURSOR
from qstar_jax.replay.reader import DamagedShardError, ReplayReader
from qstar_jax.replay.window import ReplayWindow
from qstar_jax.replay.writer import ReplayWriter

__all__ = [
  "EMPTY_CURSOR",
  "DamagedShardError",
  "ReplayReader",
  "ReplayWindow",
  "ReplayWriter",
]
