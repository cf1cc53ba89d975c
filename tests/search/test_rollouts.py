"""Roll-outs of model-predictive control, and samples until one is right."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from qstar_jax.search import driver, testing, values
from tests.search.hash_plays import (
  MAX_STEPS,
  NUM_TREES,
  ROOTS,
  A,
  PlainWorld,
  committed,
  path,
  play,
  setting,
)


def test_mpc_looks_as_far_as_its_horizon():
  """One step ahead: the mean V of the candidates' candidates."""
  config = setting("mpc", horizon=1, num_rollouts=A)
  tree = play(config)
  for b in range(NUM_TREES):
    world, line = PlainWorld(b), ()

    def worth(line, world=world):
      if len(line) == MAX_STEPS and not world.is_finished(line):
        return 0.0
      return world.value(line)

    def ahead(line, world=world, worth=worth):
      if world.is_terminal(line):
        return worth(line)
      return np.mean([worth(child) for child in world.children(line)])

    while True:
      line = max(world.children(line), key=ahead)
      if world.is_terminal(line):
        break
    assert path(tree, b, committed(tree, b)[-1]) == line


def test_mpc_finds_the_most_likely_success():
  """Roll-outs to the end: their mean is the probability of success."""
  num_rollouts, num_steps = 32, 2
  success = jnp.asarray([0.1, 0.4, 0.9, 0.3])
  base = testing.make_hash_expand_fn(num_rollouts)

  def expand(params, rng_key_B, store, leaf_BW, width_BW, block):
    """The root has four candidates; all others are draws of good or bad."""
    roots, states, first = store
    expansion, (roots, states) = base(
      params, rng_key_B, (roots, states), leaf_BW, width_BW, block
    )
    slot = jnp.arange(num_rollouts)
    is_root = (leaf_BW < 0)[..., None]
    parent = jnp.maximum(leaf_BW, 0)
    above = jax.vmap(lambda f, p: f[p // num_rollouts, p % num_rollouts])(
      first, parent
    )[..., None]
    own = jnp.where(is_root, slot[None, None], above)
    first = jax.lax.dynamic_update_slice(
      first, own.astype(jnp.int32), (0, block, 0)
    )
    shape = (leaf_BW.shape[1], num_rollouts)
    draws = jax.vmap(lambda key: jax.random.uniform(key, shape))(rng_key_B)
    # Of each of the two steps of a roll-out.
    chance = success[jnp.minimum(own, 3)] ** 0.5
    goes_well = jnp.where(is_root, True, draws < chance)
    is_sampled = expansion.count > 0
    is_candidate = is_sampled & (~is_root | (slot < 4)[None, None])
    return expansion._replace(
      value=goes_well * 0.5,
      truncated=~goes_well,
      count=is_candidate.astype(jnp.int32),
    ), (roots, states, first)

  config = dataclasses.replace(
    setting("mpc", horizon=num_steps, num_rollouts=num_rollouts),
    num_candidates=num_rollouts,
    leaves_per_round=num_rollouts,
  )
  roots = jnp.arange(8, dtype=jnp.uint32)
  state = testing.new_state(roots, config, num_steps + 2)
  n = state.tree.depth.shape[1]
  first = jnp.zeros((8, n, num_rollouts), jnp.int32)
  state = state._replace(store=(*state.store, first))
  one_move = jax.jit(
    lambda state: driver.search_move(None, state, expand, config, num_steps + 2)
  )
  state = one_move(state)
  q = np.asarray(values.q_values(state.tree)[:, 0, :4])
  # Two steps that go well, then V = 1/2 at the horizon.
  np.testing.assert_allclose(q, np.tile(success / 2, (8, 1)), atol=0.16)
  assert (driver.commit(state, config).tree.root_candidate == 2).all()


def test_rejection_stops_at_what_the_verifier_accepts(searches):
  config = setting("rejection", num_lines=8)
  assert config.terminal_value == "outcome"
  world = searches.World(
    ended=np.full(NUM_TREES, 0.5, np.float32),
    truncated=np.zeros(NUM_TREES, np.float32),
    merged=np.zeros(NUM_TREES, np.float32),
    illegal=np.zeros(NUM_TREES, np.float32),
    finished=np.zeros(NUM_TREES, np.float32),
  )
  rounds = list(searches.judged_play(ROOTS, world, config, MAX_STEPS))
  tree = rounds[-1].advanced
  assert tree.is_done.all()
  for round_ in rounds:
    is_accepted = (round_.after.score == 1).any(axis=(1, 2))
    assert round_.advanced.is_done[is_accepted].all()
