"""Model-predictive control over steps: look ahead, commit one step, replan.

At every move the policy is rolled out from each candidate of the root, over
`horizon` steps and `num_rollouts` times; a candidate's worth is the mean over
its roll-outs of what stands at their end: the score of a line that is over, V
of one that goes on. The best candidate is committed, its subtree and cache are
kept, and the next move rolls on from there (receding horizon; Rawlings and
Mayne, "Model predictive control", 2009).

Deviations: equal roll-outs are one, and weigh as often as they were sampled;
the roll-outs of a committed candidate are the next move's candidates, so that
later moves have `num_rollouts` of them or fewer. A budget of tokens lessens the
candidates and roll-outs, then the horizon.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from qstar_jax.config import SearchConfig
from qstar_jax.search import budget, lines, moves, values
from qstar_jax.search import tree as tree_lib
from qstar_jax.search.searcher import Pick, Searcher, best_edge, step_down
from qstar_jax.search.tree import NONE, SearchTree


def num_nodes(config: SearchConfig, max_steps: int) -> int:
  """Rounds of a move: the root, its candidates, every step of their lines."""
  num_lines = config.num_candidates * config.num_rollouts
  rounds = 1 + -(-config.num_candidates // config.leaves_per_round)
  rounds += (config.horizon - 1) * -(-num_lines // config.leaves_per_round)
  whole = max_steps * rounds * config.leaves_per_round
  # What a move keeps is within the horizon of the next one, which fills it up.
  return moves.room(whole, 2, config, max_steps)


def begin(
  tree: SearchTree, key: chex.PRNGKey, config: SearchConfig, max_steps: int
) -> SearchTree:
  """Plans the widths of the move."""
  del key
  width, _ = moves.plan(tree, config, max_steps)
  return tree.replace(move_width=width)


def select(
  tree: SearchTree, slot: chex.Array, config: SearchConfig, max_steps: int
) -> Pick:
  """The shallowest line of the roll-outs, or the root."""
  del slot
  relative_N = tree.depth - tree.root_depth
  is_inside_N = tree_lib.is_below_root(tree, max_steps) & (
    relative_N < config.horizon
  )
  can_expand = lines.is_frontier(tree) & is_inside_N[:, None]
  shallow_first = jnp.where(can_expand, -relative_N[:, None] * 1.0, -jnp.inf)
  edge = best_edge(shallow_first)
  is_root = tree.root_node == NONE
  at_root = jnp.stack([tree.root_parent, tree.root_candidate])
  edge = jnp.where(is_root, at_root, edge)
  relative = jnp.where(is_root, 0, relative_N[edge[0]] + 1)
  wanted = jnp.where(relative == 1, config.num_rollouts, 1)
  wanted = jnp.where(is_root, config.num_candidates, wanted)
  wanted = jnp.minimum(wanted, tree.move_width)
  kept = moves.kept_tokens(tree, max_steps)
  affordable = budget.affordable_width(tree, edge, kept, config)
  width = jnp.minimum(wanted, affordable)
  return Pick(edge, jnp.where(is_root | (edge[0] != NONE), width, 0))


def is_searching(
  tree: SearchTree, config: SearchConfig, max_steps: int
) -> chex.Array:
  """Some roll-out is shorter than the horizon, and affordable."""
  return ~tree.is_done & (select(tree, 0, config, max_steps).width > 0)


def settle(
  tree: SearchTree, node: chex.Array, config: SearchConfig, max_steps: int
) -> SearchTree:
  """Means over samples, from the new node up to the root.

  A candidate's Q is then the mean of its roll-outs: one visit has what is
  missing to that, its own utility being the other.
  """
  del config

  def up(_, carry):
    tree, node = carry
    row, candidate, above = tree_lib.edge_above(tree, node)
    sampled_A = tree.sampled[node] * 1.0
    q_A = values.q_values(tree)[node]
    mean = jnp.sum(sampled_A * q_A) / jnp.maximum(jnp.sum(sampled_A), 1.0)
    rest = 2 * mean - tree.utility[row, candidate]
    return tree.replace(
      visits=tree.visits.at[row, candidate].set(1, mode="drop"),
      value_sum=tree.value_sum.at[row, candidate].set(rest, mode="drop"),
    ), above

  start = jnp.where(tree.depth[node] == NONE, NONE, node)
  tree, _ = jax.lax.fori_loop(0, max_steps, up, (tree, start))
  return tree


def commit(tree: SearchTree, config: SearchConfig) -> SearchTree:
  """The root's candidate of largest mean."""
  del config
  node = tree.root_node
  is_valid_A = tree.count[node] > 0
  q_A = values.q_values(tree)[node]
  chosen = jnp.argmax(jnp.where(is_valid_A, q_A, -jnp.inf)).astype(jnp.int32)
  is_last = tree.is_terminal[node, chosen] | ~jnp.any(is_valid_A)
  return step_down(tree, jnp.stack([node, chosen]), is_last)


SEARCHER = Searcher(num_nodes, begin, is_searching, select, settle, commit)


def for_evaluation(config: SearchConfig) -> SearchConfig:
  """All candidates at once, sampled as the policy has them."""
  return dataclasses.replace(
    config,
    leaves_per_round=config.num_candidates,
    temperature=1.0,
    proposal="sample",
  )
