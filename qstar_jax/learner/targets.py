"""What the learner learns from search trees.

A tree becomes lines, one for each candidate with nothing below it, root to
leaf. An edge (a node's candidate) lies on many lines but its targets stand in
exactly one of them; in the others its tokens are context. Targets are functions
of the raw tree, computed on read: a new rule needs no new play.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from qstar_jax import improvement
from qstar_jax.config import LearnerConfig, SearchConfig
from qstar_jax.learner import forest as forest_lib
from qstar_jax.learner import lines
from qstar_jax.records import Outcome, TrainBatch, TreeRecord

# Nodes per call of the compiled policy improvement: one shape, one compilation.
_NODES_PER_CALL = 4096


def trees_to_lines(
  trees: Sequence[TreeRecord],
  learner: LearnerConfig,
  search: SearchConfig,
  max_line_tokens: int,
) -> TrainBatch:
  """The lines of trees that have something to teach.

  * Policy: at every node with `learner.min_visits` visits or more, each token
    of candidate a weighs pi'(a), the improved policy (or what
    `learner.policy_target` says), times the probability that pi' comes to the
    node. The loss is then the cross-entropy of whole
    lines as pi' plays them, and what it would not play is not practised.
  * Value: after a step, at its last token, and before the first, at the
    prompt's. See `_value_targets`.
  * PRM: at a step's last token. See `_prm_labels`.

  Args:
    trees: one or more, with the same number of candidates per node, A.
    learner: reads value_lambda, policy_target and min_visits.
    search: reads utility and the constants of sigma and PUCT, which the trees
      were searched with.
    max_line_tokens: T of the batch.

  Returns:
    As many rows as there are lines with any weight; 0 if there are none.

  Raises:
    UserError: a line is longer than T.
  """
  forest = forest_lib.plant(trees)
  policy_NA = _policy_targets(forest, learner, search)
  edge_value, root_value = _value_targets(forest, policy_NA, learner, search)
  # What pi' plays on the way to a node; 1 past the root.
  way_DN = forest_lib.at(policy_NA.ravel(), forest.ancestors, 1.0)
  line_policy_NA = policy_NA * way_DN.prod(axis=0)[:, None]
  segments = _place(
    forest, line_policy_NA.ravel(), edge_value, root_value, _prm_labels(forest)
  )
  weight = segments.policy_weight + segments.value_weight + segments.prm_weight
  is_kept = np.bincount(segments.row, weights=weight) > 0
  kept = is_kept[segments.row]
  columns = {k: v[kept] for k, v in vars(segments).items()}
  columns["row"] = (np.cumsum(is_kept) - 1)[columns["row"]]
  return lines.assemble(
    forest.tokens, lines.Segments(**columns), is_kept.sum(), max_line_tokens
  )


@dataclasses.dataclass(frozen=True)
class _Targets:
  """Targets in [0, 1] with their weights, of the same shape."""

  target: np.ndarray
  weight: np.ndarray


@functools.partial(jax.jit, static_argnames=("policy_target", "search"))
def _node_policy(
  log_prob,
  proposal_log_prob,
  count,
  q,
  visits,
  was_root,
  *,
  policy_target,
  search: SearchConfig,
):
  """What the search would play at nodes, [N, A]; was_root is [N, 1]."""
  prior_logits = improvement.candidate_prior_logits(
    log_prob, proposal_log_prob, count
  )
  if policy_target == "improved":
    return improvement.improved_policy(
      prior_logits,
      q,
      visits,
      maxvisit_init=search.maxvisit_init,
      value_scale=search.value_scale,
    )
  visit_policy = functools.partial(
    improvement.visit_policy,
    prior_logits,
    q,
    jnp.where(count > 0, visits, 0),
    puct_init=search.puct_init,
    puct_base=search.puct_base,
  )
  # Only moves' roots have forced playouts.
  return jnp.where(
    was_root,
    visit_policy(forced_playouts=search.forced_playouts),
    visit_policy(),
  )


def _policy_targets(
  forest: forest_lib.Forest, learner: LearnerConfig, search: SearchConfig
) -> np.ndarray:
  """pi' of every candidate, 0 at nodes that are no target: float32 [N, A].

  Where the search asked the verifier (`terminal_value: outcome`), what it
  refused is no candidate: the search could not have played it, and pi' of the
  others is what is left. Elsewhere the search did not know, and pi' is its own.
  Nodes below an illegal step are no targets: the line is lost whatever is
  played, and values there are the network's invention.
  """
  edges, shape_NA = forest.edges, (-1, forest.num_candidates)
  is_refused = forest.has_judge[forest.tree_of_edge] & (edges["legal"] == 0)
  count_NA = np.where(is_refused, 0, edges["count"]).reshape(shape_NA)
  visits_NA = edges["visits"].reshape(shape_NA)
  was_root_N1 = np.zeros((len(visits_NA), 1), bool)
  was_root_N1[forest.committed // forest.num_candidates] = True
  columns = [
    edges["log_prob"].reshape(shape_NA),
    edges["proposal_log_prob"].reshape(shape_NA),
    count_NA,
    edges["q"].reshape(shape_NA),
    visits_NA,
    was_root_N1,
  ]
  num_nodes = len(visits_NA)
  policy_NA = np.zeros(visits_NA.shape, np.float32)
  for start in range(0, num_nodes, _NODES_PER_CALL):
    stop = min(start + _NODES_PER_CALL, num_nodes)
    fill = ((0, start + _NODES_PER_CALL - stop), (0, 0))
    part = jax.device_put([np.pad(c[start:stop], fill) for c in columns])
    policy = _node_policy(
      *part, policy_target=learner.policy_target, search=search
    )
    policy_NA[start:stop] = jax.device_get(policy)[: stop - start]
  is_target = (
    (1 + visits_NA.sum(axis=1) >= learner.min_visits)
    & (count_NA > 0).any(axis=1)
    & ~forest_lib.at(forest.is_failed, forest.ancestors[0], False)
  )
  return policy_NA * is_target[:, None]


def _value_targets(
  forest: forest_lib.Forest,
  policy_NA: np.ndarray,
  learner: LearnerConfig,
  search: SearchConfig,
) -> tuple[_Targets, _Targets]:
  """P(solved) after each edge, and at each root.

  * A fact where there is one, with weight 1: 0 after an illegal step and all
    below it, and the verifier's score after a step that finishes its line. A
    finished line is a target even if the search did not commit it: what is
    biased by the search's choice is a line's outcome as a sign of the states
    *above* its end, and there it does not go.
  * Else a mix of the committed line's outcome, on this line, with weight
    lambda, and the search's value, at what the search visited, with weight
    1 - lambda. The cross-entropy is linear in its target, so where one of the
    two is missing the other one's share of the loss remains.
  * Else none: what the network said itself is no news to it.

  The root's search value is the mean of Q under pi'. Search values are
  P(solved) only if V drove the search; under `utility: prm` and `mix` they are
  left out.

  Returns:
    Targets of edges [E] and of roots [K].
  """
  edges, tree = forest.edges, forest.tree_of_edge
  is_committed = np.zeros(len(tree), bool)
  is_committed[forest.committed] = True
  q_share = 1 - learner.value_lambda if search.utility == "value" else 0.0
  mix = _mix(
    forest.final_score[tree],
    learner.value_lambda * (is_committed & forest.has_verdict[tree]),
    edges["q"],
    q_share * (edges["visits"] > 0),
  )
  is_fact = forest.is_failed | forest_lib.is_verdict(edges["outcome"])
  fact = np.where(forest.is_failed, 0.0, edges["score"])
  edge_targets = _Targets(
    target=np.where(is_fact, fact, mix.target),
    weight=np.where(is_fact, 1.0, mix.weight),
  )
  root_policy_KA = policy_NA[forest.root]
  root_q_KA = edges["q"].reshape(policy_NA.shape)[forest.root]
  root_targets = _mix(
    forest.final_score,
    learner.value_lambda * forest.has_verdict,
    (root_policy_KA * root_q_KA).sum(axis=1),
    q_share * root_policy_KA.any(axis=1),
  )
  return edge_targets, root_targets


def _mix(a, a_weight, b, b_weight) -> _Targets:
  """The weighted mean of two targets; its weight is the sum of theirs."""
  weight = a_weight + b_weight
  total = a_weight * a + b_weight * b
  return _Targets(total / np.where(weight > 0, weight, 1), weight)


def _prm_labels(forest: forest_lib.Forest) -> _Targets:
  """Labels of steps by rules alone: is it legal, with a solution in reach?

  1 for the steps of lines verified correct, committed or not; 0 for an illegal
  step and all below it, and for a step that finishes a line with a wrong
  answer. Other legal steps have no label: nobody has shown what they lead to.
  """
  outcome = forest.edges["outcome"]
  correct = np.flatnonzero(outcome == Outcome.CORRECT)
  above = forest.above(correct)
  is_right = np.zeros(len(outcome), bool)
  is_right[correct] = True
  is_right[above[above >= 0]] = True
  is_wrong = forest.is_failed | forest_lib.is_verdict(outcome)
  return _Targets(target=is_right, weight=is_right | is_wrong)


def _place(
  forest: forest_lib.Forest,
  edge_policy: np.ndarray,
  edge_value: _Targets,
  root_value: _Targets,
  prm: _Targets,
) -> lines.Segments:
  """One row per line, the prompt and every edge with targets in one of them."""
  length = forest.edges["length"]
  above_node = forest_lib.at(length, forest.ancestors, 0).sum(axis=0)
  node_start = forest.prompt_length[forest.tree_of_node] + above_node
  edge_start = np.repeat(node_start, forest.num_candidates)
  prompt_offset = np.cumsum(forest.prompt_length) - forest.prompt_length
  edge_offset = forest.prompt_length.sum() + np.cumsum(length) - length

  into_node = forest.ancestors[0]
  is_leaf = forest.edges["count"] > 0
  has_more = is_leaf.reshape(-1, forest.num_candidates).any(axis=1)
  is_leaf[into_node[has_more & (into_node >= 0)]] = False
  leaf = np.flatnonzero(is_leaf)
  on_line = np.vstack([leaf[None], forest.above(leaf)])
  row = np.broadcast_to(np.arange(len(leaf)), on_line.shape)[on_line >= 0]
  edge = on_line[on_line >= 0]
  credit = _first_of_each(edge)

  tree = forest.tree_of_edge[leaf]
  root_credit = _first_of_each(tree)
  none = np.zeros(len(tree))

  def column(of_prompt, of_edge):
    return np.concatenate([of_prompt, of_edge])

  return lines.Segments(
    row=column(np.arange(len(leaf)), row),
    start=column(np.zeros(len(leaf), np.int64), edge_start[edge]),
    offset=column(prompt_offset[tree], edge_offset[edge]),
    length=column(forest.prompt_length[tree], length[edge]),
    policy_weight=column(none, credit * edge_policy[edge]),
    value_target=column(root_value.target[tree], edge_value.target[edge]),
    value_weight=column(
      root_credit * root_value.weight[tree], credit * edge_value.weight[edge]
    ),
    prm_target=column(none, prm.target[edge]),
    prm_weight=column(none, credit * prm.weight[edge]),
  )


def _first_of_each(values: np.ndarray) -> np.ndarray:
  """bool, of the shape of values: the first of all that are equal to it."""
  is_first = np.zeros(len(values), bool)
  is_first[np.unique(values, return_index=True)[1]] = True
  return is_first
