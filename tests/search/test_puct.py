"""PUCT: as mctx has it, and by hand."""

import functools

import jax
import jax.numpy as jnp
import mctx
import numpy as np
import pytest

from qstar_jax.config import SearchConfig
from qstar_jax.search import driver, testing
from qstar_jax.search.tree import UNLIMITED
from tests.search.hash_plays import (
  NUM_TREES,
  A,
  PlainWorld,
  committed,
  play,
  setting,
)

B, NUM_CANDIDATES = 64, 4
WORLDS = jnp.arange(500, 500 + B, dtype=jnp.uint32)


def of_mctx(key, num_simulations, dirichlet_share):
  """What `mctx.muzero_policy` makes of the hash world."""
  actions = jnp.arange(NUM_CANDIDATES)[None]

  def prior(states):
    children = testing.child_state(
      jnp.repeat(states[:, None], NUM_CANDIDATES, axis=1), actions
    )
    return 2.0 * testing.unit(children, 0)

  def recurrent_fn(params, rng_key, action, states):
    del params, rng_key
    states = testing.child_state(states, action)
    zeros = jnp.zeros((B,))
    output = mctx.RecurrentFnOutput(
      reward=zeros,
      discount=zeros + 1,
      prior_logits=prior(states),
      value=testing.unit(states, 1),
    )
    return output, states

  root = mctx.RootFnOutput(
    prior_logits=prior(WORLDS), value=testing.unit(WORLDS, 1), embedding=WORLDS
  )
  policy = functools.partial(
    mctx.muzero_policy,
    recurrent_fn=recurrent_fn,
    num_simulations=num_simulations,
    dirichlet_fraction=dirichlet_share,
    temperature=0.0,
  )
  return jax.jit(lambda key, root: policy(None, key, root))(key, root)


@pytest.mark.parametrize(
  ("num_simulations", "dirichlet_share"), [(1, 0.0), (30, 0.0), (20, 0.25)]
)
def test_puct_in_mctx_mode_is_mctx(num_simulations, dirichlet_share):
  config = SearchConfig(
    searcher="puct",
    num_candidates=NUM_CANDIDATES,
    num_simulations=num_simulations,
    dirichlet_share=dirichlet_share,
    mctx_mode=True,
  )
  key = jax.random.key(3)
  expected = of_mctx(key, num_simulations, dirichlet_share)
  # mctx draws its noise for the whole batch from the second of three keys.
  noise = jax.random.dirichlet(
    jax.random.split(key, 3)[1], jnp.full((NUM_CANDIDATES,), 0.3), shape=(B,)
  )
  n = num_simulations + 1
  state = testing.new_state(WORLDS, config, n)
  state = state._replace(tree=state.tree.replace(noise=noise))
  expand_fn = testing.make_hash_expand_fn(NUM_CANDIDATES)
  state = jax.jit(
    lambda state: driver.search_move(None, state, expand_fn, config, n)
  )(state)
  tree, theirs = state.tree, expected.search_tree
  np.testing.assert_array_equal(tree.parent[:, :n], theirs.parents)
  np.testing.assert_array_equal(tree.child[:, :n], theirs.children_index)
  np.testing.assert_array_equal(tree.visits[:, :n], theirs.children_visits)
  visits = tree.visits[:, 0]
  weights = visits / visits.sum(axis=1, keepdims=True)
  np.testing.assert_allclose(weights, expected.action_weights, atol=1e-5)
  chosen = driver.commit(state, config).tree.root_candidate
  most = np.take_along_axis(np.asarray(visits), chosen[:, None], axis=1)[:, 0]
  np.testing.assert_array_equal(most, visits.max(axis=1))


def test_puct_of_one_level_is_the_formula():
  """With one candidate per visit count the numbers can be written down."""
  config = setting("puct", num_simulations=0)
  tree = play(config, budget=UNLIMITED)
  for b in range(NUM_TREES):
    world = PlainWorld(b)
    first = committed(tree, b)[0]
    # No visit anywhere: largest V, then largest prior.
    values = [world.value((a,)) for a in range(A)]
    assert first == (0, int(np.argmax(values)))
