"""The step cache: keys and values of a tree of steps, each computed once.

The context of a node is the prompt plus the blocks of the steps on its path. A
block holds the keys and values of one expanded step of each tree; candidates
are kept as tokens, scores and their final hidden state until one is selected,
whose tokens then run once in parallel; with one candidate there is nothing to
select, and `line_cache` keeps what was decoded.

All reads of the store are made to come before its one write: XLA copies a store
that may be read and written at once.

Block n of every tree is written in the same round, so that a write is one
`dynamic_update_slice` at a shared index and not a scatter. Nothing here reads a
block that its own tree did not write since the prompt: paths say what is read.
A tree may therefore take another's place at any time.
"""

from typing import NamedTuple, Self

import chex
import jax
import jax.numpy as jnp

from qstar_jax.config import ModelConfig
from qstar_jax.model.attention import Segment, attend, mask_bias
from qstar_jax.model.transformer import LayerStack, Transformer, rotation_at

# Index of the problem itself where an index of a candidate is asked for.
ROOT = -1


class StepStore(NamedTuple):
  """What the network remembers of B trees of steps. Opaque to the search.

  A candidate's index is block * A + a. `path` lists blocks from the first step
  to the block's own, -1 beyond; the root's block holds no step and stands on no
  path. Array lists have one entry per layer.

  Attributes:
    prompt_keys: L x [B, K, P, C], rotated at absolute positions.
    prompt_values: L x [B, K, P, C].
    prompt_length: int32 [B].
    prompt_hidden: [B, M], final hidden state of the prompt.
    block_keys: L x [N, B, K, T, C], rotated at absolute positions.
    block_values: L x [N, B, K, T, C].
    block_length: int32 [N, B], tokens of the block's own step; 0 for a root.
    path: int32 [N, B, D - 1], see above.
    next_position: int32 [N, B], absolute position after the block's step.
    tokens: int32 [N, B, A, T], candidates of each block.
    length: int32 [N, B, A], their tokens.
    hidden: [N, B, A, M], their final hidden state.
    decode_slots: float32 [B], token slots that decoding has computed, full or
      empty; those of a batch are shared out evenly.
  """

  prompt_keys: list[chex.Array]
  prompt_values: list[chex.Array]
  prompt_length: chex.Array
  prompt_hidden: chex.Array
  block_keys: list[chex.Array]
  block_values: list[chex.Array]
  block_length: chex.Array
  path: chex.Array
  next_position: chex.Array
  tokens: chex.Array
  length: chex.Array
  hidden: chex.Array
  decode_slots: chex.Array

  def move_blocks(self, source_BN: chex.Array) -> Self:
    """Block n of tree b becomes what source_BN[b, n] was (a permutation)."""
    target_BN = jnp.argsort(source_BN, axis=1)

    def gather(array_ND, index_N):
      return array_ND[index_N]

    def follow(path_ND, target_N):
      return jnp.where(path_ND < 0, -1, target_N[path_ND])

    path = jax.vmap(follow, (1, 0), 1)(self.path, target_BN)
    moved = {
      name: jax.tree.map(
        lambda array: jax.vmap(gather, (1, 0), 1)(array, source_BN), value
      )
      for name, value in self._replace(path=path)._asdict().items()
      if name in _BLOCK_FIRST
    }
    return self._replace(**moved)


def empty_store(
  config: ModelConfig,
  *,
  num_trees: int,
  num_blocks: int,
  num_candidates: int,
  max_prompt_tokens: int,
  max_step_tokens: int,
  max_steps: int,
) -> StepStore:
  """An empty store. Allocate once, donate and reuse from search to search."""
  b, n, a, t = num_trees, num_blocks, num_candidates, max_step_tokens
  k, c, m = config.num_kv_heads, config.head_dim, config.model_dim
  dtype = jnp.dtype(config.compute_dtype)

  def per_layer(shape):
    return [jnp.zeros(shape, dtype) for _ in range(config.num_layers)]

  return StepStore(
    prompt_keys=per_layer((b, k, max_prompt_tokens, c)),
    prompt_values=per_layer((b, k, max_prompt_tokens, c)),
    prompt_length=jnp.zeros((b,), jnp.int32),
    prompt_hidden=jnp.zeros((b, m), dtype),
    block_keys=per_layer((n, b, k, t, c)),
    block_values=per_layer((n, b, k, t, c)),
    block_length=jnp.zeros((n, b), jnp.int32),
    path=jnp.full((n, b, max_steps - 1), -1, jnp.int32),
    next_position=jnp.zeros((n, b), jnp.int32),
    tokens=jnp.zeros((n, b, a, t), jnp.int32),
    length=jnp.zeros((n, b, a), jnp.int32),
    hidden=jnp.zeros((n, b, a, m), dtype),
    decode_slots=jnp.zeros((b,), jnp.float32),
  )


# Arrays of the store in which blocks come first and trees second.
_BLOCK_FIRST = frozenset(
  (
    "block_keys",
    "block_values",
    "block_length",
    "path",
    "next_position",
    "tokens",
    "length",
    "hidden",
  )
)


def prefill(
  model: Transformer,
  store: StepStore,
  prompt_GP: chex.Array,
  prompt_length_G: chex.Array,
  row_G: chex.Array | None = None,
) -> StepStore:
  """Runs prompts; the blocks of their trees are free again afterwards.

  Args:
    model: the network.
    store: of matching shapes; consumed.
    prompt_GP: [G, P] int32, padded on the right.
    prompt_length_G: [G] int32 in 1..P.
    row_G: int32 [G], trees that the prompts are of, where one past the end is
      none; default: all, in order.

  Returns:
    The store with the prompts' keys, values and final hidden states.
  """
  if row_G is None:
    chex.assert_equal_shape_prefix([prompt_GP, store.prompt_keys[0]], 1)
  position_GP = jnp.broadcast_to(
    jnp.arange(prompt_GP.shape[1]), prompt_GP.shape
  )
  rotation = rotation_at(position_GP, model.config)

  def fn(layer, x_GPM):
    query, key, value = layer.project(x_GPM, rotation)
    attended = jax.nn.dot_product_attention(query, key, value, is_causal=True)
    kept = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)
    return layer.finish(x_GPM, attended), kept

  layers = model.layer_stack()
  x_GPM, kept = layers.run(fn, model.embed(prompt_GP))
  kept = layers.unpack(kept)
  last_GM = jnp.take_along_axis(
    x_GPM, prompt_length_G[:, None, None] - 1, axis=1
  )[:, 0]

  def put(old, new):
    return new if row_G is None else old.at[row_G].set(new, mode="drop")

  return store._replace(
    prompt_keys=[
      put(old, key)
      for old, (key, _) in zip(store.prompt_keys, kept, strict=True)
    ],
    prompt_values=[
      put(old, value)
      for old, (_, value) in zip(store.prompt_values, kept, strict=True)
    ],
    prompt_length=put(store.prompt_length, prompt_length_G),
    prompt_hidden=put(store.prompt_hidden, model.final_norm(last_GM)),
  )


class Leaf(NamedTuple):
  """The W candidates per tree that are about to be expanded.

  Attributes:
    tokens: int32 [B, W, T] of the candidate's own step; length 0 for a root.
    length: int32 [B, W].
    hidden: [B, W, M], final hidden state of the candidate (or prompt).
    ancestors: int32 [B, W, max(D - 2, 0)], blocks before the step, -1 beyond.
    parent: int32 [B, W], block that it was sampled at; -1 for a root.
    is_root: bool [B, W].
    position: int32 [B, W], absolute position of the step's first token.
  """

  tokens: chex.Array
  length: chex.Array
  hidden: chex.Array
  ancestors: chex.Array
  parent: chex.Array
  is_root: chex.Array
  position: chex.Array


class Prefix(NamedTuple):
  """Keys and values that all streams of a leaf share. X = B * W leaves.

  Attributes:
    keys: L x [X, K, S, C]; S = P, ancestors' blocks, own block.
    values: the same.
    bias: float32 [X, S], 0 where there is a token, else `NEG_INF`.
  """

  keys: list[chex.Array]
  values: list[chex.Array]
  bias: chex.Array

  def segments(self) -> list[Segment]:
    """What attention reads, by layer: the keys transposed, once for all."""
    bias = self.bias[:, None, None]
    return [
      Segment(jnp.swapaxes(keys, 2, 3), values, bias)
      for keys, values in zip(self.keys, self.values, strict=True)
    ]


def _gather(array_NB: chex.Array, index_BX: chex.Array) -> chex.Array:
  """array[index[b, ...], b] for every b; out of range is clipped."""
  # vmap and not advanced indexing: a sharded B axis then needs no all-gather.
  return jax.vmap(lambda x, i: x.at[i].get(mode="clip"), in_axes=(1, 0))(
    array_NB, index_BX
  )


def load_leaf(store: StepStore, leaf_BW: chex.Array) -> Leaf:
  """Reads what the store knows of candidates that become blocks.

  Args:
    store: the store.
    leaf_BW: int32 [B, W] candidate indices, or `ROOT`.

  Returns:
    The leaves.
  """
  num_candidates = store.tokens.shape[2]
  is_root_BW = leaf_BW < 0
  parent_BW = jnp.maximum(leaf_BW, 0) // num_candidates
  slot_BW = jnp.maximum(leaf_BW, 0) % num_candidates

  def of_candidate(array_NBA):
    of_parent = _gather(array_NBA, parent_BW)
    index = jnp.expand_dims(slot_BW, tuple(range(2, of_parent.ndim)))
    return jnp.take_along_axis(of_parent, index, axis=2)[:, :, 0]

  # The parent of an expandable leaf stands at depth D - 2 at most.
  max_ancestors = max(store.path.shape[2] - 1, 0)
  ancestors = _gather(store.path[:, :, :max_ancestors], parent_BW)
  return Leaf(
    tokens=of_candidate(store.tokens),
    length=jnp.where(is_root_BW, 0, of_candidate(store.length)),
    hidden=jnp.where(
      is_root_BW[..., None],
      store.prompt_hidden[:, None],
      of_candidate(store.hidden),
    ),
    ancestors=jnp.where(is_root_BW[..., None], -1, ancestors),
    parent=jnp.where(is_root_BW, -1, parent_BW),
    is_root=is_root_BW,
    position=jnp.where(
      is_root_BW,
      store.prompt_length[:, None],
      _gather(store.next_position, parent_BW),
    ),
  )


def load_prefix(
  store: StepStore, blocks_BWJ: chex.Array, num_empty: int
) -> Prefix:
  """Gathers the prompt and J blocks for every leaf.

  Args:
    store: the store.
    blocks_BWJ: int32 [B, W, J], blocks in order of their steps; -1 for none.
    num_empty: static, empty slots behind them.

  Returns:
    The prefixes.
  """
  b, w, _ = blocks_BWJ.shape
  num_leaves, t = b * w, store.tokens.shape[-1]

  def gather(prompt_BKPC, block_NBKTC):
    blocks = jnp.moveaxis(_gather(block_NBKTC, blocks_BWJ), 3, 2)
    k, c = blocks.shape[2], blocks.shape[-1]
    blocks = jnp.reshape(blocks, (num_leaves, k, -1, c))
    prompt = jnp.repeat(prompt_BKPC, w, axis=0)
    empty = jnp.zeros((num_leaves, k, num_empty, c), prompt.dtype)
    return jnp.concatenate([prompt, blocks, empty], axis=2)

  prompt_size = store.prompt_keys[0].shape[2]
  in_prompt_BP = jnp.arange(prompt_size)[None] < store.prompt_length[:, None]
  length = _gather(store.block_length, blocks_BWJ)
  length = jnp.where(blocks_BWJ >= 0, length, 0)
  in_blocks = jnp.arange(t)[None, None, None] < length[..., None]
  in_prefix_XS = jnp.concatenate(
    [
      jnp.repeat(in_prompt_BP, w, axis=0),
      jnp.reshape(in_blocks, (num_leaves, -1)),
      jnp.zeros((num_leaves, num_empty), bool),
    ],
    axis=1,
  )
  return Prefix(
    keys=[
      gather(prompt, block)
      for prompt, block in zip(store.prompt_keys, store.block_keys, strict=True)
    ],
    values=[
      gather(prompt, block)
      for prompt, block in zip(
        store.prompt_values, store.block_values, strict=True
      )
    ],
    bias=mask_bias(in_prefix_XS),
  )


def run_step(
  model: Transformer,
  layers: LayerStack,
  prefix: Prefix,
  tokens_XT: chex.Array,
  length_X: chex.Array,
  position_X: chex.Array,
) -> Prefix:
  """Runs a step behind each prefix, all its tokens in parallel.

  Args:
    model: the network.
    layers: its layers.
    prefix: what stands before the steps; its last T slots are empty.
    tokens_XT: int32 [X, T].
    length_X: int32 [X], tokens in use; may be 0.
    position_X: int32 [X], absolute position of the first token.

  Returns:
    The prefix of what follows, with the step in its last T slots.
  """
  slot_T = jnp.arange(tokens_XT.shape[1])
  num_before = prefix.bias.shape[1] - slot_T.size
  before_XS = prefix.bias[:, :num_before]
  rotation = rotation_at(position_X[:, None] + slot_T[None], model.config)
  causal_TT = mask_bias(slot_T[None, :] <= slot_T[:, None])
  bias_XTS = jnp.concatenate(
    [
      jnp.repeat(before_XS[:, None], slot_T.size, axis=1),
      jnp.repeat(causal_TT[None], before_XS.shape[0], axis=0),
    ],
    axis=2,
  )

  def fn(layer, x_XTM, keys, values):
    query, key, value = layer.project(x_XTM, rotation)
    keys = keys.at[:, :, num_before:].set(jnp.swapaxes(key, 1, 2))
    values = values.at[:, :, num_before:].set(jnp.swapaxes(value, 1, 2))
    segment = Segment(jnp.swapaxes(keys, 2, 3), values, bias_XTS[:, None])
    attended = attend(query, [segment])
    return layer.finish(x_XTM, attended), (keys, values)

  _, extended = layers.run(
    fn,
    model.embed(tokens_XT),
    layers.pack(prefix.keys),
    layers.pack(prefix.values),
  )
  extended = layers.unpack(extended)
  in_step_XT = slot_T[None] < length_X[:, None]
  return Prefix(
    keys=[keys for keys, _ in extended],
    values=[values for _, values in extended],
    bias=jnp.concatenate([before_XS, mask_bias(in_step_XT)], axis=1),
  )


def run_leaf(
  model: Transformer,
  layers: LayerStack,
  store: StepStore,
  leaf: Leaf,
  block: chex.Array,
) -> tuple[StepStore, Prefix]:
  """Runs the leaves' own steps and writes them into their blocks.

  Args:
    model: the network.
    layers: its layers.
    store: consumed.
    leaf: W leaves per tree.
    block: int32 scalar, first of the W blocks to write.

  Returns:
    The store with the new blocks, and the prefix of every leaf, whose last T
    slots are its own step.
  """
  b, w, t = leaf.tokens.shape
  prefix = run_step(
    model,
    layers,
    load_prefix(store, leaf.ancestors, num_empty=t),
    leaf.tokens.reshape(b * w, t),
    leaf.length.reshape(-1),
    leaf.position.reshape(-1),
  )
  # What is written is taken from the whole prefix, and therefore after the
  # store was read: XLA then writes in place instead of copying the store.
  prefix = jax.lax.optimization_barrier(prefix)

  def write(blocks, values):
    """Writes blocks from values [B * W, ...]."""
    return write_blocks(blocks, values.reshape(b, w, *values.shape[1:]), block)

  store = store._replace(
    block_keys=[
      write(blocks, keys[:, :, -t:])
      for blocks, keys in zip(store.block_keys, prefix.keys, strict=True)
    ],
    block_values=[
      write(blocks, values[:, :, -t:])
      for blocks, values in zip(store.block_values, prefix.values, strict=True)
    ],
    block_length=write(store.block_length, leaf.length.reshape(-1)),
    path=write(
      store.path,
      own_path(leaf, block + jnp.arange(w)[None], store.path.shape[2]),
    ),
    next_position=write(
      store.next_position, (leaf.position + leaf.length).reshape(-1)
    ),
  )
  return store, prefix


def write_candidates(
  store: StepStore,
  block: chex.Array,
  tokens_BWAT: chex.Array,
  length_BWA: chex.Array,
  hidden_BWAM: chex.Array,
) -> StepStore:
  """Keeps the candidates sampled at blocks `block`..`block + W - 1`."""
  return store._replace(
    tokens=write_blocks(store.tokens, tokens_BWAT, block),
    length=write_blocks(store.length, length_BWA, block),
    hidden=write_blocks(store.hidden, hidden_BWAM, block),
  )


def write_blocks(blocks_NB, values_BW, block) -> chex.Array:
  """Writes W blocks of every tree at once: one slice at a shared index."""
  start = (block,) + (0,) * (blocks_NB.ndim - 1)
  return jax.lax.dynamic_update_slice(
    blocks_NB, jnp.swapaxes(values_BW, 0, 1), start
  )


def own_path(leaf: Leaf, own_BW: chex.Array, size: int) -> chex.Array:
  """[B * W, D - 1] ancestors with the block of the leaf's step behind them."""
  b, w, num_ancestors = leaf.ancestors.shape
  depth_BW = jnp.sum(leaf.ancestors >= 0, axis=-1)
  own_BW = jnp.where(leaf.is_root, -1, own_BW)
  padding = ((0, 0), (0, 0), (0, size - num_ancestors))
  path = jnp.pad(leaf.ancestors, padding, constant_values=-1)
  is_own = jnp.arange(size)[None, None] == depth_BW[..., None]
  return jnp.where(is_own, own_BW[..., None], path).reshape(b * w, size)
