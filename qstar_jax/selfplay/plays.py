"""What a finished play says: its committed line, and its record for replay."""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from qstar_jax.config import SearchConfig
from qstar_jax.records import NOT_JUDGED, Domain, TreeRecord, Verdict
from qstar_jax.search import searchers, values
from qstar_jax.search.tree import NONE, SearchTree, line_index
from qstar_jax.selfplay.player import Played


@dataclasses.dataclass(frozen=True)
class PlayResult:
  """How one play went.

  Attributes:
    steps: texts of the committed line.
    verdict: of the committed line; its score is top-1.
    any_score: best score among the tree's finished lines, the committed one
      included, in [0, 1].
    mean_score: mean score of the tree's finished lines, each counted as often
      as it was sampled; the committed line's if none is finished.
    tokens: generated and prefilled.
    expansions: nodes of the tree.
  """

  steps: tuple[str, ...]
  verdict: Verdict
  any_score: float
  mean_score: float
  tokens: int
  expansions: int


def committed_edges(tree: SearchTree) -> list[tuple[int, int]]:
  """(node, candidate) of the committed steps, first to last."""
  edges = []
  node, candidate = tree.root_parent, tree.root_candidate
  while node != NONE:
    edges.append((int(node), int(candidate)))
    candidate, node = tree.candidate[node], tree.parent[node]
  return edges[::-1]


def committed_steps(played: Played) -> tuple[str, ...]:
  """Texts of the committed line."""
  node, candidate = committed_edges(played.tree)[-1]
  return played.judge.line(int(line_index(played.tree, node, candidate)))


def result(domain: Domain, played: Played) -> PlayResult:
  """How a play went."""
  tree = played.tree
  steps = committed_steps(played)
  verdict = domain.verify(played.problem, steps)
  is_finished = (tree.sampled > 0) & (tree.outcome >= 0)
  scores = tree.score[is_finished]
  weights = tree.sampled[is_finished]
  mean_score = verdict.score
  if scores.size:
    mean_score = float(np.average(scores, weights=weights))
  return PlayResult(
    steps=steps,
    verdict=verdict,
    any_score=max([verdict.score, *scores.tolist()]),
    mean_score=mean_score,
    tokens=int(tree.tokens_used),
    expansions=int((tree.depth != NONE).sum()),
  )


def priorities(played: Played, search: SearchConfig) -> np.ndarray | None:
  """f of the candidates of a play's record, [n, A], if the search has one."""
  priority_fn = searchers.load(search).priority
  if priority_fn is None:
    return None
  tree = played.tree
  if search.terminal_value == "value":  # Verdicts came when it was over.
    tree = tree.replace(outcome=np.full_like(tree.outcome, NOT_JUDGED))
  priority_NA = np.asarray(priority_fn(tree, search))
  return priority_NA[tree.depth != NONE]


class FinishedLine(NamedTuple):
  """A line of a tree that was played to its end.

  Attributes:
    answer: as the domain writes it; empty if it has none.
    score: the verdict's, in [0, 1].
    count: samples that were this line's last step.
  """

  answer: str
  score: float
  count: int


def finished_lines(domain: Domain, played: Played) -> list[FinishedLine]:
  """All lines of a tree that the verifier has judged."""
  tree = played.tree
  is_finished = (tree.sampled > 0) & (tree.outcome >= 0)
  found = []
  for node, a in np.argwhere(is_finished):
    steps = played.judge.line(int(line_index(tree, node, a)))
    found.append(
      FinishedLine(
        domain.answer(played.problem, steps),
        float(tree.score[node, a]),
        int(tree.sampled[node, a]),
      )
    )
  return found


@jax.jit
def _shared_q_values(tree: SearchTree) -> chex.Array:
  nodes = jnp.arange(tree.depth.size)
  return jax.vmap(values.shared_q_values, in_axes=(None, 0))(tree, nodes)


def _q_values(tree: SearchTree, search: SearchConfig) -> np.ndarray:
  """Q of all candidates, [N, A], as the search had it."""
  if search.share_statistics:
    return np.asarray(_shared_q_values(tree))
  return values.q_values(tree)


def to_record(
  domain: Domain,
  played: Played,
  *,
  actor_id: int,
  sequence: int,
  params_version: int,
  search: SearchConfig,
  prompt_tokens: list[int],
) -> TreeRecord:
  """The record of one play by `search`; see `TreeRecord` for the others."""
  tree, problem = played.tree, played.problem
  nodes = np.flatnonzero(tree.depth != NONE)
  # Holes go: `position[node]` is a node's row in the record, and its last
  # entry that of NONE.
  position = np.full(tree.depth.size + 1, NONE, np.int32)
  position[nodes] = np.arange(nodes.size)
  sampled = tree.sampled[nodes]
  length = np.where(sampled > 0, tree.length[nodes], 0)
  in_use = np.arange(tree.tokens.shape[-1]) < length[..., None]
  committed = np.array(committed_edges(tree), np.int32)
  verdict = domain.verify(problem, committed_steps(played))

  def of_candidates(field, dtype):
    return np.asarray(field[nodes], dtype)

  return TreeRecord(
    domain=domain.name,
    domain_version=domain.version,
    problem_key=problem.key,
    prompt=problem.prompt,
    actor_id=actor_id,
    sequence=sequence,
    params_version=params_version,
    terminal_value=search.terminal_value,
    temperature=search.temperature,
    prompt_tokens=np.asarray(prompt_tokens, np.int32),
    node_parent=position[tree.parent[nodes]],
    node_candidate=np.asarray(tree.candidate[nodes], np.int32),
    node_value=np.asarray(tree.raw_value[nodes], np.float32),
    tokens=np.asarray(tree.tokens[nodes][in_use], np.int32),
    length=length.astype(np.int32),
    count=sampled.astype(np.int32),
    log_prob=of_candidates(tree.log_prob, np.float32),
    proposal_log_prob=of_candidates(tree.proposal_log_prob, np.float32),
    value=of_candidates(tree.value, np.float32),
    prm=of_candidates(tree.prm, np.float32),
    ended=of_candidates(tree.ended, bool),
    visits=of_candidates(tree.visits, np.int32),
    q=of_candidates(_q_values(tree, search), np.float32),
    legal=of_candidates(tree.legal, np.int8),
    outcome=of_candidates(tree.outcome, np.int8),
    score=of_candidates(tree.score, np.float32),
    committed_node=position[committed[:, 0]],
    committed_candidate=committed[:, 1],
    final_outcome=int(verdict.outcome),
    final_score=verdict.score,
  )
