"""Made-up worlds to search in, compiled once for all tests of the search."""

import functools
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qstar_jax.config import SearchConfig
from qstar_jax.records import Outcome
from qstar_jax.search import driver, testing
from qstar_jax.search.expand import Expansion, Judgement
from qstar_jax.search.tree import NONE, SearchTree


class World(NamedTuple):
  """How often what happens in each tree: float32 [B] in [0, 1].

  Attributes:
    ended: share of candidates that finish their line.
    truncated: share of candidates that were cut.
    merged: share of candidates that are duplicates of the first.
    illegal: share of candidates that the judge refuses.
    finished: share of candidates whose line the judge takes for finished.
  """

  ended: jax.Array
  truncated: jax.Array
  merged: jax.Array
  illegal: jax.Array
  finished: jax.Array


def random_world(rng: np.random.Generator, num_trees: int) -> World:
  """Rates of every size, 0 among them."""
  rates = (
    0.4 * rng.random((5, num_trees)) * rng.integers(2, size=(5, num_trees))
  )
  return World(*rates.astype(np.float32))


def _expand_fn(world: World, num_candidates: int):
  """Candidates, scores and flags are hashes of their path."""

  def draw(states_BWA, stream, rate_B):
    return testing.unit(states_BWA, stream) < rate_B[:, None, None]

  def overrides(states_BWA, expansion):
    # The first of its kind stays; some candidates were drawn several times.
    slot_A = jnp.arange(num_candidates)[None, None]
    merged = draw(states_BWA, 10, world.merged) & (slot_A > 0)
    count = 1 + (3 * testing.unit(states_BWA, 11)).astype(jnp.int32)
    return expansion._replace(
      ended=draw(states_BWA, 12, world.ended),
      truncated=draw(states_BWA, 13, world.truncated),
      count=jnp.where(merged, 0, count),
      proposal_log_prob=testing.unit(states_BWA, 14),
    )

  return testing.make_hash_expand_fn(num_candidates, overrides=overrides)


def _judge(world: World, store, block, expansion, state_BWA) -> Judgement:
  """The verdict on a candidate is a hash of its path, too."""
  width = expansion.count.shape[1]
  states_WBA = jax.lax.dynamic_slice_in_dim(store[1], block, width)
  states_BWA = jnp.swapaxes(states_WBA, 0, 1)

  def draw(stream, rate_B):
    return testing.unit(states_BWA, stream) < rate_B[:, None, None]

  is_legal = ~draw(20, world.illegal)
  finished = is_legal & draw(21, world.finished)
  score = testing.unit(states_BWA, 22) * is_legal
  outcome = jnp.where(score > 0.5, Outcome.CORRECT, Outcome.WRONG)
  has_verdict = finished | expansion.ended
  return Judgement(
    legal=is_legal.astype(jnp.int8),
    finished=finished,
    outcome=jnp.where(has_verdict, outcome, -1).astype(jnp.int8),
    score=jnp.where(has_verdict, score, 0.0),
    state=jnp.where(is_legal & ~has_verdict, state_BWA, NONE),
  )


def _states(tree: SearchTree, config: SearchConfig, max_steps: int, are_alike):
  """Of the round's new candidates, int32 [B, W, A].

  Lines of the same candidates, in whatever order, lead to the same state if
  `are_alike`; otherwise no two lines do.
  """
  slot_A = jnp.arange(config.num_candidates)

  def one_tree(tree, w):
    node = tree.num_nodes + w
    if not are_alike:
      return node * config.num_candidates + slot_A

    def up(_, carry):
      code, node = carry
      is_step = tree.parent[node] != NONE
      code += jnp.where(is_step, (max_steps + 1) ** tree.candidate[node], 0)
      return code, jnp.where(is_step, tree.parent[node], node)

    code, _ = jax.lax.fori_loop(0, max_steps, up, (0, node))
    return code + (max_steps + 1) ** slot_A

  slots_W = jnp.arange(config.leaves_per_round)
  of_tree = jax.vmap(one_tree, in_axes=(None, 0))
  return jax.vmap(of_tree, in_axes=(0, None))(tree, slots_W)


@functools.partial(jax.jit, static_argnames=("config", "max_steps"))
def start(roots_B, config: SearchConfig, max_steps: int):
  """The searches of B worlds, at the start of their first move."""
  return testing.new_state(roots_B, config, max_steps)


@functools.partial(
  jax.jit, static_argnames=("config", "max_steps", "are_alike")
)
def judged_round(state, world, config, max_steps: int, are_alike: bool):
  """One round with the judge's word, nothing committed."""
  expand_fn = _expand_fn(world, config.num_candidates)
  block = state.block(config)
  state, leaf_BW, expansion = driver.select_and_expand(
    None, state, expand_fn, config, max_steps
  )
  state_BWA = _states(state.tree, config, max_steps, are_alike)
  judgement = _judge(world, state.store, block, expansion, state_BWA)
  state = driver.insert_and_backup(
    state, expansion, judgement, config, max_steps
  )
  return state, leaf_BW, expansion, judgement


@functools.partial(jax.jit, static_argnames=("config", "max_steps"))
def advance(state, config: SearchConfig, max_steps: int):
  """`driver.advance`, compiled."""
  return driver.advance(state, config, max_steps)


class Round(NamedTuple):
  """One round, as numpy arrays.

  Attributes:
    before: the trees before it.
    after: the trees after it, with nothing committed.
    advanced: the trees that go into the next round.
    leaf: int32 [B, W], what was expanded.
    expansion: what was sampled there.
    judgement: what the judge said of it.
  """

  before: SearchTree
  after: SearchTree
  advanced: SearchTree
  leaf: np.ndarray
  expansion: Expansion
  judgement: Judgement


def judged_play(
  roots_B, world, config: SearchConfig, max_steps: int, *, are_alike=True
):
  """A whole play, as the host drives it: what every round did."""
  state = start(roots_B, config, max_steps)
  while not np.all(state.tree.is_done):
    before = state.tree
    state, *seen = judged_round(state, world, config, max_steps, are_alike)
    after = state.tree
    state = advance(state, config, max_steps)
    yield Round(*jax.device_get((before, after, state.tree, *seen)))


@functools.partial(jax.jit, static_argnames=("config", "max_steps"))
def play(roots_B, world, config: SearchConfig, max_steps: int):
  """A whole play on the device, without a judge: the finished state."""
  return driver.play(
    None,
    testing.new_state(roots_B, config, max_steps),
    _expand_fn(world, config.num_candidates),
    config,
    max_steps,
  )


@pytest.fixture(scope="session")
def searches():
  """The functions above, for tests."""
  return types.SimpleNamespace(
    World=World, random_world=random_world, judged_play=judged_play, play=play
  )
