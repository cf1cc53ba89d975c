"""mctx mode against mctx itself, on the same random trees."""

import functools

import jax
import jax.numpy as jnp
import mctx
import numpy as np
import pytest

from qstar_jax.config import SearchConfig
from qstar_jax.search import driver, testing, values
from qstar_jax.search import tree as tree_lib
from qstar_jax.search.algorithms import gumbel

B = 64


@functools.partial(jax.jit, static_argnames=("config",))
def ours(roots, gumbel_noise, root_value, config):
  num_nodes = config.num_simulations + 1
  max_steps = config.num_simulations + 1
  tree = tree_lib.new_tree(
    num_nodes=num_nodes,
    num_candidates=config.num_candidates,
    max_step_tokens=2,
    problem_value_B=root_value,
    prompt_length_B=jnp.zeros((B,), jnp.int32),
  )
  state = driver.SearchState(
    tree=tree.replace(
      noise=gumbel_noise,
      move_simulations=jnp.full((B,), config.num_simulations),
      move_width=jnp.full((B,), config.num_candidates),
    ),
    store=testing.hash_store(roots, num_nodes, config.num_candidates),
    round=jnp.zeros((B,), jnp.int32),
    rng_key=jax.random.split(jax.random.key(0), B),
  )
  expand = testing.make_hash_expand_fn(config.num_candidates)
  state = driver.search_move(None, state, expand, config, max_steps)
  stats = jax.vmap(
    lambda tree: values.node_stats(tree, tree.root_node, config)
  )(state.tree)
  weights = jax.nn.softmax(
    stats.prior_logits
    + (config.maxvisit_init + stats.visits.max(-1, keepdims=True))
    * config.value_scale
    * stats.q
  )
  return driver.commit(state, config).tree, stats, weights


def theirs(roots, gumbel_key, root_value, config):
  actions = jnp.arange(config.num_candidates)[None]

  def outputs(state):
    children = testing.child_state(
      jnp.repeat(state[:, None], config.num_candidates, 1),
      jnp.broadcast_to(actions, (B, config.num_candidates)),
    )
    return 2.0 * testing.unit(children, 0)

  def recurrent_fn(params, rng_key, action, state):
    del params, rng_key
    state = testing.child_state(state, action)
    output = mctx.RecurrentFnOutput(
      reward=jnp.zeros(B),
      discount=jnp.ones(B),
      prior_logits=outputs(state),
      value=testing.unit(state, 1),
    )
    return output, state

  root = mctx.RootFnOutput(
    prior_logits=outputs(roots), value=root_value, embedding=roots
  )
  return mctx.gumbel_muzero_policy(
    None,
    gumbel_key,
    root,
    recurrent_fn,
    num_simulations=config.num_simulations,
    max_num_considered_actions=config.max_considered,
    gumbel_scale=config.gumbel_scale,
  )


@pytest.mark.parametrize(
  ("num_candidates", "num_simulations", "max_considered", "gumbel_scale"),
  [
    (4, 16, 16, 1.0),
    (8, 40, 4, 0.0),
    pytest.param(5, 30, 16, 0.0, marks=pytest.mark.slow),
    pytest.param(3, 7, 1, 1.0, marks=pytest.mark.slow),
  ],
)
def test_reproduces_mctx(
  num_candidates, num_simulations, max_considered, gumbel_scale
):
  config = SearchConfig(
    num_candidates=num_candidates,
    num_simulations=num_simulations,
    max_considered=max_considered,
    gumbel_scale=gumbel_scale,
    mctx_mode=True,
  )
  roots = jnp.arange(1000, 1000 + B, dtype=jnp.uint32)
  key = jax.random.key(3)
  # mctx draws its noise as the second half of its key.
  noise_key = jax.random.split(key)[1]
  noise = gumbel_scale * jax.random.gumbel(noise_key, (B, num_candidates))
  root_value = testing.unit(roots, 1)
  expected = jax.jit(functools.partial(theirs, config=config))(
    roots, key, root_value
  )
  tree, stats, weights = ours(roots, noise, root_value, config)
  summary = expected.search_tree.summary()
  np.testing.assert_array_equal(stats.visits, summary.visit_counts)
  np.testing.assert_array_equal(tree.root_candidate, expected.action)
  np.testing.assert_allclose(weights, expected.action_weights, atol=1e-5)
  # The whole tree, node by node: same shape and same visits everywhere.
  np.testing.assert_array_equal(tree.parent, expected.search_tree.parents)
  np.testing.assert_array_equal(tree.child, expected.search_tree.children_index)
  np.testing.assert_array_equal(
    tree.visits, expected.search_tree.children_visits
  )


@pytest.mark.parametrize("num_simulations", [1, 2, 7, 16, 50])
@pytest.mark.parametrize("num_candidates", [1, 2, 3, 8, 16])
def test_schedule_is_that_of_mctx(num_candidates, num_simulations):
  from mctx._src import seq_halving

  table = seq_halving.get_table_of_considered_visits(
    num_candidates, num_simulations
  )
  ours = gumbel.scheduled_visits(
    jnp.arange(num_candidates + 1)[:, None],
    jnp.int32(num_simulations),
    jnp.arange(num_simulations)[None],
    num_candidates,
  )
  np.testing.assert_array_equal(ours, np.asarray(table))
