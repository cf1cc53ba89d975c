"""The search tree: B trees of up to N expanded nodes with A candidates each.

A *candidate* is an edge; expanding it makes the *node* it leads to. Node n of
every tree is made in the same round, so a tree that had nothing to expand in a
round has a hole there. Functions without a batch axis in their docstring work
on one tree and are vmapped by `driver`.
"""

import chex
import jax
import jax.numpy as jnp

from qstar_jax import improvement
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
    value: float32 [B, N, A], V.
    prm: float32 [B, N, A], R.
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
    child: int32 [B, N, A], node that expands the candidate, or NONE.
    visits: int32 [B, N, A], expansions backed up at or below the candidate.
    pending: int32 [B, N, A], those selected and not backed up yet.
    value_sum: float32 [B, N, A], what the visits backed up.
    is_open: bool [B, N, A], something at or below can still be expanded.
    problem_value: float32 [B], V of the problem before any step.
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
  value: chex.Array
  prm: chex.Array
  ended: chex.Array
  is_failed: chex.Array
  is_terminal: chex.Array
  utility: chex.Array
  line_score: chex.Array
  legal: chex.Array
  outcome: chex.Array
  score: chex.Array
  child: chex.Array
  visits: chex.Array
  pending: chex.Array
  value_sum: chex.Array
  is_open: chex.Array
  problem_value: chex.Array
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


def new_tree(
  *,
  num_nodes: int,
  num_candidates: int,
  max_step_tokens: int,
  problem_value_B: chex.Array,
  prompt_length_B: chex.Array,
  token_budget: chex.Array | int = UNLIMITED,
) -> SearchTree:
  """Trees of nothing but their problems.

  Args:
    num_nodes: N, room for expansions.
    num_candidates: A.
    max_step_tokens: T.
    problem_value_B: float32 [B], V of the problems.
    prompt_length_B: int32 [B], tokens of the prompts; the meter starts there.
    token_budget: int32 scalar or [B].

  Returns:
    The trees, at the start of their first move.
  """
  b = problem_value_B.shape[0]
  per_node = (b, num_nodes)
  per_candidate = (*per_node, num_candidates)

  def full(shape, value, dtype=jnp.int32):
    return jnp.full(shape, value, dtype)

  def zeros(dtype=jnp.int32):
    return full(per_candidate, 0, dtype)

  return SearchTree(
    parent=full(per_node, NONE),
    candidate=full(per_node, NONE),
    depth=full(per_node, NONE),
    raw_value=full(per_node, 0, jnp.float32),
    tokens=full((*per_candidate, max_step_tokens), 0),
    length=zeros(),
    sampled=zeros(),
    count=zeros(),
    log_prob=zeros(jnp.float32),
    proposal_log_prob=zeros(jnp.float32),
    value=zeros(jnp.float32),
    prm=zeros(jnp.float32),
    ended=zeros(bool),
    is_failed=zeros(bool),
    is_terminal=zeros(bool),
    utility=zeros(jnp.float32),
    line_score=zeros(jnp.float32),
    legal=full(per_candidate, -1, jnp.int8),
    outcome=full(per_candidate, -1, jnp.int8),
    score=zeros(jnp.float32),
    child=full(per_candidate, NONE),
    visits=zeros(),
    pending=zeros(),
    value_sum=zeros(jnp.float32),
    is_open=zeros(bool),
    problem_value=problem_value_B,
    root_parent=full((b,), NONE),
    root_candidate=full((b,), NONE),
    root_depth=full((b,), 0),
    root_node=full((b,), NONE),
    is_done=full((b,), False, bool),
    simulations=full((b,), 0),
    move_simulations=full((b,), 0),
    move_width=full((b,), 0),
    move_visits=full((b, num_candidates), 0),
    noise=full((b, num_candidates), 0, jnp.float32),
    tokens_used=prompt_length_B.astype(jnp.int32),
    tokens_promised=full((b,), 0),
    token_budget=full((b,), token_budget),
  )


@chex.dataclass(frozen=True)
class NodeStats:
  """What selection reads at one node (or at nodes of any leading shape).

  Attributes:
    prior_logits: float32 [A], log prior + constant; `NEG_INF` = no candidate.
    q: float32 [A] completed Q, rescaled to [0, 1] per node in mctx mode.
    visits: int32 [A], pending ones included.
    is_open: bool [A].
    is_valid: bool [A], is a candidate.
  """

  prior_logits: chex.Array
  q: chex.Array
  visits: chex.Array
  is_open: chex.Array
  is_valid: chex.Array


def q_values(tree: SearchTree) -> chex.Array:
  """Q of every candidate: V counts as one virtual visit. [..., N, A]."""
  return (tree.utility + tree.value_sum) / (1 + tree.visits)


def node_stats(
  tree: SearchTree, node: chex.Array, config: SearchConfig
) -> NodeStats:
  """Reads one node of one tree."""
  count = tree.count[node]
  prior_logits = improvement.candidate_prior_logits(
    tree.log_prob[node], tree.proposal_log_prob[node], count
  )
  visits = tree.visits[node]
  if config.mctx_mode:
    # A child's own V is its first backup here, and is hidden until then.
    seen_q = tree.value_sum[node] / jnp.maximum(visits, 1)
    mixed = improvement.mixed_value(
      tree.raw_value[node], prior_logits, seen_q, visits
    )
    q = jnp.where(visits > 0, seen_q, mixed)
    low, high = jnp.min(q), jnp.max(q)
    q = (q - low) / jnp.maximum(high - low, 1e-8)
  else:
    q = (tree.utility[node] + tree.value_sum[node]) / (1 + visits)
  return NodeStats(
    prior_logits=prior_logits,
    q=q,
    visits=visits + tree.pending[node],
    is_open=tree.is_open[node],
    is_valid=count > 0,
  )


def node_policy(stats: NodeStats, config: SearchConfig) -> chex.Array:
  """A node's improved policy over its candidates, [..., A]."""
  return improvement.improved_policy(
    stats.prior_logits,
    stats.q,
    stats.visits,
    maxvisit_init=config.maxvisit_init,
    value_scale=config.value_scale,
  )


def node_value(stats: NodeStats, config: SearchConfig) -> chex.Array:
  """V of a node under its improved policy; 0 where it has no candidate."""
  value = jnp.sum(node_policy(stats, config) * stats.q, axis=-1)
  return jnp.where(jnp.any(stats.is_valid, axis=-1), value, 0.0)


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
  tree = tree.replace(
    parent=tree.parent.at[node].set(parent),
    candidate=tree.candidate.at[node].set(candidate),
    depth=tree.depth.at[node].set(jnp.where(is_active, above + 1, NONE)),
    raw_value=tree.raw_value.at[node].set(raw_value),
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
  block: chex.Array,
  expansion: Expansion,
  judgement: Judgement,
  config: SearchConfig,
  max_steps: int,
) -> SearchTree:
  """Fills nodes `block`..`block + W - 1` with their candidates (batched).

  Args:
    tree: [B, ...] trees whose new nodes are linked already.
    block: int32 scalar.
    expansion: [B, W, A, ...] what was sampled there.
    judgement: [B, W, A] what the judge says of it.
    config: of the search.
    max_steps: D.

  Returns:
    The trees; nothing is backed up yet.
  """
  w = expansion.count.shape[1]
  depth_BW = jax.lax.dynamic_slice_in_dim(tree.depth, block, w, axis=1)
  is_used_BW = depth_BW != NONE
  is_used = is_used_BW[..., None]
  sampled = jnp.where(is_used, expansion.count, 0)
  is_illegal = judgement.legal == 0
  count = jnp.where(is_illegal, 0, sampled) if config.prune_illegal else sampled
  is_finished = expansion.ended | judgement.finished
  is_last = (depth_BW + 1 >= max_steps)[..., None]
  is_failed = is_illegal | expansion.truncated | (is_last & ~is_finished)
  is_terminal = is_finished | is_failed
  utility = {
    "value": expansion.value,
    "prm": expansion.prm,
    "mix": expansion.value * expansion.prm,
  }[config.utility]
  line_score = _line_scores(tree, block, utility, config)
  line_score = jnp.where(is_failed, 0.0, line_score)
  utility = jnp.where(is_failed, 0.0, utility)
  utility = jnp.where(judgement.outcome >= 0, judgement.score, utility)

  def put(field, value):
    start = (0, block) + (0,) * (field.ndim - 2)
    return jax.lax.dynamic_update_slice(field, value.astype(field.dtype), start)

  return tree.replace(
    tokens=put(tree.tokens, expansion.tokens),
    length=put(tree.length, expansion.length),
    sampled=put(tree.sampled, sampled),
    count=put(tree.count, count),
    log_prob=put(tree.log_prob, jnp.sum(expansion.token_log_prob, axis=-1)),
    proposal_log_prob=put(tree.proposal_log_prob, expansion.proposal_log_prob),
    value=put(tree.value, expansion.value),
    prm=put(tree.prm, expansion.prm),
    ended=put(tree.ended, expansion.ended),
    is_failed=put(tree.is_failed, is_failed),
    is_terminal=put(tree.is_terminal, is_terminal),
    utility=put(tree.utility, utility),
    line_score=put(tree.line_score, line_score),
    legal=put(tree.legal, judgement.legal),
    outcome=put(tree.outcome, judgement.outcome),
    score=put(tree.score, judgement.score),
    is_open=put(tree.is_open, (count > 0) & ~is_terminal),
    # The same tokens may have been drawn several times: each was generated.
    tokens_used=tree.tokens_used
    + jnp.sum(expansion.length * is_used, axis=(1, 2)),
    tokens_promised=jnp.zeros_like(tree.tokens_promised),
  )


def _line_scores(
  tree: SearchTree,
  block: chex.Array,
  utility_BWA: chex.Array,
  config: SearchConfig,
) -> chex.Array:
  """Scores of the lines that end with new candidates, [B, W, A] (batched)."""
  w = utility_BWA.shape[1]
  slots = block + jnp.arange(w)

  def score_above(tree):
    edge = tree.parent[slots], tree.candidate[slots]
    return tree.line_score[edge]

  above = jax.vmap(score_above)(tree)[..., None]
  depth = tree.depth[:, slots, None]  # Steps before, 0 at the problem.
  is_first = depth <= 0
  match config.aggregate:
    case "last":
      return utility_BWA
    case "min":
      return jnp.minimum(jnp.where(is_first, 1.0, above), utility_BWA)
    case "product":
      return jnp.where(is_first, 1.0, above) * utility_BWA
    case "mean":
      total = jnp.where(is_first, 0.0, above * depth) + utility_BWA
      return total / (1 + jnp.maximum(depth, 0))


def backup(
  tree: SearchTree, node: chex.Array, config: SearchConfig, max_steps: int
) -> SearchTree:
  """Backs the value of a new node up to the current root (one tree).

  Candidates below which nothing can be expanded any more are closed. A closed
  candidate's subtree is known in full: its Q becomes the subtree's value, and
  its V, a guess at the same thing, counts no longer (not in mctx mode).

  Args:
    tree: one tree.
    node: int32 scalar, an expanded node; a hole changes nothing.
    config: of the search.
    max_steps: D.

  Returns:
    The tree.
  """
  if config.mctx_mode:
    value = tree.raw_value[node]
  else:
    value = node_value(node_stats(tree, node, config), config)

  def up(_, carry):
    tree, node = carry
    row, candidate, above = edge_above(tree, node)
    is_open = jnp.any(tree.is_open[node])
    tree = tree.replace(
      visits=tree.visits.at[row, candidate].add(1, mode="drop"),
      value_sum=tree.value_sum.at[row, candidate].add(value, mode="drop"),
      pending=tree.pending.at[row, candidate].add(-1, mode="drop"),
      is_open=tree.is_open.at[row, candidate].set(is_open, mode="drop"),
    )
    if not config.mctx_mode:
      known = node_value(node_stats(tree, node, config), config)
      total = known * (1 + tree.visits[row, candidate])
      total -= tree.utility[row, candidate]
      # Another leaf of this round may be on its way up to here.
      is_known = ~is_open & ~jnp.any(tree.pending[node] > 0)
      total = jnp.where(is_known, total, tree.value_sum[row, candidate])
      tree = tree.replace(
        value_sum=tree.value_sum.at[row, candidate].set(total, mode="drop")
      )
    return tree, above

  start = jnp.where(tree.depth[node] == NONE, NONE, node)
  tree, _ = jax.lax.fori_loop(0, max_steps, up, (tree, start))
  return tree
