"""Tree records made by hand, and what is exported of them."""

import dataclasses

import numpy as np

from qstar_jax.domains import make_domain
from qstar_jax.evaluation.tree_export import export
from qstar_jax.records import NOT_JUDGED, Outcome, TreeRecord, Verdict
from qstar_jax.selfplay.plays import PlayResult
from qstar_jax.text.vocabulary import ByteVocabulary

VOCABULARY = ByteVocabulary()

# What each field of a candidate is unless a test says otherwise.
DEFAULTS = {
  "count": 1,
  "log_prob": -1.0,
  "proposal_log_prob": -1.0,
  "value": 0.5,
  "prm": 0.5,
  "ended": False,
  "visits": 0,
  "q": 0.5,
  "legal": 1,
  "outcome": NOT_JUDGED,
  "score": 0.0,
}


def step(text, below=None, *, is_cut=False, **fields):
  """A candidate, and those of the node that expands it, if one does."""
  assert fields.keys() <= DEFAULTS.keys()
  is_last = fields.get("ended", False)
  tokens = VOCABULARY.encode_step(text, is_last)
  tokens = tokens[:-1] if is_cut else tokens
  return DEFAULTS | fields | {"tokens": tokens, "below": below}


def make_record(root, committed, *, prompt="1 2 3 -> 6\n", **fields):
  """The record of a tree of `step`s; `committed` are indices from the root."""
  nodes, parents = [root], [(-1, -1)]
  for row, node in enumerate(nodes):  # Grows: breadth first.
    for index, candidate in enumerate(node):
      if candidate["below"] is not None:
        nodes.append(candidate["below"])
        parents.append((row, index))
  width = max(map(len, nodes))
  empty = DEFAULTS | {"count": 0, "q": np.nan, "prm": np.nan, "tokens": []}
  rows = [node + [empty] * (width - len(node)) for node in nodes]
  row, edges = 0, []
  for index in committed:
    edges.append((row, index))
    row = parents.index((row, index)) if (row, index) in parents else None
  kinds = {"ended": bool, "legal": np.int8, "outcome": np.int8}
  kinds |= {"count": np.int32, "visits": np.int32}
  of_candidates = {
    name: np.array(
      [[c[name] for c in node] for node in rows], kinds.get(name, np.float32)
    )
    for name in DEFAULTS
  }
  tokens = [token for node in rows for c in node for token in c["tokens"]]
  return TreeRecord(
    domain="test",
    domain_version=1,
    problem_key="key",
    prompt=prompt,
    actor_id=0,
    sequence=0,
    params_version=0,
    terminal_value="value",
    temperature=1.0,
    prompt_tokens=np.array(VOCABULARY.encode(prompt), np.int32),
    node_parent=np.array([parent for parent, _ in parents], np.int32),
    node_candidate=np.array([index for _, index in parents], np.int32),
    node_value=np.full(len(nodes), 0.25, np.float32),
    tokens=np.array(tokens, np.int32),
    length=np.array([[len(c["tokens"]) for c in n] for n in rows], np.int32),
    committed_node=np.array([node for node, _ in edges], np.int32),
    committed_candidate=np.array([index for _, index in edges], np.int32),
    **of_candidates,
    **({"final_outcome": 1, "final_score": 0.0} | fields),
  )


def random_record(rng):
  """A tree of random shape; every step's text is a number of its own."""
  names = iter(range(10_000))

  def node(depth):
    return [
      step(
        str(next(names)),
        node(depth + 1) if depth < 4 and rng.random() < 0.35 else None,
        visits=int(rng.integers(4)),
        q=float(rng.random()),
        count=int(rng.integers(1, 3)),
      )
      for _ in range(rng.integers(1, 5))
    ]

  root = node(0)
  committed, below = [], root
  while below is not None:
    committed.append(int(rng.integers(len(below))))
    below = below[committed[-1]]["below"]
  return make_record(root, committed), root, committed


def large_record(num_nodes, width):
  """A tree of num_nodes expanded nodes, breadth first, `width` steps each.

  The last candidates are the committed line; a step's text is its place among
  the nodes and its number there: `17.2`.
  """
  nodes = [
    [step(f"{row}.{a}", visits=a, q=a / width) for a in range(width)]
    for row in range(num_nodes)
  ]
  edges = [(row, a) for row in range(num_nodes) for a in range(width)]
  for below, (row, a) in zip(nodes[1:], edges, strict=False):
    nodes[row][a]["below"] = below
  committed, below = [], nodes[0]
  while below is not None:
    committed.append(width - 1)
    below = below[-1]["below"]
  return make_record(nodes[0], committed)


def export_made(record, priority=None, **solution):
  """The export of a made record; `solution` are fields of its verdict."""
  domain = make_domain("countdown", {})
  problem = dataclasses.replace(
    domain.parse("1 2 3 -> 6"), prompt=record.prompt
  )
  verdict = Verdict(
    **({"outcome": Outcome.WRONG, "score": 0.0, "reason": "why"} | solution)
  )
  result = PlayResult(
    steps=("1 + 2 = 3 (left: 3 3)",),
    verdict=verdict,
    any_score=0.0,
    mean_score=0.0,
    tokens=1234,
    expansions=len(record.node_parent),
  )
  return export(
    *(domain, problem, result, record, VOCABULARY),
    searcher="astar",
    seed=7,
    priority=priority,
  )
