"""Lines side by side, each going on from its own best candidate.

`best_of_n`, `rejection`, `sample`, `greedy`, `dvts` and `value_guided` are
lanes: lane w of a tree is the leaf slot w of every round. Its line starts at
the problem with an expansion of its own, and goes on at the candidate of best
score; when the line is finished or lost, the lane starts another, up to
`num_lines` of a tree.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax.numpy as jnp

from qstar_jax.config import SearchConfig
from qstar_jax.search import budget, lines
from qstar_jax.search.searcher import Pick, Searcher
from qstar_jax.search.tree import NONE, SearchTree

# (tree, config) -> float32 [N, A] of one tree.
ScoreFn = Callable[[SearchTree, SearchConfig], chex.Array]


def num_nodes(config: SearchConfig, max_steps: int) -> int:
  """Every line of every lane to the end, and a last one that began late."""
  num_lanes = config.leaves_per_round
  rounds = -(-config.num_lines * max_steps // num_lanes) + max_steps
  return rounds * num_lanes


class _Lanes(NamedTuple):
  """All lanes of a tree.

  Attributes:
    node: int32 [W], the newest node of each; NONE before its first.
    candidate: int32 [W], that node's candidate of best line score.
    goes_on: bool [W], the line is neither finished nor lost.
    needed: int32 [W], tokens that the line may still take.
    can_start: bool scalar, there is a line to start, and room for it.
  """

  node: chex.Array
  candidate: chex.Array
  goes_on: chex.Array
  needed: chex.Array
  can_start: chex.Array


def _lanes(
  tree: SearchTree, score_NA: chex.Array, config: SearchConfig, max_steps: int
) -> _Lanes:
  num_lanes = config.leaves_per_round
  is_node_NW = (tree.depth != NONE).reshape(-1, num_lanes)
  age_NW = jnp.arange(tree.depth.size).reshape(-1, num_lanes)
  node_W = jnp.max(jnp.where(is_node_NW, age_NW, NONE), axis=0)
  count_WA = tree.count[node_W]
  score_WA = jnp.where(count_WA > 0, score_NA[node_W], -jnp.inf)
  candidate_W = jnp.argmax(score_WA, axis=-1).astype(jnp.int32)
  is_empty_W = ~jnp.any(tree.sampled[node_W] > 0, axis=-1)
  is_open_W = lines.is_frontier(tree)[node_W, candidate_W]
  goes_on_W = (node_W != NONE) & (is_open_W | is_empty_W)
  # All candidates of every step, and the chosen ones once more.
  max_step_tokens = tree.tokens.shape[-1]
  num_runs = budget.width_bound(tree, config)
  num_runs += budget.num_runs(config.num_candidates) - 1
  per_step = num_runs * max_step_tokens
  needed_W = jnp.where(
    goes_on_W, per_step * (max_steps - 1 - tree.depth[node_W]), 0
  )
  num_started = jnp.sum((tree.depth == 0) & (tree.parent == NONE))
  has_room = budget.room(tree) - jnp.sum(needed_W) >= per_step * max_steps
  most = jnp.int32(config.num_lines)
  if config.num_candidates > 1:
    # Lines with a choice are a beam; others are as many as can be sampled.
    most = jnp.minimum(most, budget.lines_at_once(tree, config, max_steps))
  # As tokens come free, one line after another may begin late, until there are
  # no rounds left to end one in.
  has_room &= tree.num_nodes + num_lanes * max_steps <= tree.depth.size
  # With less room there is a single line, of fewer candidates.
  can_start = (num_started == 0) | (has_room & (num_started < most))
  return _Lanes(node_W, candidate_W, goes_on_W, needed_W, can_start)


def make_searcher(score_fn: ScoreFn) -> Searcher:
  """The searcher whose lines go on at the candidate of best score."""

  def is_searching(tree, config, max_steps):
    # A line goes on, or can be started in a lane that is free.
    lanes = _lanes(tree, score_fn(tree, config), config, max_steps)
    return ~tree.is_done & jnp.any(lanes.goes_on | lanes.can_start)

  def select(tree, slot, config, max_steps):
    lanes = _lanes(tree, score_fn(tree, config), config, max_steps)
    node, goes_on = lanes.node[slot], lanes.goes_on[slot]
    edge = jnp.stack([node, lanes.candidate[slot]])
    edge = jnp.where(goes_on, edge, NONE)
    depth = jnp.where(goes_on, tree.depth[node] + 1, 0)
    # What the other lanes' lines may take is theirs.
    kept = jnp.sum(lanes.needed) - lanes.needed[slot]
    kept += budget.tail_tokens(tree, max_steps - 1 - depth)
    width = budget.affordable_width(tree, edge, kept, config)
    return Pick(edge, jnp.where(goes_on | lanes.can_start, width, 0))

  return Searcher(
    num_nodes, lines.begin, is_searching, select, lines.settle, lines.commit
  )


SEARCHER = make_searcher(lambda tree, config: lines.score(tree))
