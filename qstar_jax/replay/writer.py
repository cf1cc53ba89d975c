"""Appends an actor's trees to the store."""

from etils import epath

from qstar_jax.records import TreeRecord
from qstar_jax.replay.codec import TREES
from qstar_jax.store.writer import StoreWriter


class ReplayWriter(StoreWriter[TreeRecord]):
  """Appends one actor's trees, which are numbered, to its folder: each once."""

  def __init__(
    self, directory: epath.PathLike, actor_id: int = 0, *, shard_trees: int
  ):
    """Opens the actor's folder; see `StoreWriter`.

    Args:
      directory: of the store; a bucket's path will do.
      actor_id: whose trees these are, >= 0.
      shard_trees: trees in a full shard, >= 1.

    Raises:
      UserError: as `StoreWriter`.
    """
    super().__init__(directory, TREES, actor_id, shard_records=shard_trees)
    self._actor_id = actor_id

  def append(self, record: TreeRecord) -> bool:
    """Takes a tree, unless it was taken before.

    Args:
      record: whose sequence is at most `next_sequence`.

    Returns:
      False if the tree's sequence was taken before; it is stored once.

    Raises:
      ValueError: the tree is another actor's, leaves a gap in the sequence, or
        has a field of another type, dtype or shape than `TreeRecord` states.
      UserError: as `extend`.
    """
    if record.actor_id != self._actor_id:
      raise ValueError(
        f"Actor {record.actor_id}'s tree given to the writer of actor "
        f"{self._actor_id}; each actor has a writer of its own."
      )
    if record.sequence > self.next_sequence:
      raise ValueError(
        f"Tree {record.sequence} given when {self.next_sequence} is next; "
        "sequences count an actor's trees without a gap."
      )
    if record.sequence < self.next_sequence:
      return False
    self.extend([record])
    return True
