"""Search trees side by side, as flat arrays that targets are computed on."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from qstar_jax.records import NOT_JUDGED, Outcome, TreeRecord

# The fields of candidates that are read, and what an empty slot says of each.
_EMPTY = {
  "count": 0,
  "length": 0,
  "log_prob": 0.0,
  "proposal_log_prob": 0.0,
  "value": 0.0,
  "prm": 0.0,
  "ended": False,
  "visits": 0,
  "q": 0.0,
  "legal": -1,
  "outcome": NOT_JUDGED,
  "score": 0.0,
}


@dataclasses.dataclass(frozen=True)
class Forest:
  """K trees side by side: N nodes and E = N * A edges, that is, candidates.

  Edge node * A + a is candidate a of that node; -1 is no edge.

  Attributes:
    num_candidates: A.
    tokens: int [X], all prompts, then the tokens of all edges.
    edges: TreeRecord's fields of candidates by name, [E]. Empty slots have
      count 0 and say nothing: no visits, not judged. The verdict on a committed
      line is also that of the edge which finishes it.
    ancestors: int [D, N], the edges above a node, from the one into it to the
      root's; then -1, in the last row at every node.
    tree_of_node: int [N].
    prompt_length: int [K].
    committed: int [D'], edges of the committed lines of all trees.
    final_score: float [K], of the committed line.
    has_verdict: bool [K], the committed line has been judged.
    has_judge: bool [K], the verifier's word was known to the search.
  """

  num_candidates: int
  tokens: np.ndarray
  edges: dict[str, np.ndarray]
  ancestors: np.ndarray
  tree_of_node: np.ndarray
  prompt_length: np.ndarray
  committed: np.ndarray
  final_score: np.ndarray
  has_verdict: np.ndarray
  has_judge: np.ndarray

  @property
  def num_trees(self) -> int:
    """K."""
    return len(self.prompt_length)

  @functools.cached_property
  def roots(self) -> np.ndarray:
    """int [R], nodes right after a prompt: of a tree, or of each of its lines.

    Searches that draw whole lines have a root for each.
    """
    return np.flatnonzero(self.ancestors[0] < 0)

  @property
  def tree_of_edge(self) -> np.ndarray:
    """int [E]."""
    return np.repeat(self.tree_of_node, self.num_candidates)

  @property
  def prompt_offset(self) -> np.ndarray:
    """int [K], the places of the prompts in `tokens`."""
    return np.cumsum(self.prompt_length) - self.prompt_length

  @property
  def edge_offset(self) -> np.ndarray:
    """int [E], the places of the edges' steps in `tokens`."""
    length = self.edges["length"]
    return self.prompt_length.sum() + np.cumsum(length) - length

  @functools.cached_property
  def node_below(self) -> np.ndarray:
    """int [E], the node that the edge leads to; -1 if it has no candidates."""
    below = np.full(len(self.edges["count"]), -1)
    has_more = self.edges["count"].reshape(-1, self.num_candidates).any(axis=1)
    node = np.flatnonzero(has_more & (self.ancestors[0] >= 0))
    below[self.ancestors[0, node]] = node
    return below

  @functools.cached_property
  def is_failed(self) -> np.ndarray:
    """bool [E], the edge or one above it is illegal: the line is lost."""
    is_illegal = self.edges["legal"] == 0
    is_node_failed = at(is_illegal, self.ancestors, False).any(axis=0)
    return is_illegal | np.repeat(is_node_failed, self.num_candidates)

  @functools.cached_property
  def is_settled(self) -> np.ndarray:
    """bool [E], what comes of the line is a fact: it is lost, or judged."""
    return self.is_failed | is_verdict(self.edges["outcome"])

  @functools.cached_property
  def fact(self) -> np.ndarray:
    """float [E], the score of lines that are settled; elsewhere 0."""
    return np.where(self.is_failed, 0.0, self.edges["score"]) * self.is_settled

  @functools.cached_property
  def playable_count(self) -> np.ndarray:
    """int [E], the count, but 0 where the search knew that it is illegal."""
    is_refused = self.has_judge[self.tree_of_edge] & (self.edges["legal"] == 0)
    return np.where(is_refused, 0, self.edges["count"])

  def candidates(self, node: np.ndarray) -> np.ndarray:
    """The edges of S nodes: int [S, A]."""
    a = self.num_candidates
    return node[:, None] * a + np.arange(a)

  def levels(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Nodes but the roots, those of one depth together, the deepest first.

    Yields:
      The edges into S nodes, int [S], and their candidates, int [S, A].
    """
    depth = (self.ancestors >= 0).sum(axis=0)
    for level in range(depth.max(), 0, -1):
      node = np.flatnonzero(depth == level)
      yield self.ancestors[0, node], self.candidates(node)

  def above(self, edge: np.ndarray) -> np.ndarray:
    """The edges above each of S edges: int [D, S], -1 past the root."""
    return self.ancestors[:, edge // self.num_candidates]


@dataclasses.dataclass(frozen=True)
class Targets:
  """Targets with their weights, of the same shape; a weight of 0 is none."""

  target: np.ndarray
  weight: np.ndarray


def at(values: np.ndarray, index: np.ndarray, default) -> np.ndarray:
  """values[index], and the default where the index is -1."""
  return np.where(index >= 0, values[index], default)


def is_verdict(outcome: np.ndarray) -> np.ndarray:
  """True where a verifier has judged; one that ran out of time has not."""
  return (outcome != NOT_JUDGED) & (outcome != Outcome.TIMEOUT)


def plant(trees: Sequence[TreeRecord]) -> Forest:
  """The forest of at least one tree; all have the same A."""
  num_candidates = trees[0].count.shape[1]
  num_nodes = np.array([len(tree.node_parent) for tree in trees])
  first_node = np.cumsum(num_nodes) - num_nodes
  edges = {
    name: np.concatenate([getattr(tree, name) for tree in trees]).ravel()
    for name in _EMPTY
  }
  is_empty = edges["count"] == 0
  for name, value in _EMPTY.items():
    edges[name][is_empty] = value

  def edge_ids(node_field, candidate_field):
    """Edges of a record's fields, whose nodes count from the tree's first."""
    node = [getattr(tree, node_field) for tree in trees]
    first = np.repeat(first_node, [len(part) for part in node])
    node = np.concatenate(node)
    a = np.concatenate([getattr(tree, candidate_field) for tree in trees])
    return np.where(node >= 0, (first + node) * num_candidates + a, -1)

  into_node = edge_ids("node_parent", "node_candidate")
  ancestors = [into_node]
  while (ancestors[-1] >= 0).any():
    edge = ancestors[-1]
    above = into_node[edge // num_candidates]
    ancestors.append(np.where(edge >= 0, above, -1))
  committed = edge_ids("committed_node", "committed_candidate")
  _judge_tips(trees, edges, committed)
  prompts = [tree.prompt_tokens for tree in trees]
  return Forest(
    num_candidates=num_candidates,
    tokens=np.concatenate([*prompts, *(tree.tokens for tree in trees)]),
    edges=edges,
    ancestors=np.array(ancestors),
    tree_of_node=np.repeat(np.arange(len(trees)), num_nodes),
    prompt_length=np.array([len(prompt) for prompt in prompts]),
    committed=committed,
    final_score=np.array([tree.final_score for tree in trees]),
    has_verdict=is_verdict(np.array([tree.final_outcome for tree in trees])),
    has_judge=np.array([tree.terminal_value == "outcome" for tree in trees]),
  )


def _judge_tips(
  trees: Sequence[TreeRecord],
  edges: dict[str, np.ndarray],
  committed: np.ndarray,
) -> None:
  """Writes the committed lines' verdicts to the edges that finish them."""
  last = np.cumsum([len(tree.committed_node) for tree in trees]) - 1
  for tree, i in zip(trees, last, strict=True):
    if len(tree.committed_node) and edges["ended"][committed[i]]:
      edges["outcome"][committed[i]] = tree.final_outcome
      edges["score"][committed[i]] = tree.final_score
