"""Numbers over plays: accuracies, their intervals, and what was shared."""

import math
from collections.abc import Sequence

import numpy as np

from qstar_jax.search.tree import NONE, SearchTree

_NUM_RESAMPLES = 2000


def bootstrap_ci95(
  scores: Sequence[float] | np.ndarray, seed: int
) -> tuple[float, float]:
  """Percentile bootstrap interval of the mean, over problems and seeds.

  Problems are drawn anew, and for each of them as many of its seeds as there
  are: plays of one problem are not independent.

  Args:
    scores: [problems], or [problems, seeds]; at least one.
    seed: of the resampling.

  Returns:
    (low, high).
  """
  values = np.asarray(scores, np.float64)
  values = values.reshape(len(values), -1)
  num_problems, num_seeds = values.shape
  rng = np.random.default_rng(seed)
  picks = rng.integers(num_problems, size=(_NUM_RESAMPLES, num_problems))
  if num_seeds == 1:
    means = values[picks, 0].mean(axis=1)
  else:
    shape = (_NUM_RESAMPLES, num_problems, num_seeds)
    seeds = rng.integers(num_seeds, size=shape)
    means = values[picks[..., None], seeds].mean(axis=(1, 2))
  low, high = np.percentile(means, [2.5, 97.5])
  return float(low), float(high)


def pass_at_k(num_lines: int, num_correct: int, k: int) -> float:
  """Chance that k of n lines hold a correct one: 1 - C(n - c, k) / C(n, k).

  The unbiased estimator of Chen et al. 2021, arXiv:2107.03374, for lines that
  were sampled alike; those of a tree search were not.

  Args:
    num_lines: n.
    num_correct: c <= n.
    k: at least 1; with more than n lines wanted, all n are taken.

  Returns:
    In [0, 1]; 0 without lines.
  """
  k = min(k, num_lines)
  if k == 0:
    return 0.0
  return 1.0 - math.comb(num_lines - num_correct, k) / math.comb(num_lines, k)


def maj_at_k(
  answers: Sequence[str], scores: Sequence[float], k: int, seed: int
) -> float:
  """Mean score of the most frequent answer among k lines, over 64 draws.

  Args:
    answers: of the lines; an empty one does not vote.
    scores: of the lines. Which answer wins says nothing about which of its
      lines were drawn: its score is their mean.
    k: lines drawn without replacement, all of them if there are no more.
    seed: of the draws.

  Returns:
    In [0, 1]; ties share.
  """
  if not len(answers):
    return 0.0
  _, index = np.unique(np.asarray(answers), return_inverse=True)
  has_answer = np.array([bool(answer) for answer in answers])
  by_answer = np.bincount(index, scores) / np.bincount(index)
  rng = np.random.default_rng(seed)
  num_draws = 64 if k < len(answers) else 1
  total = 0.0
  for _ in range(num_draws):
    drawn = rng.permutation(len(answers))[:k]
    votes = np.bincount(
      index[drawn], weights=has_answer[drawn], minlength=by_answer.size
    )
    if votes.max() > 0:
      total += by_answer[votes == votes.max()].mean()
  return total / num_draws


def kv_sharing(tree: SearchTree, prompt_tokens: int) -> float:
  """Tokens in the contexts of a tree's nodes, over tokens stored for them.

  Args:
    tree: numpy arrays of one tree.
    prompt_tokens: of its problem.

  Returns:
    1 or more; 1 where nothing is shared.
  """
  nodes = np.flatnonzero(tree.depth != NONE)
  context = np.zeros(tree.depth.size, np.int64)
  stored = prompt_tokens
  # A node comes after its parent.
  for node in nodes:
    parent = tree.parent[node]
    if parent == NONE:
      context[node] = prompt_tokens
      continue
    own = tree.length[parent, tree.candidate[node]]
    context[node] = context[parent] + own
    stored += own
  return float(context[nodes].sum() / stored)
