"""Choosing a tree's answer by a vote of its finished lines. Host side.

A line votes as often as it was sampled, for its answer as the domain writes it:
self-consistency (Wang et al. 2023, arXiv:2203.11171). No verifier is asked.
"""

import collections
from collections.abc import Callable

import numpy as np

from qstar_jax.search.tree import NONE, SearchTree, line_index


def elect(
  tree: SearchTree, answer_of: Callable[[int], str], choose_by: str
) -> SearchTree:
  """Commits a line of the answer that most are for.

  Args:
    tree: numpy arrays of one tree that is done.
    answer_of: the answer of the line that ends with a candidate, by its index
      `tree.line_index`; empty if it has none, and then it has no vote.
    choose_by: `majority` counts samples; `weighted_majority` adds up their line
      scores; `shortest` is `majority`, but commits the line of fewest steps.
      The line of best score is committed otherwise, and the answer of its best
      line decides between answers that as many are for.

  Returns:
    The tree; as it was if no line has a vote.
  """
  is_finished = (tree.count > 0) & tree.is_terminal & ~tree.is_failed
  lines = collections.defaultdict(list)
  for edge in map(tuple, np.argwhere(is_finished)):
    answer = answer_of(int(line_index(tree, *edge)))
    if answer:
      lines[answer].append(edge)
  if not lines:
    return tree

  def votes(edge):
    weight = tree.line_score[edge] if choose_by == "weighted_majority" else 1
    return float(weight * tree.sampled[edge])

  def rank(edges):
    return sum(map(votes, edges)), max(tree.line_score[edge] for edge in edges)

  elected = max(lines.values(), key=rank)
  is_short = choose_by == "shortest"
  node, candidate = min(
    elected,
    key=lambda edge: (tree.depth[edge[0]] * is_short, -tree.line_score[edge]),
  )
  return tree.replace(
    root_parent=node,
    root_candidate=candidate,
    root_depth=tree.depth[node] + 1,
    root_node=np.int32(NONE),
  )
