"""Searches that end with one commit: the best finished line of the tree.

What all searches but those that go move by move have in common.
"""

import chex
import jax.numpy as jnp

from qstar_jax.config import SearchConfig
from qstar_jax.search.searcher import best_edge, step_down
from qstar_jax.search.tree import NONE, SearchTree

_NEVER = -jnp.inf


def begin(
  tree: SearchTree, key: chex.PRNGKey, config: SearchConfig, max_steps: int
) -> SearchTree:
  """There is one move, and nothing to prepare."""
  del key, config, max_steps
  return tree


def settle(
  tree: SearchTree, node: chex.Array, config: SearchConfig, max_steps: int
) -> SearchTree:
  """Nothing is backed up."""
  del node, config, max_steps
  return tree


def is_frontier(tree: SearchTree) -> chex.Array:
  """bool [N, A], candidates that can be expanded (one tree)."""
  is_expanded = tree.child != NONE
  return (tree.count > 0) & ~tree.is_terminal & ~is_expanded


def is_finished(tree: SearchTree) -> chex.Array:
  """bool [N, A], candidates that end a line which did not fail (one tree)."""
  return (tree.count > 0) & tree.is_terminal & ~tree.is_failed


def score(tree: SearchTree) -> chex.Array:
  """float32 [N, A] in [0, 1]: the verdict's where there is one (one tree)."""
  return jnp.where(tree.outcome >= 0, tree.score, tree.line_score)


def estimate(tree: SearchTree, config: SearchConfig) -> chex.Array:
  """float32 [N, A], what the heuristic holds candidates to be worth."""
  return tree.token_q if config.heuristic == "token_q" else tree.value


def policy_cost(tree: SearchTree, config: SearchConfig) -> chex.Array:
  """float32 [N, A] >= 0, -log pi of lines times the config's weight.

  0 where the verifier has judged: what a policy would write is no matter then.
  """
  cost = -config.policy_cost * tree.line_log_prob
  return jnp.where(tree.outcome >= 0, 0.0, cost)


def commit_best(tree: SearchTree, score_NA: chex.Array) -> SearchTree:
  """Commits the finished line of best score.

  If there is none, the best of those that are lost, and then of the others.

  Args:
    tree: one tree.
    score_NA: float32 [N, A], finite.
  """
  is_candidate = tree.count > 0
  # With every candidate pruned the first one is committed.
  edge = jnp.zeros(2, jnp.int32)
  for group in (is_candidate, tree.is_terminal, is_finished(tree)):
    best = best_edge(jnp.where(group & is_candidate, score_NA, _NEVER))
    edge = jnp.where(best == NONE, edge, best)
  return step_down(tree, edge, jnp.bool_(True))


def commit(tree: SearchTree, config: SearchConfig) -> SearchTree:
  """Commits the finished line of best `score`; if there is none, the best."""
  del config
  return commit_best(tree, score(tree))
