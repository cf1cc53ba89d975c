"""Searches small enough to be worked by hand.

A `Table` says what stands at which path: `{(1, 0): Candidate(value=0.9)}` is
the first candidate after the root's second. What is not in it is an open
candidate of value 1/2 and prior weight 1.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qstar_jax import improvement
from qstar_jax.config import SearchConfig
from qstar_jax.search import driver, testing, values
from qstar_jax.search import tree as tree_lib
from qstar_jax.search.algorithms import gumbel
from qstar_jax.search.expand import Expansion, Judgement
from qstar_jax.search.tree import NONE

A = 4
MAX_STEPS = 9
MAX_ENTRIES = 64
CONFIG = SearchConfig(num_candidates=A, num_simulations=16, gumbel_scale=0.0)


class Candidate(NamedTuple):
  """What an `Expansion` says of one candidate."""

  value: float = 0.5
  weight: float = 1.0
  count: int = 1
  ended: bool = False


class Table(NamedTuple):
  """Candidates by the hash of their path, [K] each, and the tree's width."""

  state: np.ndarray
  candidate: Candidate
  width: int


ROOT = np.array([7], np.uint32)


def table(entries, width=A):
  """A table; candidates from `width` on are none."""
  states = np.zeros(MAX_ENTRIES, np.uint32)
  for i, path in enumerate(entries):
    state = jnp.asarray(ROOT)
    for a in path:
      state = testing.child_state(state, jnp.asarray([a]))
    states[i] = state[0]
  padding = [Candidate()] * (MAX_ENTRIES - len(entries))
  dtypes = (np.float32, np.float32, np.int32, bool)
  columns = zip(*entries.values(), *padding, strict=True)
  fields = map(np.array, columns, dtypes)
  return Table(states, Candidate(*fields), width)


def look_up(table, states_BWA, expansion):
  """The `overrides` of the made-up problem: what the table says."""
  hit = states_BWA[..., None] == table.state[None, None, None]
  # The last entry is padding: what is not in the table.
  index = jnp.where(jnp.any(hit, axis=-1), jnp.argmax(hit, axis=-1), -1)
  entry = Candidate(*(field[index] for field in table.candidate))
  log_weight = jnp.log(entry.weight)
  is_candidate = jnp.arange(A)[None, None] < table.width
  return expansion._replace(
    token_log_prob=jnp.stack([log_weight, jnp.zeros_like(log_weight)], axis=-1),
    value=entry.value,
    count=jnp.where(is_candidate, entry.count, 0),
    ended=entry.ended,
  )


@functools.partial(jax.jit, static_argnames="config")
def start(config):
  return testing.new_state(jnp.asarray(ROOT), config, MAX_STEPS)


@functools.partial(jax.jit, static_argnames="config")
def one_round(state, table, config):
  expand_fn = testing.make_hash_expand_fn(
    A, overrides=functools.partial(look_up, table)
  )
  return driver.search_round(None, state, expand_fn, config, MAX_STEPS)


@functools.partial(jax.jit, static_argnames="config")
def commit(state, config):
  return driver.begin_move(driver.commit(state, config), config, MAX_STEPS)


def search(table, num_rounds, config=CONFIG, state=None):
  """The state after so many rounds, the root's own expansion among them."""
  state = start(config) if state is None else state
  for _ in range(num_rounds):
    state = one_round(state, table, config)
  return state


def root_of(state):
  """(visits, Q) of the current root's candidates."""
  tree = jax.device_get(state.tree)
  node = tree.root_node[0]
  return tree.visits[0, node], values.q_values(tree)[0, node]


def softmax_mean(logits, values):
  weight = np.exp(np.asarray(logits))
  return (weight * values).sum() / weight.sum()


def test_unvisited_candidates_are_worth_their_value():
  entries = {(a,): Candidate(value=0.1 * a) for a in range(A)}
  visits, q = root_of(search(table(entries), 1))
  np.testing.assert_array_equal(visits, 0)
  np.testing.assert_allclose(q, [0.0, 0.1, 0.2, 0.3], atol=1e-6)


@pytest.mark.parametrize(
  ("noise", "chosen"), [((0, 0, 0, 0), 1), ((1, 0, 0, 9), 0), ((0, 0, 1, 0), 2)]
)
def test_choice_without_simulations(noise, chosen):
  # log prior + (50 + 0) * 0.1 * V = -0.51 + 1, -1.20 + 2.5 and -2.30 + 3, that
  # is 0.49, 1.30 and 0.70, plus the noise. The fourth is no candidate.
  entries = {
    (0,): Candidate(weight=0.6, value=0.2),
    (1,): Candidate(weight=0.3, value=0.5),
    (2,): Candidate(weight=0.1, value=0.6),
  }
  state = search(table(entries, width=3), 1)
  noise = jnp.asarray([noise], jnp.float32)
  state = state._replace(tree=state.tree.replace(noise=noise))
  assert commit(state, CONFIG).tree.root_candidate == chosen


def test_a_visit_backs_up_the_improved_mean_of_what_it_found():
  entries = {
    (0,): Candidate(value=0.2),
    (1,): Candidate(value=0.8),
    (1, 0): Candidate(value=0.5),
    (1, 1): Candidate(value=0.9),
  }
  visits, q = root_of(search(table(entries, width=2), 2))
  # pi' = softmax(5 * 0.5, 5 * 0.9), and V is one virtual visit.
  backed_up = softmax_mean([2.5, 4.5], [0.5, 0.9])
  np.testing.assert_allclose(backed_up, 0.85232, atol=1e-5)
  np.testing.assert_array_equal(visits, [0, 1, 0, 0])
  np.testing.assert_allclose(q[:2], [0.2, (0.8 + backed_up) / 2], atol=1e-6)


def test_chain_averages_every_value_on_the_way():
  values = [0.1, 0.4, 0.7, 1.0]
  entries = {
    (0,) * (depth + 1): Candidate(value=value)
    for depth, value in enumerate(values)
  }
  visits, q = root_of(search(table(entries, width=1), 4))
  assert visits[0] == 3
  np.testing.assert_allclose(q[0], np.mean(values), atol=1e-6)


def test_known_subtree_is_worth_what_is_known():
  entries = {
    (0,): Candidate(value=0.9),
    (0, 0): Candidate(value=0.4, ended=True),
    (0, 1): Candidate(value=0.6, ended=True),
    (1,): Candidate(value=0.1),
  }
  states = [search(table(entries, width=2), 2)]
  for _ in range(3):
    states.append(search(table(entries, width=2), 1, state=states[-1]))
  known = softmax_mean([2.0, 3.0], [0.4, 0.6])
  np.testing.assert_allclose(known, 0.54621, atol=1e-5)
  for i, state in enumerate(states):
    visits, q = root_of(state)
    # The optimistic V = 0.9 counts no longer, and nobody goes there again.
    np.testing.assert_allclose(q[0], known, atol=1e-6)
    np.testing.assert_array_equal(visits[:2], [1, i])


def test_subtree_is_known_when_its_last_leaf_is():
  end = Candidate(value=0.2, ended=True)
  entries = {
    (0,): Candidate(value=0.9),
    (0, 0): Candidate(value=0.8),
    (0, 1): end,
    (0, 0, 0): end,
    (0, 0, 1): Candidate(value=0.2, ended=True),
    (1,): Candidate(ended=True),
  }
  state = search(table(entries, width=2), 2)
  assert state.tree.is_open[0, 0, 0]
  state = search(table(entries, width=2), 1, state=state)
  _, q = root_of(state)
  assert not state.tree.is_open[0, 0].any()
  # All that is left is worth 0.2, on both levels.
  np.testing.assert_allclose(q[0], 0.2, atol=1e-6)
  assert not driver.is_searching(state.tree, CONFIG, MAX_STEPS)


@pytest.mark.parametrize(
  ("num_considered", "schedule"),
  [
    (4, [0, 0, 0, 0, 1, 1, 2, 2]),
    (4, [0] * 4 + [1] * 4 + [2, 2, 3, 3, 4, 4, 5, 5]),
    (1, [0, 1, 2]),
  ],
)
def test_schedule_of_sequential_halving(num_considered, schedule):
  num_simulations = len(schedule)
  visits = gumbel.scheduled_visits(
    num_considered, num_simulations, jnp.arange(num_simulations), A
  )
  np.testing.assert_array_equal(visits, schedule)


def test_visits_of_sequential_halving():
  # All values are equal, so the two of largest prior survive the first half.
  weights = [0.2, 0.4, 0.1, 0.3]
  entries = {(a,): Candidate(weight=w) for a, w in enumerate(weights)}
  state = search(table(entries), 9)
  np.testing.assert_array_equal(root_of(state)[0], [2, 2, 2, 2])
  state = search(table(entries), 8, state=state)
  np.testing.assert_array_equal(root_of(state)[0], [2, 6, 2, 6])
  assert not driver.is_searching(state.tree, CONFIG, MAX_STEPS)


def test_budget_of_exhausted_candidates_goes_to_the_others():
  ends = {(a, b): Candidate(ended=True) for a in (1, 3) for b in range(A)}
  visits, _ = root_of(search(table(ends), 17))
  assert visits[1] == visits[3] == 1
  assert visits.sum() == CONFIG.num_simulations


def test_constant_q_leaves_the_prior_alone():
  weights = [0.1, 0.25, 0.6, 0.05]
  entries = {(a,): Candidate(weight=w) for a, w in enumerate(weights)}
  tree = search(table(entries), 17).tree
  stats = jax.vmap(lambda tree: values.node_stats(tree, 0, CONFIG))(tree)
  np.testing.assert_allclose(stats.q, 0.5, atol=1e-6)
  policy = improvement.improved_policy(
    stats.prior_logits,
    stats.q,
    stats.visits,
    maxvisit_init=CONFIG.maxvisit_init,
    value_scale=CONFIG.value_scale,
  )
  np.testing.assert_allclose(policy[0], weights, atol=1e-5)


def test_prior_counts_duplicates():
  # Three draws of the first and one of the second: visits below the root keep
  # close to 3/4 and 1/4, with the prior alone to tell them apart.
  config = dataclasses.replace(CONFIG, max_considered=1)
  entries = {
    (1,): Candidate(count=0),
    (0, 0): Candidate(count=3),
    (0, 1): Candidate(count=1),
  }
  tree = jax.device_get(search(table(entries, width=2), 17, config).tree)
  np.testing.assert_array_equal(tree.visits[0, 0], [16, 0, 0, 0])
  child = tree.child[0, 0, 0]
  visits = tree.visits[0, child]
  assert visits.sum() == 15
  assert abs(visits[0] - 0.75 * 16) <= 1


def test_visits_below_the_root_worked_by_hand():
  # pi' = (0.72, 0.28) throughout; each visit goes where pi' - N / (1 + sum N)
  # is largest: first, second, first, first, first (0.12 against 0.08), second.
  config = dataclasses.replace(CONFIG, max_considered=1)
  entries = {
    (1,): Candidate(count=0),
    (0, 0): Candidate(weight=0.72),
    (0, 1): Candidate(weight=0.28),
  }
  state = search(table(entries, width=2), 2, config)
  child = int(state.tree.child[0, 0, 0])
  seen = []
  for _ in range(6):
    state = search(table(entries, width=2), 1, config, state)
    seen.append(state.tree.visits[0, child, :2].tolist())
  assert seen == [[1, 0], [1, 1], [2, 1], [3, 1], [4, 1], [4, 2]]


def test_a_finished_candidate_needs_no_visits_to_be_chosen():
  entries = {(a,): Candidate(value=0.1) for a in range(A)}
  entries[2,] = Candidate(value=0.9, ended=True)
  state = search(table(entries), 17)
  assert root_of(state)[0][2] == 0
  tree = commit(state, CONFIG).tree
  assert tree.root_candidate == 2
  assert tree.is_done


@pytest.mark.parametrize(
  ("is_open", "is_valid", "chosen"),
  [
    # What the halving dropped is out, however good it looks.
    ((1, 1, 1, 1), (1, 1, 1, 1), 1),
    # What is closed has nothing left to be found, and stays in.
    ((1, 1, 0, 1), (1, 1, 1, 1), 2),
    # Most visits among those that are candidates.
    ((1, 0, 1, 1), (1, 0, 1, 1), 0),
    ((1, 1, 0, 1), (1, 1, 0, 1), 1),
  ],
)
def test_choice_among_survivors(monkeypatch, is_open, is_valid, chosen):
  stats = values.NodeStats(
    prior_logits=jnp.zeros(A),
    q=jnp.asarray([0.5, 0.6, 0.9, 0.8]),
    visits=jnp.asarray([9, 9, 8, 5]),
    is_open=jnp.asarray(is_open, bool),
    is_valid=jnp.asarray(is_valid, bool),
  )
  # Without the visits of earlier moves: 6, 6, 2 and 2.
  tree = jax.tree.map(lambda x: x[0], start(CONFIG).tree)
  tree = tree.replace(noise=jnp.zeros(A), move_visits=jnp.asarray([3, 3, 6, 3]))
  monkeypatch.setattr(gumbel, "node_stats", lambda *_: stats)
  assert gumbel.choose(tree, CONFIG) == chosen


def test_next_move_keeps_the_subtree_and_halves_anew():
  entries = {(2,): Candidate(weight=9.0)}
  state = search(table(entries), 17)
  before, after = state.tree, commit(state, CONFIG).tree
  assert after.root_candidate == 2
  root = before.child[0, 0, 2]
  assert after.root_node == root
  kept = before.visits[0, root]
  np.testing.assert_array_equal(after.move_visits[0], kept)
  assert kept.sum() == 5
  assert after.simulations == 0
  state = search(table(entries), 16, state=commit(state, CONFIG))
  # The whole budget is spent again, on top of what was known.
  new_visits = np.sort(root_of(state)[0] - kept)
  np.testing.assert_array_equal(new_visits, [2, 2, 6, 6])
  assert not driver.is_searching(state.tree, CONFIG, MAX_STEPS)
  # What hangs above the root is no business of this search.
  np.testing.assert_array_equal(state.tree.visits[0, 0], before.visits[0, 0])


def test_leaves_of_one_round_are_different():
  config = dataclasses.replace(CONFIG, leaves_per_round=2)
  entries = {(0,): Candidate(value=0.9), (1,): Candidate(value=0.1)}
  state = search(table(entries, width=2), 1, config)
  # The root's own round has one leaf; the other slot is a hole.
  np.testing.assert_array_equal(state.tree.depth[0, :2], [0, NONE])
  assert state.tree.simulations == 0
  state = search(table(entries, width=2), 1, config, state)
  np.testing.assert_array_equal(root_of(state)[0][:2], [1, 1])
  assert state.tree.simulations == 2


def test_a_slot_without_a_leaf_is_lost():
  config = dataclasses.replace(CONFIG, leaves_per_round=2)
  state = search(table({}, width=1), 2, config)
  # The only candidate is being expanded: there is nothing else to expand.
  np.testing.assert_array_equal(state.tree.depth[0, :4], [0, NONE, 1, NONE])
  assert root_of(state)[0][0] == 1
  assert state.tree.simulations == 2


@pytest.mark.parametrize(
  ("utility", "expected"), [("value", 0.5), ("prm", 0.4), ("mix", 0.2)]
)
def test_utility(utility, expected):
  """Verdicts go before scores, and a failed step is worth nothing."""
  config = dataclasses.replace(
    CONFIG, num_candidates=6, utility=utility, prune_illegal=True
  )
  tree = tree_lib.new_tree(
    num_nodes=1,
    num_candidates=6,
    max_step_tokens=2,
    problem_value_B=jnp.zeros(1),
    prompt_length_B=jnp.zeros(1, jnp.int32),
  )
  tree = tree.replace(depth=tree.depth.at[:].set(0))
  shape = (1, 1, 6)
  #     open, ended, cut, illegal, judged wrong, finished by the judge at 0.7
  false = np.zeros(shape, bool)

  def at(*indices):
    return false | np.isin(np.arange(6), indices)

  expansion = Expansion(
    tokens=np.zeros((*shape, 2), np.int32),
    length=np.ones(shape, np.int32),
    token_log_prob=np.zeros((*shape, 2), np.float32),
    proposal_log_prob=np.zeros(shape, np.float32),
    value=np.full(shape, 0.5, np.float32),
    prm=np.full(shape, 0.4, np.float32),
    token_q=np.full(shape, 0.3, np.float32),
    ended=at(1, 4),
    truncated=at(2),
    count=np.ones(shape, np.int32),
  )
  judgement = Judgement(
    legal=np.where(at(3), 0, 1).astype(np.int8),
    finished=at(5),
    outcome=np.where(at(4), 1, np.where(at(5), 0, -1)).astype(np.int8),
    score=np.where(at(5), 0.7, 0).astype(np.float32),
    state=np.full(shape, -1, np.int32),
  )

  def insert(max_steps):
    def one_tree(tree, expansion, judgement):
      return tree_lib.insert(tree, expansion, judgement, config, max_steps)

    return jax.vmap(one_tree)(tree, expansion, judgement)

  tree = insert(max_steps=3)
  expected = [expected, expected, 0, 0, 0, 0.7]
  np.testing.assert_allclose(tree.utility[0, 0], expected, atol=1e-6)
  np.testing.assert_array_equal(tree.is_terminal[0, 0], [0, 1, 1, 1, 1, 1])
  np.testing.assert_array_equal(tree.is_open[0, 0], [1, 0, 0, 0, 0, 0])
  np.testing.assert_array_equal(tree.count[0, 0], [1, 1, 1, 0, 1, 1])
  np.testing.assert_array_equal(tree.sampled[0, 0], 1)
  # At the last depth an open line has failed.
  last = insert(max_steps=1)
  np.testing.assert_array_equal(last.utility[0, 0, 0], 0)
  assert last.is_terminal[0, 0].all()
