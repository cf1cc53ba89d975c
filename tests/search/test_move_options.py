"""Forced playouts and playout-cap randomisation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qstar_jax import improvement
from qstar_jax.search import driver, testing, values
from tests.search.hash_plays import MAX_STEPS, ROOTS, A, play, setting

NUM_ROUNDS = 24


@functools.partial(jax.jit, static_argnames="config")
def rounds_of(roots_B, config):
  """Root statistics before every round of the first move, and its pending."""
  expand_fn = testing.make_hash_expand_fn(A)
  state = testing.new_state(roots_B, config, MAX_STEPS)

  def one_round(state, _):
    selected, _, expansion = driver.select_and_expand(
      None, state, expand_fn, config, MAX_STEPS
    )
    stats = jax.vmap(lambda t: values.node_stats(t, t.root_node, config))(
      state.tree
    )
    chosen = selected.tree.pending[:, 0] > 0
    after = driver.insert_and_backup(
      selected, expansion, driver.unjudged(expansion), config, MAX_STEPS
    )
    return after, (stats, chosen)

  return jax.lax.scan(one_round, state, length=NUM_ROUNDS)[1]


@pytest.mark.parametrize("k", [0.0, 2.0, 20.0])
def test_forced_playouts(k):
  """What was visited and is below sqrt(k P N) goes first, and nothing else."""
  config = setting(
    "puct", num_simulations=NUM_ROUNDS, forced_playouts=k, dirichlet_share=0.0
  )
  stats, chosen = jax.device_get(rounds_of(ROOTS, config))
  num_forced = 0
  for r in range(1, NUM_ROUNDS):
    prior = np.exp(stats.prior_logits[r] - stats.prior_logits[r].max())
    prior /= prior.sum(axis=1, keepdims=True)
    total = stats.visits[r].sum(axis=1, keepdims=True)
    is_forced = (
      stats.is_open[r]
      & (stats.visits[r] > 0)
      & (stats.visits[r] < np.sqrt(k * prior * total))
    )
    bonus = improvement.puct_bonus(
      prior, stats.visits[r], puct_init=1.25, puct_base=19_652.0
    )
    free = np.where(stats.is_open[r], stats.q[r] + bonus, -np.inf)
    expected = np.where(
      is_forced.any(axis=1), is_forced.argmax(axis=1), free.argmax(axis=1)
    )
    is_searching = chosen[r].any(axis=1)
    np.testing.assert_array_equal(
      chosen[r].argmax(axis=1)[is_searching], expected[is_searching]
    )
    differs = is_forced.any(axis=1) & (expected != free.argmax(axis=1))
    num_forced += differs.sum()
  assert (num_forced > 0) == (k > 0)


def simulations_by_move(config):
  """int [B, D], expansions of every move after its root's own."""
  expand_fn = testing.make_hash_expand_fn(A)

  @jax.jit
  def moves(roots_B):
    state = testing.new_state(roots_B, config, MAX_STEPS)
    planned, noise = [], []
    for _ in range(MAX_STEPS):
      planned.append(state.tree.move_simulations)
      noise.append(jnp.abs(state.tree.noise).sum(axis=1))
      state = driver.search_move(None, state, expand_fn, config, MAX_STEPS)
      state = driver.commit(state, config)
      state = driver.begin_move(state, config, MAX_STEPS)
    return jnp.stack(planned, axis=1), jnp.stack(noise, axis=1)

  many = jnp.arange(1000, 1200, dtype=jnp.uint32)
  return jax.device_get(moves(many))


@pytest.mark.parametrize("searcher", ["gumbel", "puct"])
def test_playout_cap(searcher):
  """A share of the moves is searched in full, with noise; the others not."""
  config = dataclasses.replace(
    setting(searcher, num_simulations=12),
    full_search_share=0.25,
    fast_simulations=2,
    dirichlet_share=0.25,
    gumbel_scale=1.0,
  )
  planned, noise = simulations_by_move(config)
  is_full = planned == 12
  assert set(np.unique(planned)) == {2, 12}
  # 800 flips of a coin of 1/4: four standard errors.
  assert abs(is_full.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / planned.size)
  np.testing.assert_array_equal(noise > 0, is_full)


def test_evaluation_searches_in_full():
  config = setting("gumbel", full_search_share=0.0, fast_simulations=1)
  assert config.full_search_share == 1.0
  np.testing.assert_array_equal(
    play(config).visits, play(setting("gumbel")).visits
  )
