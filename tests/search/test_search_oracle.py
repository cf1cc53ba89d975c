"""With the truth in reach, the search commits a solution."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qstar_jax.config import SearchConfig
from qstar_jax.search import driver, testing
from qstar_jax.search.searchers import for_evaluation

A, MAX_STEPS, NUM_TREES = 3, 3, 64
# The root's expansion leaves 3 + 9 nodes that anything can hang from.
ENUMERATING = SearchConfig(
  num_candidates=A, num_simulations=A + A**2, gumbel_scale=0.0
)


def is_end(state):
  return testing.unit(state, 12) < 0.4


def is_correct(state):
  return is_end(state) & (testing.unit(state, 13) < 0.2)


def children(states):
  """uint32 [..., A]: the states after each candidate."""
  shape = (*states.shape, A)
  candidates = jnp.arange(A).reshape((1,) * states.ndim + (A,))
  return testing.child_state(
    jnp.broadcast_to(states[..., None], shape),
    jnp.broadcast_to(candidates, shape),
  )


def is_solvable(states, num_steps):
  """Whether a solution stands at or below states with so many steps to go."""
  if num_steps == 0:
    return is_correct(states)
  below = jnp.any(is_solvable(children(states), num_steps - 1), axis=-1)
  return jnp.where(is_end(states), is_correct(states), below)


@functools.partial(jax.jit, static_argnames="config")
def play(roots_B, solvable_BK, is_informed, config):
  """Plays with the oracle as V, or with V = 1/2 where a line goes on."""

  def overrides(states_BWA, expansion):
    known = solvable_BK[:, None, None] == states_BWA[..., None]
    oracle = jnp.any(known, axis=-1)
    truth = jnp.where(is_end(states_BWA), is_correct(states_BWA), 0.5)
    value = jnp.where(is_informed, oracle, truth)
    return expansion._replace(value=value, prm=value, ended=is_end(states_BWA))

  return driver.play(
    None,
    testing.new_state(roots_B, config, MAX_STEPS),
    testing.make_hash_expand_fn(A, overrides=overrides),
    config,
    MAX_STEPS,
  ).tree


@pytest.fixture(scope="module")
def problems():
  """Roots, whether they are solvable, and the solvable states below each."""
  roots = jnp.arange(1, NUM_TREES + 1, dtype=jnp.uint32)
  level, solvable_states = roots, []
  for num_left in range(MAX_STEPS - 1, -1, -1):
    level = children(level)
    found = jnp.where(is_solvable(level, num_left), level, 0)
    solvable_states.append(found.reshape(NUM_TREES, -1))
  below = is_solvable(children(roots), MAX_STEPS - 1)
  solvable = np.asarray(below).any(axis=1)
  assert 0.3 < solvable.mean() < 0.9
  return roots, solvable, jnp.concatenate(solvable_states, axis=1)


def is_solved(tree):
  """The committed line has ended, and the truth of its last step is 1."""
  last = np.arange(NUM_TREES), tree.root_parent, tree.root_candidate
  tree = jax.device_get(tree)
  return tree.ended[last] & (tree.value[last] == 1)


@pytest.mark.parametrize(
  ("num_simulations", "is_informed"),
  [(ENUMERATING.num_simulations, False), (2, True)],
  ids=["enumerates", "oracle"],
)
def test_solves_what_can_be_solved(problems, num_simulations, is_informed):
  roots, solvable, states = problems
  config = dataclasses.replace(ENUMERATING, num_simulations=num_simulations)
  tree = play(roots, states, is_informed, config)
  np.testing.assert_array_equal(is_solved(tree), solvable)


@pytest.mark.parametrize(
  "name",
  [
    *("puct", "beam", "dvts", "tot_bfs", "tot_dfs", "astar", "best_first"),
    "mpc",
  ],
)
def test_every_searcher_follows_an_oracle(problems, name):
  roots, solvable, states = problems
  # One step ahead: a longer roll-out is one of many, and may miss.
  settings = {"beam_width": 2, "num_rollouts": A, "horizon": 1}
  config = for_evaluation(dataclasses.replace(ENUMERATING, **settings), name)
  tree = play(roots, states, True, config)
  np.testing.assert_array_equal(is_solved(tree), solvable)
  if name in ("astar", "best_first", "tot_dfs"):
    # Nothing is expanded that does not lead to a solution.
    edge = np.maximum(tree.parent, 0), np.maximum(tree.candidate, 0)
    rows = np.arange(NUM_TREES)[:, None]
    is_off = np.asarray(tree.value)[rows, edge[0], edge[1]] == 0
    is_off &= np.asarray(tree.parent) >= 0
    assert not is_off[solvable].any()


def test_without_truth_or_budget_it_does_not(problems):
  """The tests above can fail."""
  roots, solvable, states = problems
  config = dataclasses.replace(ENUMERATING, num_simulations=2)
  tree = play(roots, states, False, config)
  assert is_solved(tree).sum() < solvable.sum()


@functools.partial(jax.jit, static_argnames="config")
def play_knowing_nothing(roots_B, config):
  """Whole plays where V and the PRM say the same of everything."""

  def overrides(states_BWA, expansion):
    constant = jnp.full_like(expansion.value, 0.5)
    return expansion._replace(value=constant, prm=constant)

  expand_fn = testing.make_hash_expand_fn(
    config.num_candidates, end_probability=0.4, overrides=overrides
  )
  state = testing.new_state(roots_B, config, max_steps=3)
  state = driver.play(None, state, expand_fn, config, max_steps=3)
  return state.tree, state.store[1]


@pytest.mark.parametrize(
  "name",
  [
    *("sample", "best_of_n", "dvts", "beam", "tot_bfs", "tot_dfs", "astar"),
    *("best_first", "mpc", "gumbel", "puct", "token_beam", "token_astar"),
  ],
)
def test_without_a_judgement_no_search_is_better_than_sampling(name):
  """Right is what a hash says: of the finished lines a share of 0.3."""
  config = for_evaluation(
    SearchConfig(num_candidates=3, num_simulations=6, num_lines=4), name
  )
  roots_B = jnp.arange(5000, 6500, dtype=jnp.uint32)
  tree, states_NBA = play_knowing_nothing(roots_B, config)
  row_B = jnp.arange(roots_B.size)
  edge = (row_B, tree.root_parent, tree.root_candidate)
  state_B = states_NBA[tree.root_parent, row_B, tree.root_candidate]
  is_right_B = np.asarray(testing.unit(state_B, 9) < 0.3)
  is_finished_B = np.asarray(tree.ended[edge])
  assert is_finished_B.sum() > 500
  rate = is_right_B[is_finished_B].mean()
  error = np.sqrt(0.3 * 0.7 / is_finished_B.sum())
  assert abs(rate - 0.3) < 4 * error
