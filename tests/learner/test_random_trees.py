"""Targets of random trees against a slow, plain reading of the rules."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qstar_jax.config import LearnerConfig, SearchConfig
from qstar_jax.learner import tree_policy
from qstar_jax.records import NOT_JUDGED, Outcome, TreeRecord
from tests.learner.whole_rows import whole_rows

NUM_CANDIDATES = 3
MAX_LINE_TOKENS = 40
# An edge's last token is a number of its own from here on; others are smaller.
FIRST_EDGE_TOKEN = 1000


def random_shape(rng, max_nodes):
  """Parent [n], candidate [n], count [n, A] and ended [n, A] of a tree."""
  num_nodes = int(rng.integers(1, max_nodes + 1))
  shape = (num_nodes, NUM_CANDIDATES)
  count = rng.integers(0, 3, shape)
  count[:, 0] = rng.integers(1, 4, num_nodes)
  count[1:][rng.random(num_nodes - 1) < 0.1] = 0
  ended = rng.random(shape) < 0.25
  parent, candidate = [-1], [-1]
  free = [(0, a) for a in np.flatnonzero((count[0] > 0) & ~ended[0])]
  while free and len(parent) < num_nodes:
    above = free.pop(rng.integers(len(free)))
    node = len(parent)
    parent.append(above[0])
    candidate.append(int(above[1]))
    free += [
      (node, a) for a in np.flatnonzero((count[node] > 0) & ~ended[node])
    ]
  return parent, candidate, count[: len(parent)], ended[: len(parent)]


def random_tree(rng, sequence=0, max_nodes=7):
  """A tree with every kind of candidate; what empty slots hold is rubbish."""
  parent, candidate, count, ended = random_shape(rng, max_nodes)
  shape = count.shape
  length = np.where(count > 0, rng.integers(1, 4, shape), 0)
  tokens = rng.integers(3, 90, length.sum()).astype(np.int32)
  ends = np.cumsum(length)[count.ravel() > 0] - 1
  first = FIRST_EDGE_TOKEN * (sequence + 1)
  tokens[ends] = first + np.flatnonzero(count.ravel() > 0)
  outcome = np.where(ended, rng.integers(-1, 4, shape), NOT_JUDGED)
  legal = rng.choice([-1, 0, 1, 1, 1, 1], shape)
  outcome = np.where(legal == 0, NOT_JUDGED, outcome)

  def field(values, rubbish):
    return np.where(count > 0, values, rubbish)

  committed = [(0, 0)]
  for node in range(1, len(parent)):
    if (parent[node], candidate[node]) == committed[-1] and count[node, 0] > 0:
      committed.append((node, 0))
  return TreeRecord(
    domain="test",
    domain_version=1,
    problem_key="key",
    prompt="prompt\n",
    actor_id=0,
    sequence=sequence,
    params_version=0,
    terminal_value=str(rng.choice(["value", "outcome"])),
    temperature=1.0,
    prompt_tokens=np.append(
      rng.integers(90, 99, rng.integers(0, 3)), 100 + sequence
    ).astype(np.int32),
    node_parent=np.array(parent, np.int32),
    node_candidate=np.array(candidate, np.int32),
    node_value=rng.random(shape[0], np.float32),
    tokens=tokens,
    length=length.astype(np.int32),
    count=count.astype(np.int32),
    log_prob=field(-3 * rng.random(shape), np.nan).astype(np.float32),
    proposal_log_prob=field(-3 * rng.random(shape), np.nan).astype(np.float32),
    value=field(rng.random(shape), np.nan).astype(np.float32),
    prm=field(rng.random(shape), np.nan).astype(np.float32),
    ended=field(ended, True).astype(bool),
    visits=field(rng.integers(0, 3, shape) * ~ended, 99).astype(np.int32),
    q=field(rng.random(shape), np.nan).astype(np.float32),
    legal=field(legal, 0).astype(np.int8),
    outcome=field(outcome, 0).astype(np.int8),
    score=field(np.where(outcome == 0, 1.0, 0.0), np.nan).astype(np.float32),
    committed_node=np.array([node for node, _ in committed], np.int32),
    committed_candidate=np.array([a for _, a in committed], np.int32),
    final_outcome=int(rng.integers(0, 4)),
    final_score=float(rng.random()),
  )


def line_of(tree, edge):
  """Edges from the root to `edge`."""
  path = [edge]
  while path[0][0] > 0:
    node = path[0][0]
    path.insert(
      0, (int(tree.node_parent[node]), int(tree.node_candidate[node]))
    )
  return path


def edges_of(tree):
  return [(int(i), int(a)) for i, a in np.argwhere(tree.count > 0)]


def tokens_of(tree, edge):
  offset = int(tree.length.ravel()[: edge[0] * NUM_CANDIDATES + edge[1]].sum())
  return tree.tokens[offset : offset + tree.length[edge]].tolist()


def committed_edges(tree):
  nodes = tree.committed_node.tolist()
  return list(zip(nodes, tree.committed_candidate.tolist(), strict=True))


def outcome_of(tree, edge):
  """(outcome, score) of the line that ends here, or (None, None)."""
  outcome, score = tree.outcome[edge], tree.score[edge]
  if edge == committed_edges(tree)[-1] and tree.ended[edge]:
    outcome, score = tree.final_outcome, tree.final_score
  if outcome in (NOT_JUDGED, Outcome.TIMEOUT):
    return None, None
  return outcome, score


def is_failed(tree, edge):
  return any(tree.legal[e] == 0 for e in line_of(tree, edge))


def expected_policy(tree, node, learner, search):
  """{candidate: pi'}, or nothing if the node is no target."""
  above = (tree.node_parent[node], tree.node_candidate[node])
  edges = [e for e in edges_of(tree) if e[0] == node]
  visits = [tree.visits[e] for e in edges]
  if not edges or 1 + sum(visits) < learner.min_visits:
    return {}
  if node and is_failed(tree, above):
    return {}
  scale = (search.maxvisit_init + max(visits)) * search.value_scale
  if tree.terminal_value == "outcome":
    edges = [e for e in edges if tree.legal[e] != 0]
  weights = {
    e: tree.count[e]
    * np.exp(tree.log_prob[e] - tree.proposal_log_prob[e] + scale * tree.q[e])
    for e in edges
  }
  total = sum(weights.values())
  return {e: weight / total for e, weight in weights.items()}


def expected_value(tree, edge, learner, search):
  """(target, weight) after an edge."""
  outcome, score = outcome_of(tree, edge)
  if is_failed(tree, edge):
    return 0.0, 1.0
  if outcome is not None:
    return score, 1.0
  terms = []
  if edge in committed_edges(tree) and tree.final_outcome != Outcome.TIMEOUT:
    terms.append((tree.final_score, learner.value_lambda))
  if search.utility == "value" and tree.visits[edge]:
    terms.append((tree.q[edge], 1 - learner.value_lambda))
  return mean_of(terms)


def expected_root_value(tree, learner, search):
  terms = []
  if tree.final_outcome != Outcome.TIMEOUT:
    terms.append((tree.final_score, learner.value_lambda))
  policy = expected_policy(tree, 0, learner, search)
  if search.utility == "value" and policy:
    value = sum(weight * tree.q[e] for e, weight in policy.items())
    terms.append((value, 1 - learner.value_lambda))
  return mean_of(terms)


def mean_of(terms):
  weight = sum(w for _, w in terms)
  return (sum(x * w for x, w in terms) / weight if weight else 0.0), weight


def expected_prm(tree, edge):
  """(label, weight) of an edge."""
  for other in edges_of(tree):
    is_correct = outcome_of(tree, other)[0] == Outcome.CORRECT
    if is_correct and edge in line_of(tree, other):
      return 1.0, 1.0
  if is_failed(tree, edge) or outcome_of(tree, edge)[0] is not None:
    return 0.0, 1.0
  return 0.0, 0.0


def found_in(batch):
  """What stands at each edge's last token: {token: [(row, position)]}."""
  places = {}
  for row, position in np.argwhere(batch.tokens >= FIRST_EDGE_TOKEN):
    places.setdefault(batch.tokens[row, position], []).append((row, position))
  return places


def check_lines(trees, batch):
  """Every token stands on the line that its tree has it on."""
  parts = {}
  for tree in trees:
    for edge in edges_of(tree):
      line = [tokens_of(tree, e) for e in line_of(tree, edge)]
      line = tree.prompt_tokens.tolist() + list(itertools.chain(*line))
      parts[line[-1]] = line
  for row, place in np.argwhere(batch.tokens >= FIRST_EDGE_TOKEN):
    line, at = [], place
    while batch.position[row, at] > 0:
      line.append(batch.tokens[row, at])
      at = batch.previous[row, at]
    line.append(batch.tokens[row, at])
    assert line[::-1] == parts[batch.tokens[row, place]]


def check_tree(tree, batch, learner, search):
  """Each target of a tree stands in one place; returns the weights there."""
  places = found_in(batch)
  seen = {
    "policy": np.zeros_like(batch.policy_weight),
    "value": np.zeros_like(batch.policy_weight),
    "prm": np.zeros_like(batch.policy_weight),
  }

  def check(name, places, span, target, weight):
    if not weight:
      return
    weights, targets = {
      "policy": (batch.policy_weight, None),
      "value": (batch.value_weight, batch.value_target),
      "prm": (batch.prm_weight, batch.prm_target),
    }[name]
    [(row, position)] = [p for p in places if weights[p] > 0]
    own = slice(position - span + 1, position + 1)
    np.testing.assert_allclose(weights[row, own], weight, rtol=1e-4, atol=1e-7)
    if targets is not None:
      np.testing.assert_allclose(targets[row, position], target, atol=1e-5)
    seen[name][row, own] = weights[row, own]

  policy = {}
  for node in range(len(tree.node_parent)):
    of_node = expected_policy(tree, node, learner, search)
    assert not of_node or abs(sum(of_node.values()) - 1) < 1e-6
    policy |= of_node
  for edge in edges_of(tree):
    tokens = tokens_of(tree, edge)
    found = places.get(tokens[-1], [])
    # pi' on the way here, the step itself included.
    weight = np.prod([policy.get(e, 0.0) for e in line_of(tree, edge)])
    check("policy", found, len(tokens), None, weight)
    value = expected_value(tree, edge, learner, search)
    check("value", found, 1, *value)
    check("prm", found, 1, *expected_prm(tree, edge))
  root = expected_root_value(tree, learner, search)
  check("value", prompt_ends(tree, batch), 1, *root)
  return seen


def prompt_ends(tree, batch):
  """Where the tree's prompt ends, which is of one token of its own."""
  return [tuple(p) for p in np.argwhere(batch.tokens == tree.prompt_tokens[-1])]


configs = st.builds(
  lambda share, visits, utility: (
    LearnerConfig(value_lambda=share, min_visits=visits),
    SearchConfig(utility=utility),
  ),
  st.sampled_from([0.0, 0.75, 1.0]),
  st.sampled_from([1, 2]),
  st.sampled_from(["value", "value", "prm"]),
)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), configs)
def test_random_trees(seed, num_trees, config):
  rng = np.random.default_rng(seed)
  trees = [random_tree(rng, i) for i in range(num_trees)]
  batch = whole_rows(trees, *config, MAX_LINE_TOKENS)
  check_lines(trees, batch)
  seen = [check_tree(tree, batch, *config) for tree in trees]
  for name in ("policy", "value", "prm"):
    # No target is of nothing.
    np.testing.assert_array_equal(
      sum(weights[name] for weights in seen), getattr(batch, f"{name}_weight")
    )


def expected_q(tree, edge, search):
  """Q of an edge, backed up from the leaves of the tree."""
  score = outcome_of(tree, edge)[1]
  if is_failed(tree, edge) or score is not None:
    return score if score and not is_failed(tree, edge) else 0.0
  into = zip(tree.node_parent, tree.node_candidate, strict=True)
  node = next((i for i, above in enumerate(into) if above == edge), None)
  below = [e for e in edges_of(tree) if e[0] == node]
  if not below:
    return tree.value[edge]
  q = {e: expected_q(tree, e, search) for e in below}
  of_node = dataclasses.replace(tree, q=tree.q.copy())
  for e, value in q.items():
    of_node.q[e] = value
  policy = expected_policy(of_node, node, LearnerConfig(), search)
  return sum(policy.get(e, 0.0) * q[e] for e in below)


def count_visits(tree):
  """With visits of what candidates came of, and of nothing else."""
  visits = np.zeros_like(tree.visits)
  for node in reversed(range(1, len(tree.node_parent))):
    above = tree.node_parent[node], tree.node_candidate[node]
    visits[above] = tree.count[node].any() + visits[node].sum()
  return dataclasses.replace(tree, visits=visits)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_searches_that_count_no_visits_teach_value_too(seed, num_trees):
  """`replanned` V is asked of what was expanded, whoever expanded it."""
  rng = np.random.default_rng(seed)
  trees = [random_tree(rng, i) for i in range(num_trees)]
  # Visits scale what pi' makes of Q: here it makes nothing of it.
  search = SearchConfig(maxvisit_init=0.0, value_scale=0.0)
  counted, uncounted = (
    whole_rows(kind, LearnerConfig(tree_q="replanned"), search, MAX_LINE_TOKENS)
    for kind in (
      [count_visits(tree) for tree in trees],
      [
        dataclasses.replace(tree, visits=np.zeros_like(tree.visits))
        for tree in trees
      ],
    )
  )
  jax.tree.map(np.testing.assert_array_equal, counted, uncounted)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_replanned_trees(seed, num_trees):
  """As if the search had left the Q that a plain recursion comes to."""
  rng = np.random.default_rng(seed)
  trees = [count_visits(random_tree(rng, i)) for i in range(num_trees)]
  search = SearchConfig(value_scale=0.03)
  planned = []
  for tree in trees:
    q = tree.q.copy()
    for edge in edges_of(tree):
      q[edge] = expected_q(tree, edge, search)
    planned.append(dataclasses.replace(tree, q=q))
  batch, expected = (
    whole_rows(kind, LearnerConfig(tree_q=tree_q), search, MAX_LINE_TOKENS)
    for kind, tree_q in ((trees, "replanned"), (planned, "search"))
  )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
    batch,
    expected,
  )


def test_more_nodes_than_one_call_takes(monkeypatch):
  trees = [random_tree(np.random.default_rng(i), i) for i in range(5)]
  arguments = trees, LearnerConfig(), SearchConfig(), MAX_LINE_TOKENS
  expected = whole_rows(*arguments)
  monkeypatch.setattr(tree_policy, "_NODES_PER_CALL", 4)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5),
    whole_rows(*arguments),
    expected,
  )
