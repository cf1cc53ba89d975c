"""The search against one written plainly: no batch, no masks, float64.

`PlainSearch` follows a search round by round. It computes all statistics anew
and checks that every leaf and every commit is one the algorithm may choose.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mctx._src.seq_halving import get_sequence_of_considered_visits

from qstar_jax.config import SearchConfig
from qstar_jax.search.expand import NOTHING, PROBLEM
from qstar_jax.search.tree import NONE
from qstar_jax.search.values import q_values, shared_q_values

MAX_STEPS = 5
NUM_TREES = 8
BASE = SearchConfig(
  num_candidates=3,
  num_simulations=8,
  max_considered=3,
  terminal_value="outcome",
)
# Two scores closer than this may be taken for equal.
EPSILON = 1e-4


@dataclasses.dataclass
class Node:
  """An expanded node and its candidates: arrays [A]."""

  edge: tuple[int, int] | None
  depth: int
  log_prior: np.ndarray
  is_valid: np.ndarray
  is_terminal: np.ndarray
  utility: np.ndarray
  child: np.ndarray
  visits: np.ndarray
  pending: np.ndarray
  value_sum: np.ndarray
  state: np.ndarray
  is_known: np.ndarray

  @property
  def seen_visits(self):
    return self.visits + self.pending


class PlainSearch:
  """One tree; nodes by index. An edge is (node, candidate)."""

  def __init__(self, config):
    self.config = config
    self.nodes = {}

  def q(self, node):
    """Its candidates' own; those of one state together if they are shared."""
    q = (node.utility + node.value_sum) / (1 + node.visits)
    if self.config.share_statistics:
      for a in np.flatnonzero((node.state != NONE) & ~node.is_known):
        q[a] = self.pooled(node.state[a])
    return q

  def pooled(self, state):
    total = weight = 0
    for node in self.nodes.values():
      for a in np.flatnonzero(node.state == state):
        total += node.utility[a] + node.value_sum[a]
        weight += 1 + node.visits[a]
    return total / weight

  def scaled_q(self, node):
    weight = self.config.maxvisit_init + node.seen_visits.max()
    return weight * self.config.value_scale * self.q(node)

  def improved(self, node):
    logits = node.log_prior + self.scaled_q(node)
    logits = np.where(node.is_valid, logits, -np.inf)
    weight = np.exp(logits - logits.max())
    return weight / weight.sum()

  def value(self, node):
    if not node.is_valid.any():
      return 0.0
    return (self.improved(node) * self.q(node)).sum()

  def is_open(self, node):
    """Candidates at or below which something can be expanded, bool [A]."""
    is_open = node.is_valid & ~node.is_terminal
    for a in np.flatnonzero(node.child != NONE):
      # A child selected in this round has no candidates yet.
      child = self.nodes.get(node.child[a])
      is_open[a] = child is not None and self.is_open(child).any()
    return is_open

  def from_root(self, node, move_visits, gumbel, simulation):
    """Candidates that sequential halving may choose at the root."""
    visits = node.seen_visits - move_visits
    is_open = self.is_open(node)
    num = min((is_open | (visits > 0)).sum(), self.config.max_considered)
    num_simulations = self.config.num_simulations
    wanted = get_sequence_of_considered_visits(num, num_simulations)[simulation]
    is_wanted = is_open & (visits == wanted)
    allowed = is_wanted if is_wanted.any() else is_open
    return best(gumbel + node.log_prior + self.scaled_q(node), allowed)

  def down(self, node):
    """Candidates that may be chosen below the root."""
    share = node.seen_visits / (1 + node.seen_visits.sum())
    return best(self.improved(node) - share, self.is_open(node))

  def to_commit(self, node, move_visits, gumbel):
    """Candidates that may be committed."""
    if not node.is_valid.any():
      return np.arange(len(node.child)) == 0
    visits = node.visits - move_visits
    is_survivor = visits == visits[node.is_valid].max()
    is_survivor |= ~self.is_open(node)
    allowed = is_survivor & node.is_valid
    return best(gumbel + node.log_prior + self.scaled_q(node), allowed)

  def path(self, edge, root):
    """The edges from the root's to `edge`."""
    edges = [edge]
    while edges[0][0] != root:
      edges.insert(0, self.nodes[edges[0][0]].edge)
    return edges

  def is_below(self, index, root):
    """Whether a node is the root or has it above itself."""
    edge = self.nodes[index].edge
    return index == root or (edge is not None and self.is_below(edge[0], root))

  def select(self, before, leaf, index, simulation):
    """Checks one slot of a round; returns the path to its leaf, or None."""
    root = before.root_node
    if root == NONE:
      assert leaf == root_leaf(before, self.config)
      return []
    edge = divmod(int(leaf), self.config.num_candidates)
    path = self.path(edge, root)
    first, *below = path
    node = self.nodes[root]
    noise = before.move_visits, before.noise
    assert self.from_root(node, *noise, simulation)[first[1]]
    for parent, a in below:
      assert self.down(self.nodes[parent])[a]
    for parent, a in path:
      self.nodes[parent].pending[a] += 1
    assert self.nodes[edge[0]].child[edge[1]] == NONE
    self.nodes[edge[0]].child[edge[1]] = index
    return path

  def can_select(self, before, num_expanded, simulation):
    if before.is_done:
      return False
    if before.root_node == NONE:
      return num_expanded == 0
    has_budget = simulation < self.config.num_simulations
    return has_budget and self.is_open(self.nodes[before.root_node]).any()

  def add(self, leaf, index, expansion, judgement):
    """The birth of a node's candidates, [A] each."""
    edge = None
    depth = 0
    if leaf != PROBLEM:
      edge = divmod(int(leaf), self.config.num_candidates)
      depth = self.nodes[edge[0]].depth + 1
    is_illegal = judgement.legal == 0
    is_finished = expansion.ended | judgement.finished
    is_lost = is_illegal | expansion.truncated
    if depth + 1 == MAX_STEPS:
      is_lost |= ~is_finished
    has_verdict = judgement.outcome != -1
    utility = np.where(is_lost, 0.0, expansion.value)
    zeros = np.zeros(len(expansion.count), int)
    is_pruned = is_illegal & self.config.prune_illegal
    is_valid = (expansion.count > 0) & ~is_pruned
    self.nodes[index] = Node(
      edge=edge,
      depth=depth,
      log_prior=np.log(np.maximum(expansion.count, 1))
      + expansion.token_log_prob.astype(float).sum(-1)
      - expansion.proposal_log_prob,
      is_valid=is_valid,
      is_terminal=is_finished | is_lost,
      utility=np.where(has_verdict, judgement.score, utility).astype(float),
      child=np.full_like(zeros, NONE),
      visits=zeros.copy(),
      pending=zeros.copy(),
      value_sum=zeros.astype(float),
      state=np.where(is_valid, judgement.state, NONE),
      is_known=~is_valid | is_finished | is_lost,
    )

  def back_up(self, leaves):
    """Every new value to every edge above it, and what becomes known by it."""
    for index, path in leaves:
      value = self.value(self.nodes[index])
      for parent, a in reversed(path):
        node = self.nodes[parent]
        node.visits[a] += 1
        node.pending[a] -= 1
        node.value_sum[a] += value
        node.is_known[a] = not (self.is_open(node)[a] or node.pending[a])
        if node.is_known[a] or self.config.backup == "improved":
          known = self.value(self.nodes[node.child[a]])
          node.value_sum[a] = known * (1 + node.visits[a]) - node.utility[a]

  def compare(self, tree):
    """That a tree has this search's statistics."""
    q = q_values(tree)
    if self.config.share_statistics:
      q = jax.device_get(shared_q_of_all(tree))
    for index, node in self.nodes.items():
      np.testing.assert_array_equal(tree.visits[index], node.visits)
      np.testing.assert_array_equal(tree.pending[index], 0)
      np.testing.assert_array_equal(tree.child[index], node.child)
      np.testing.assert_array_equal(tree.is_terminal[index], node.is_terminal)
      np.testing.assert_allclose(q[index], self.q(node), atol=1e-5)
      assert tree.depth[index] == node.depth
      # What hangs above the root, or beside it, is never looked at again.
      if self.is_below(index, tree.root_node):
        np.testing.assert_array_equal(tree.is_open[index], self.is_open(node))


@jax.jit
def shared_q_of_all(tree):
  nodes = jnp.arange(tree.depth.size)
  return jax.vmap(shared_q_values, in_axes=(None, 0))(tree, nodes)


def best(score, allowed):
  return allowed & (score >= score[allowed].max() - EPSILON)


def root_leaf(tree, config):
  if tree.root_parent == NONE:
    return PROBLEM
  return tree.root_parent * config.num_candidates + tree.root_candidate


def part(records, index):
  """The record at an index of records whose arrays share their first axis."""
  return jax.tree.map(lambda x: x[index], records)


def follow(rounds, config, row):
  """Follows one tree of a play to its end; returns the plain search."""
  plain = PlainSearch(config)
  for number, batch in enumerate(rounds):
    one = part(batch, row)
    before, after = one.before, one.after
    first = number * config.leaves_per_round
    leaves = []
    for w, leaf in enumerate(one.leaf):
      simulation = before.simulations + w
      can_select = plain.can_select(before, len(leaves), simulation)
      assert can_select == (leaf != NOTHING)
      if can_select:
        path = plain.select(before, leaf, first + w, simulation)
        leaves.append((first + w, path))
    for index, _ in leaves:
      plain.add(
        one.leaf[index - first],
        index,
        part(one.expansion, index - first),
        part(one.judgement, index - first),
      )
    plain.back_up(leaves)
    plain.compare(after)
    if one.advanced.root_depth == after.root_depth + 1:
      node = plain.nodes[after.root_node]
      chosen = plain.to_commit(node, after.move_visits, after.noise)
      assert one.advanced.root_parent == after.root_node
      assert chosen[one.advanced.root_candidate]
  return plain


@pytest.mark.parametrize(
  ("leaves_per_round", "prune_illegal", "backup"),
  [
    (1, True, "mean"),
    (2, False, "mean"),
    (4, True, "mean"),
    (1, True, "improved"),
    (2, False, "improved"),
  ],
)
def test_search_is_the_plain_search(
  searches, leaves_per_round, prune_illegal, backup
):
  config = dataclasses.replace(
    BASE,
    leaves_per_round=leaves_per_round,
    prune_illegal=prune_illegal,
    backup=backup,
  )
  rng = np.random.default_rng(leaves_per_round)
  num_nodes = 0
  for _ in range(4):
    roots = rng.integers(2**32, size=NUM_TREES, dtype=np.uint32)
    world = searches.random_world(rng, NUM_TREES)
    rounds = list(searches.judged_play(roots, world, config, MAX_STEPS))
    for row in range(NUM_TREES):
      num_nodes += len(follow(rounds, config, row).nodes)
  assert num_nodes > 300


def num_twins(plain):
  """Candidates that share their state with others."""
  states = np.concatenate([node.state for node in plain.nodes.values()])
  _, counts = np.unique(states[states != NONE], return_counts=True)
  return counts[counts > 1].sum()


@pytest.mark.parametrize("leaves_per_round", [1, 2])
def test_search_with_shared_statistics_is_the_plain_one(
  searches, leaves_per_round
):
  config = dataclasses.replace(
    BASE, leaves_per_round=leaves_per_round, share_statistics=True
  )
  rng = np.random.default_rng(leaves_per_round)
  plains = []
  for _ in range(4):
    roots = rng.integers(2**32, size=NUM_TREES, dtype=np.uint32)
    world = searches.random_world(rng, NUM_TREES)
    rounds = list(searches.judged_play(roots, world, config, MAX_STEPS))
    plains += [follow(rounds, config, row) for row in range(NUM_TREES)]
  assert sum(map(num_twins, plains)) > 300


@pytest.mark.parametrize("searcher", ["gumbel", "puct"])
@pytest.mark.parametrize("leaves_per_round", [1, 2])
def test_without_equal_states_nothing_is_shared(
  searches, searcher, leaves_per_round
):
  """Bit for bit the search that shares nothing; with them, another."""
  alone = dataclasses.replace(
    BASE, searcher=searcher, leaves_per_round=leaves_per_round
  )
  shared = dataclasses.replace(alone, share_statistics=True)
  rng = np.random.default_rng(leaves_per_round)
  roots = rng.integers(2**32, size=NUM_TREES, dtype=np.uint32)
  world = searches.random_world(rng, NUM_TREES)

  def finished(config, **options):
    *_, last = searches.judged_play(roots, world, config, MAX_STEPS, **options)
    return {k: v for k, v in last.advanced.items() if k != "state"}

  expected = finished(alone)
  found = finished(shared, are_alike=False)
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value, err_msg=name)
  assert (finished(shared)["child"] != expected["child"]).any()
