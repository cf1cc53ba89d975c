"""The search tree: B trees of up to N expanded nodes with A candidates each.

A *candidate* is an edge; expanding it makes the *node* it leads to. A round
makes W nodes; where a tree had less to expand there are holes. Functions
without a batch axis in their docstring work on one tree and are vmapped by
`driver`.
"""

import functools

import chex
import jax
import jax.numpy as jnp

from qstar_jax.config import SearchConfig
from qstar_jax.search.expand import Expansion, Judgement

# Parent of a root, node of an unexpanded candidate, depth of a hole.
NONE = -1
# A token budget beyond any search, and far from overflow.
UNLIMITED = 1 << 29


@chex.dataclass(frozen=True)
class SearchTree:
  """A batch of search trees. Everything in [0, 1] is a P(solved).

  Attributes:
    num_nodes: int32 [B], nodes, holes included; the next to write.
    num_dropped: int32 [B], more that were made, and given up by compaction.
    serial: int32 [B, N], nodes made before this one: unlike its index it never
      changes.
    parent: int32 [B, N], node above; NONE for the problem's node and for holes.
    candidate: int32 [B, N], the parent's candidate that the node expands.
    depth: int32 [B, N], steps before the node; NONE for holes.
    raw_value: float32 [B, N], V of the node itself.
    tokens: int32 [B, N, A, T].
    length: int32 [B, N, A].
    sampled: int32 [B, N, A], samples merged into the candidate; 0 = none.
    count: int32 [B, N, A], the same, but 0 for what the search has pruned.
    log_prob: float32 [B, N, A], log pi, nats, temperature 1.
    proposal_log_prob: float32 [B, N, A], nats.
    line_log_prob: float32 [B, N, A], log pi of the line up to the candidate.
    value: float32 [B, N, A], V.
    prm: float32 [B, N, A], R.
    token_q: float32 [B, N, A], see `Expansion`.
    ended: bool [B, N, A], the candidate finishes its line.
    is_failed: bool [B, N, A], the line is lost: truncated, illegal, or still
      open at the last depth.
    is_terminal: bool [B, N, A], never expanded: finished or failed.
    utility: float32 [B, N, A] in [0, 1], the candidate's worth at birth.
    line_score: float32 [B, N, A] in [0, 1], of the line up to the candidate:
      the last utility, the least, the product or the mean of all; 0 of a line
      that failed.
    legal: int8 [B, N, A], see `Judgement`.
    outcome: int8 [B, N, A], see `Judgement`.
    score: float32 [B, N, A], see `Judgement`.
    state: int32 [B, N, A], see `Judgement`; NONE of what is no candidate, and
      unless statistics are shared.
    child: int32 [B, N, A], node that expands the candidate, or NONE.
    visits: int32 [B, N, A], expansions backed up at or below the candidate.
    pending: int32 [B, N, A], those selected and not backed up yet.
    value_sum: float32 [B, N, A], what the visits backed up.
    is_open: bool [B, N, A], something at or below can still be expanded.
    problem_value: float32 [B], V of the problem before any step.
    steps_before: int32 [B], steps that stood when the tree began; depths are
      counted from there.
    root_parent: int32 [B], where the current root hangs; NONE at the problem.
    root_candidate: int32 [B], the same.
    root_depth: int32 [B], steps before the current root.
    root_node: int32 [B], the root's node; NONE until it is expanded.
    is_done: bool [B], the committed line is finished.
    simulations: int32 [B], of the current move, the root's own expansion not
      counted; a leaf slot that found nothing to expand counts.
    move_simulations: int32 [B], planned for the current move.
    move_width: int32 [B], candidates at most at its expansions.
    move_visits: int32 [B, A], visits of the root when the move began.
    noise: float32 [B, A], of the current move.
    tokens_used: int32 [B], generated and prefilled so far. The step of an
      expanded candidate counts again, since it runs again, unless it is the
      node's only one by construction (A = 1).
    tokens_promised: int32 [B], set aside for leaves of this round.
    token_budget: int32 [B], never exceeded.
  """

  num_nodes: chex.Array
  num_dropped: chex.Array
  serial: chex.Array
  parent: chex.Array
  candidate: chex.Array
  depth: chex.Array
  raw_value: chex.Array
  tokens: chex.Array
  length: chex.Array
  sampled: chex.Array
  count: chex.Array
  log_prob: chex.Array
  proposal_log_prob: chex.Array
  line_log_prob: chex.Array
  value: chex.Array
  prm: chex.Array
  token_q: chex.Array
  ended: chex.Array
  is_failed: chex.Array
  is_terminal: chex.Array
  utility: chex.Array
  line_score: chex.Array
  legal: chex.Array
  outcome: chex.Array
  score: chex.Array
  state: chex.Array
  child: chex.Array
  visits: chex.Array
  pending: chex.Array
  value_sum: chex.Array
  is_open: chex.Array
  problem_value: chex.Array
  steps_before: chex.Array
  root_parent: chex.Array
  root_candidate: chex.Array
  root_depth: chex.Array
  root_node: chex.Array
  is_done: chex.Array
  simulations: chex.Array
  move_simulations: chex.Array
  move_width: chex.Array
  move_visits: chex.Array
  noise: chex.Array
  tokens_used: chex.Array
  tokens_promised: chex.Array
  token_budget: chex.Array

  @property
  def num_made(self) -> chex.Array:
    """int32 [B], nodes ever made."""
    return self.num_nodes + self.num_dropped


def empty_nodes(
  num_nodes: int, num_candidates: int, max_step_tokens: int
) -> dict[str, chex.Array]:
  """The fields by node of one tree in which nothing is expanded, [N, ...]."""
  per_candidate = (num_nodes, num_candidates)
  full = functools.partial(jnp.full, dtype=jnp.int32)

  def zeros(dtype=jnp.int32):
    return jnp.zeros(per_candidate, dtype)

  return {
    "serial": jnp.arange(num_nodes),
    "parent": full(num_nodes, NONE),
    "candidate": full(num_nodes, NONE),
    "depth": full(num_nodes, NONE),
    "raw_value": jnp.zeros(num_nodes),
    "tokens": full((*per_candidate, max_step_tokens), 0),
    "length": zeros(),
    "sampled": zeros(),
    "count": zeros(),
    "log_prob": zeros(jnp.float32),
    "proposal_log_prob": zeros(jnp.float32),
    "line_log_prob": zeros(jnp.float32),
    "value": zeros(jnp.float32),
    "prm": zeros(jnp.float32),
    "token_q": zeros(jnp.float32),
    "ended": zeros(bool),
    "is_failed": zeros(bool),
    "is_terminal": zeros(bool),
    "utility": zeros(jnp.float32),
    "line_score": zeros(jnp.float32),
    "legal": jnp.full(per_candidate, -1, jnp.int8),
    "outcome": jnp.full(per_candidate, -1, jnp.int8),
    "score": zeros(jnp.float32),
    "state": full(per_candidate, NONE),
    "child": full(per_candidate, NONE),
    "visits": zeros(),
    "pending": zeros(),
    "value_sum": zeros(jnp.float32),
    "is_open": zeros(bool),
  }


def new_tree(
  *,
  num_nodes: int,
  num_candidates: int,
  max_step_tokens: int,
  problem_value_B: chex.Array,
  prompt_length_B: chex.Array,
  token_budget: chex.Array | int = UNLIMITED,
  steps_before: chex.Array | int = 0,
) -> SearchTree:
  """Trees of nothing but their problems.

  Args:
    num_nodes: N, room for expansions.
    num_candidates: A.
    max_step_tokens: T.
    problem_value_B: float32 [B], V of the problems.
    prompt_length_B: int32 [B], tokens of the prompts; the meter starts there.
    token_budget: int32 scalar or [B].
    steps_before: int32 scalar or [B], steps that the prompts end with.

  Returns:
    The trees, at the start of their first move.
  """
  (b,) = problem_value_B.shape
  full = functools.partial(jnp.full, dtype=jnp.int32)
  of_one = empty_nodes(num_nodes, num_candidates, max_step_tokens)
  by_node = {
    name: jnp.repeat(field[None], b, axis=0) for name, field in of_one.items()
  }
  return SearchTree(
    num_nodes=full((b,), 0),
    num_dropped=full((b,), 0),
    **by_node,
    problem_value=problem_value_B,
    steps_before=full((b,), steps_before),
    root_parent=full((b,), NONE),
    root_candidate=full((b,), NONE),
    root_depth=full((b,), 0),
    root_node=full((b,), NONE),
    is_done=jnp.zeros((b,), bool),
    simulations=full((b,), 0),
    move_simulations=full((b,), 0),
    move_width=full((b,), 0),
    move_visits=full((b, num_candidates), 0),
    noise=jnp.zeros((b, num_candidates)),
    tokens_used=prompt_length_B.astype(jnp.int32),
    tokens_promised=full((b,), 0),
    token_budget=full((b,), token_budget),
  )


def rerun_tokens(tree: SearchTree, edge: chex.Array) -> chex.Array:
  """Tokens that run again, in parallel, when a candidate is expanded.

  An only candidate has nothing to be chosen from: what was run stays.
  """
  if tree.tokens.shape[-2] == 1:
    return jnp.int32(0)
  return jnp.where(edge[0] == NONE, 0, tree.length[edge[0], edge[1]])


def link(
  tree: SearchTree,
  node: chex.Array,
  leaf: chex.Array,
  width: chex.Array,
  max_steps: int,
) -> SearchTree:
  """Makes `node` the node of a candidate, to be filled (one tree).

  Until it is backed up the candidate is pending all the way up: it counts as a
  visit, and is closed where nothing else below can be expanded.

  Args:
    tree: one tree.
    node: int32 scalar.
    leaf: int32 [2], (parent, candidate); (NONE, NONE) is the problem itself.
    width: int32 scalar, candidates to sample there; if 0 the node is a hole.
    max_steps: D.

  Returns:
    The tree.
  """
  num_nodes, _, max_step_tokens = tree.tokens.shape
  is_active = width > 0
  parent, candidate = jnp.where(is_active, leaf, NONE)
  is_problem = parent == NONE
  is_root = is_active & (tree.root_node == NONE)
  row = jnp.where(is_problem, num_nodes, parent)
  above = jnp.where(is_problem, NONE, tree.depth[parent])
  raw_value = jnp.where(
    is_problem, tree.problem_value, tree.value[parent, candidate]
  )
  step_tokens = rerun_tokens(tree, jnp.stack([parent, candidate]))
  # A hole stays as it is.
  own = jnp.where(is_active, node, num_nodes)
  tree = tree.replace(
    parent=tree.parent.at[own].set(parent, mode="drop"),
    candidate=tree.candidate.at[own].set(candidate, mode="drop"),
    depth=tree.depth.at[own].set(above + 1, mode="drop"),
    raw_value=tree.raw_value.at[own].set(raw_value, mode="drop"),
    child=tree.child.at[row, candidate].set(node, mode="drop"),
    root_node=jnp.where(is_root, node, tree.root_node),
    tokens_used=tree.tokens_used + step_tokens,
    tokens_promised=tree.tokens_promised + width * max_step_tokens,
  )

  def up(_, carry):
    tree, node = carry
    row, candidate, above = edge_above(tree, node)
    is_open = jnp.any(tree.is_open[node])
    tree = tree.replace(
      pending=tree.pending.at[row, candidate].add(1, mode="drop"),
      is_open=tree.is_open.at[row, candidate].set(is_open, mode="drop"),
    )
    return tree, above

  start = jnp.where(is_active, node, NONE)
  tree, _ = jax.lax.fori_loop(0, max_steps, up, (tree, start))
  return tree


def is_below_root(tree: SearchTree, max_steps: int) -> chex.Array:
  """bool [N], the node is the root's or below it (one tree)."""
  is_root_N = jnp.arange(tree.depth.size) == tree.root_node

  def up(_, is_below_N):
    is_above = is_below_N[tree.parent] & (tree.parent != NONE)
    return is_root_N | is_above

  return jax.lax.fori_loop(0, max_steps, up, is_root_N) & (tree.depth != NONE)


def line_index(
  tree: SearchTree, node: chex.Array, candidate: chex.Array
) -> chex.Array:
  """What a judge knows a candidate by, serial · A + a (one tree)."""
  return tree.serial[node] * tree.count.shape[-1] + candidate


def edge_above(
  tree: SearchTree, node: chex.Array
) -> tuple[chex.Array, chex.Array, chex.Array]:
  """The candidate that `node` expands, on the way up to the root (one tree).

  Returns:
    (parent, candidate, parent); at the root and above it, (N, ..., NONE): an
    index past the end, which `mode="drop"` leaves unwritten.
  """
  parent, candidate = tree.parent[node], tree.candidate[node]
  stop = (node == NONE) | (node == tree.root_node) | (parent == NONE)
  row = jnp.where(stop, tree.parent.shape[0], parent)
  return row, candidate, jnp.where(stop, NONE, parent)


def insert(
  tree: SearchTree,
  expansion: Expansion,
  judgement: Judgement,
  config: SearchConfig,
  max_steps: int,
) -> SearchTree:
  """Fills nodes `num_nodes`..`num_nodes + W - 1` with candidates (one tree).

  Args:
    tree: whose new nodes are linked already; unchanged if it is done.
    expansion: [W, A, ...] what was sampled there.
    judgement: [W, A] what the judge says of it.
    config: of the search.
    max_steps: D.

  Returns:
    The tree; nothing is backed up yet.
  """
  num_slots = expansion.count.shape[0]
  num_rounds = tree.depth.size // num_slots
  this_round = jnp.where(tree.is_done, num_rounds, tree.num_nodes // num_slots)
  new = _new_candidates(tree, expansion, judgement, config, max_steps)

  def put(name, value):
    """Writes a round's nodes at once; those of a done tree nowhere."""
    old = tree[name]
    rounds = old.reshape(num_rounds, num_slots, *old.shape[1:])
    value = value.astype(old.dtype)
    return rounds.at[this_round].set(value, mode="drop").reshape(old.shape)

  return tree.replace(
    **{name: put(name, value) for name, value in new.items()},
    # The same tokens may have been drawn several times: each was generated.
    tokens_used=tree.tokens_used + jnp.sum(new["length"]),
    tokens_promised=jnp.zeros_like(tree.tokens_promised),
  )


def _new_candidates(
  tree: SearchTree,
  expansion: Expansion,
  judgement: Judgement,
  config: SearchConfig,
  max_steps: int,
) -> dict[str, chex.Array]:
  """What `insert` writes, by field, [W, A, ...] (one tree)."""
  node_W = tree.num_nodes + jnp.arange(expansion.count.shape[0])
  depth_W = tree.depth[node_W]
  is_used = ((depth_W != NONE) & ~tree.is_done)[:, None]
  sampled = jnp.where(is_used, expansion.count, 0)
  is_illegal = judgement.legal == 0
  count = jnp.where(is_illegal, 0, sampled) if config.prune_illegal else sampled
  is_finished = expansion.ended | judgement.finished
  is_last = (tree.steps_before + depth_W + 1 >= max_steps)[:, None]
  is_failed = is_illegal | expansion.truncated | (is_last & ~is_finished)
  is_terminal = is_finished | is_failed
  utility = {
    "value": expansion.value,
    "prm": expansion.prm,
    "mix": expansion.value * expansion.prm,
  }[config.utility]
  line_score = _line_scores(tree, node_W, utility, config)
  line_score = jnp.where(is_failed, 0.0, line_score)
  utility = jnp.where(is_failed, 0.0, utility)
  utility = jnp.where(judgement.outcome >= 0, judgement.score, utility)
  log_prob = jnp.sum(expansion.token_log_prob, axis=-1)
  shared = {}
  if config.share_statistics:
    shared["state"] = jnp.where(count > 0, judgement.state, NONE)
  return shared | {
    "tokens": expansion.tokens,
    "length": jnp.where(is_used, expansion.length, 0),
    "sampled": sampled,
    "count": count,
    "log_prob": log_prob,
    "line_log_prob": _log_prob_above(tree, node_W)[:, None] + log_prob,
    "proposal_log_prob": expansion.proposal_log_prob,
    "value": expansion.value,
    "prm": expansion.prm,
    "token_q": expansion.token_q,
    "ended": expansion.ended,
    "is_failed": is_failed,
    "is_terminal": is_terminal,
    "utility": utility,
    "line_score": line_score,
    "legal": judgement.legal,
    "outcome": judgement.outcome,
    "score": judgement.score,
    "is_open": (count > 0) & ~is_terminal,
  }


def _log_prob_above(tree: SearchTree, node_W: chex.Array) -> chex.Array:
  """log pi of the lines up to nodes, [W] (one tree)."""
  above = tree.line_log_prob[tree.parent[node_W], tree.candidate[node_W]]
  return jnp.where(tree.parent[node_W] == NONE, 0.0, above)


def _line_scores(
  tree: SearchTree,
  node_W: chex.Array,
  utility_WA: chex.Array,
  config: SearchConfig,
) -> chex.Array:
  """Scores of the lines that end with new candidates, [W, A] (one tree)."""
  above = tree.line_score[tree.parent[node_W], tree.candidate[node_W]][:, None]
  depth = tree.depth[node_W][:, None]  # Steps before, 0 at the problem.
  is_first = depth <= 0
  match config.aggregate:
    case "last":
      return utility_WA
    case "min":
      return jnp.minimum(jnp.where(is_first, 1.0, above), utility_WA)
    case "product":
      return jnp.where(is_first, 1.0, above) * utility_WA
    case "mean":
      total = jnp.where(is_first, 0.0, above * depth) + utility_WA
      return total / (1 + jnp.maximum(depth, 0))
