"""The step cache of lines without a choice: one candidate at every block.

Nothing is selected, so a step's keys and values are kept as they were decoded
and no token runs twice. Block n holds the step that was sampled at n, and not,
as in `step_cache`, the one that led there; a path still lists the blocks of its
steps.
"""

import chex
import jax
import jax.numpy as jnp

from qstar_jax.model import step_cache


def follow_leaf(
  store: step_cache.StepStore, leaf: step_cache.Leaf
) -> step_cache.Prefix:
  """The prefix of leaves of a store with one candidate: nothing is run."""
  blocks_BWJ = jnp.concatenate([leaf.ancestors, leaf.parent[..., None]], axis=2)
  return step_cache.load_prefix(store, blocks_BWJ, num_empty=0)


def keep_steps(
  store: step_cache.StepStore,
  leaf: step_cache.Leaf,
  prefix: step_cache.Prefix,
  keys: list[chex.Array],
  values: list[chex.Array],
  length_BW: chex.Array,
  block: chex.Array,
) -> step_cache.StepStore:
  """Keeps the steps sampled at blocks `block`..`block + W - 1` as decoded.

  Args:
    store: with one candidate; consumed.
    leaf: that was expanded.
    prefix: that was read from the store.
    keys: L x [B * W, K, 1, T, C], of the sampled steps.
    values: the same.
    length_BW: int32 [B, W], tokens of the sampled steps.
    block: int32 scalar.

  Returns:
    The store.
  """
  b, w = length_BW.shape
  # Written after the store was read: see `step_cache.run_leaf`.
  keys, values, _ = jax.lax.optimization_barrier((keys, values, prefix))

  def write(blocks, new):
    return step_cache.write_blocks(
      blocks, new.reshape(b, w, *new.shape[1:]), block
    )

  path = step_cache.own_path(leaf, leaf.parent, store.path.shape[2])
  return store._replace(
    block_keys=[
      write(blocks, new[:, :, 0])
      for blocks, new in zip(store.block_keys, keys, strict=True)
    ],
    block_values=[
      write(blocks, new[:, :, 0])
      for blocks, new in zip(store.block_values, values, strict=True)
    ],
    block_length=write(store.block_length, length_BW.reshape(-1)),
    path=write(store.path, path),
    next_position=write(
      store.next_position, (leaf.position + leaf.length).reshape(-1)
    ),
  )
