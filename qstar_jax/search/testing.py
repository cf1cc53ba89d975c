"""A made-up problem to test searches on: no network, no text."""

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import chex
import jax
import jax.numpy as jnp

from qstar_jax.config import SearchConfig
from qstar_jax.search import driver
from qstar_jax.search import tree as tree_lib
from qstar_jax.search.driver import SearchState
from qstar_jax.search.expand import ExpandFn, Expansion


def _mix(x: chex.Array) -> chex.Array:
  """A 32-bit integer hash (the finaliser of MurmurHash3)."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def child_state(state: chex.Array, candidate: chex.Array) -> chex.Array:
  """State (uint32, any shape) after a candidate: a hash of the whole path."""
  step = candidate.astype(jnp.uint32) + jnp.uint32(1)
  return _mix(state * jnp.uint32(31) + step * jnp.uint32(0x9E3779B9))


def unit(state: chex.Array, stream: int) -> chex.Array:
  """A number in [0, 1) that depends on the state and the stream alone."""
  bits = _mix(state ^ _mix(jnp.uint32(stream + 1)))
  return (bits >> 8).astype(jnp.float32) / (1 << 24)


class HashStore(NamedTuple):
  """The store of `make_hash_expand_fn`.

  Attributes:
    roots: uint32 [B], states of the problems.
    states: uint32 [N, B, A], of the candidates.
  """

  roots: chex.Array
  states: chex.Array

  def move_blocks(self, source_BN: chex.Array) -> Self:
    """See `search.expand.Store`."""
    move = jax.vmap(lambda states, source: states[source], (1, 0), 1)
    return self._replace(states=move(self.states, source_BN))


def hash_store(
  root_state_B: chex.Array, num_nodes: int, num_candidates: int
) -> HashStore:
  """A store in which nothing is expanded yet."""
  shape = (num_nodes, *root_state_B.shape, num_candidates)
  return HashStore(
    root_state_B.astype(jnp.uint32), jnp.zeros(shape, jnp.uint32)
  )


def make_hash_expand_fn(
  num_candidates: int,
  *,
  max_step_tokens: int = 2,
  end_probability: float = 0.0,
  overrides: Callable[[chex.Array, Expansion], Expansion] | None = None,
) -> ExpandFn:
  """Every node's candidates, priors and values are hashes of its path.

  Args:
    num_candidates: A, all distinct.
    max_step_tokens: T >= 2; a step is its candidate index and a delimiter.
    end_probability: share of candidates that finish their line.
    overrides: (child states [B, W, A], expansion) -> expansion.

  Returns:
    An expand function over `hash_store`.
  """

  def expand(params: Any, rng_key_B, store, leaf_BW, width_BW, block):
    del params, rng_key_B
    roots_B, states_NBA = store
    parent_BW = jnp.maximum(leaf_BW, 0) // num_candidates
    slot_BW = jnp.maximum(leaf_BW, 0) % num_candidates

    def read(states_NA, root, parent_W, slot_W, leaf_W):
      return jnp.where(leaf_W < 0, root, states_NA[parent_W, slot_W])

    state_BW = jax.vmap(read, in_axes=(1, 0, 0, 0, 0))(
      states_NBA, roots_B, parent_BW, slot_BW, leaf_BW
    )
    candidates = jnp.arange(num_candidates)[None, None]
    state_BWA = child_state(
      jnp.repeat(state_BW[..., None], num_candidates, axis=-1),
      jnp.broadcast_to(candidates, (*state_BW.shape, num_candidates)),
    )
    states_NBA = jax.lax.dynamic_update_slice(
      states_NBA, jnp.swapaxes(state_BWA, 0, 1), (block, 0, 0)
    )
    is_sampled = candidates < width_BW[..., None]
    logit = 2.0 * unit(state_BWA, 0)
    zeros = jnp.zeros((*state_BWA.shape, max_step_tokens))
    tokens = zeros.astype(jnp.int32).at[..., 0].set(candidates)
    expansion = Expansion(
      tokens=tokens,
      length=2 * is_sampled,
      token_log_prob=zeros.at[..., 0].set(logit),
      proposal_log_prob=jnp.zeros(state_BWA.shape),
      value=unit(state_BWA, 1),
      prm=unit(state_BWA, 2),
      token_q=unit(state_BWA, 4),
      ended=unit(state_BWA, 3) < end_probability,
      truncated=jnp.zeros(state_BWA.shape, bool),
      count=is_sampled.astype(jnp.int32),
    )
    if overrides is not None:
      expansion = overrides(state_BWA, expansion)
      expansion = expansion._replace(count=expansion.count * is_sampled)
    return expansion, HashStore(roots_B, states_NBA)

  return expand


def new_state(
  root_state_B: chex.Array,
  config: SearchConfig,
  max_steps: int,
  token_budget: chex.Array | int = tree_lib.UNLIMITED,
  max_step_tokens: int = 2,
) -> SearchState:
  """Searches from roots in a hash store, at the start of their first move.

  Args:
    root_state_B: uint32 [B], one per tree; its candidates, values and noise
      follow from it.
    config: of the search.
    max_steps: D.
    token_budget: of each tree.
    max_step_tokens: T >= 2; the world's own steps have two tokens.

  Returns:
    The state, with room for a whole play.
  """
  num_nodes = driver.num_nodes_needed(config, max_steps)
  tree = tree_lib.new_tree(
    num_nodes=num_nodes,
    num_candidates=config.num_candidates,
    max_step_tokens=max_step_tokens,
    problem_value_B=unit(root_state_B, 1),
    prompt_length_B=jnp.ones(root_state_B.shape, jnp.int32),
    token_budget=token_budget,
  )
  state = SearchState(
    tree=tree,
    store=hash_store(root_state_B, num_nodes, config.num_candidates),
    round=jnp.zeros(root_state_B.shape, jnp.int32),
    rng_key=jax.vmap(jax.random.key)(root_state_B),
  )
  return driver.begin_move(state, config, max_steps)
