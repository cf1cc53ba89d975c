"""Reads the trees of a store."""

from etils import epath

from qstar_jax.records import TreeRecord
from qstar_jax.replay.codec import TREES
from qstar_jax.store.reader import StoreReader


class ReplayReader(StoreReader[TreeRecord]):
  """The trees of every actor, which are the store's streams."""

  def __init__(self, directory: epath.PathLike, **kwargs):
    """Lists the store; see `StoreReader`."""
    super().__init__(directory, TREES, **kwargs)
