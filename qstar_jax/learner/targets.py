"""What the learner learns from search trees.

A tree becomes lines, one for each candidate with nothing below it, root to
leaf. An edge (a node's candidate) lies on many lines but its targets stand in
exactly one of them; in the others its tokens are context. Targets are functions
of the raw tree, computed on read: a new rule needs no new play.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from qstar_jax.config import LearnerConfig, SearchConfig
from qstar_jax.learner import forest as forest_lib
from qstar_jax.learner import (
  lines,
  objective,
  policy_targets,
  returns,
  tree_policy,
)
from qstar_jax.learner.forest import Forest, Targets
from qstar_jax.records import Outcome, TrainBatch, TreeRecord


def trees_to_lines(
  trees: Sequence[TreeRecord],
  learner: LearnerConfig,
  search: SearchConfig,
  max_line_tokens: int,
) -> TrainBatch:
  """The lines of trees that have something to teach.

  * Policy: at every node with `learner.min_visits` visits or more, each token
    of candidate a weighs pi'(a), the improved policy, times the probability
    that pi' comes to the node. The loss is then the cross-entropy of whole
    lines as pi' plays them, and what it would not play is not practised. Other
    weights: see `policy_targets`.
  * Value: after a step, at its last token, and before the first, at the
    prompt's. See `_value_targets`, and `returns.step_q`.
  * PRM: at a step's last token. See `_prm_labels`, and `returns.progress`.
  * Actions, if a loss reads them: see `returns.actions`.
  * Rivals, if a loss reads them: see `_rivals`.

  Args:
    trees: one or more, with the same number of candidates per node, A.
    learner: reads the losses and what is to be learned from trees.
    search: reads utility and the constants of sigma and PUCT, which the trees
      were searched with.
    max_line_tokens: T of the batch.

  Returns:
    As many rows as there are lines with any weight; 0 if there are none.

  Raises:
    UserError: a line is longer than T.
  """
  forest = forest_lib.plant(trees)
  if learner.tree_q == "replanned":
    forest = tree_policy.replanned(forest, search)
  policy_NA = tree_policy.search_policy(forest, learner, search)
  if learner.value_target == "step_q":
    edge_value, root_value = returns.step_q(forest)
  else:
    edge_value, root_value = _value_targets(forest, policy_NA, learner, search)
  if learner.prm_target == "progress":
    change = returns.progress(forest, policy_NA)
    prm = Targets((1 + change.target) / 2, change.weight)
  else:
    prm = _prm_labels(forest)
  actions = {}
  if objective.reads(learner, "reward"):
    actions = returns.actions(forest, policy_NA, learner)
  policy = policy_targets.policy_weights(forest, policy_NA, learner)
  leaf = _leaves(forest)
  lesson = _place(forest, leaf, policy, edge_value, root_value, prm, actions)
  weight = lesson.policy_weight + lesson.value_weight + lesson.prm_weight
  if actions:
    weight = weight + lesson.action_weight
  is_kept = np.bincount(lesson.row, weights=weight) > 0
  kept = is_kept[lesson.row]
  columns = {k: v if v is None else v[kept] for k, v in vars(lesson).items()}
  columns["row"] = (np.cumsum(is_kept) - 1)[columns["row"]]
  batch = lines.assemble(
    forest.tokens, lines.Lesson(**columns), is_kept.sum(), max_line_tokens
  )
  if objective.reads(learner, "rival_tokens"):
    rivals = _rivals(forest, leaf[is_kept], prm, max_line_tokens)
    batch = dataclasses.replace(batch, **rivals)
  return batch


def _value_targets(
  forest: Forest,
  policy_NA: np.ndarray,
  learner: LearnerConfig,
  search: SearchConfig,
) -> tuple[Targets, Targets]:
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
  P(solved) only if V drove the search or they are `replanned`; else, under
  `utility: prm` and `mix`, they are left out.

  Returns:
    Targets of edges [E] and of roots [K].
  """
  edges, tree = forest.edges, forest.tree_of_edge
  is_committed = np.zeros(len(tree), bool)
  is_committed[forest.committed] = True
  is_probability = search.utility == "value" or learner.tree_q == "replanned"
  q_share = 1 - learner.value_lambda if is_probability else 0.0
  mix = _mix(
    forest.final_score[tree],
    learner.value_lambda * (is_committed & forest.has_verdict[tree]),
    edges["q"],
    q_share * (edges["visits"] > 0),
  )
  edge_targets = Targets(
    target=np.where(forest.is_settled, forest.fact, mix.target),
    weight=np.where(forest.is_settled, 1.0, mix.weight),
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


def _mix(a, a_weight, b, b_weight) -> Targets:
  """The weighted mean of two targets; its weight is the sum of theirs."""
  weight = a_weight + b_weight
  total = a_weight * a + b_weight * b
  return Targets(total / np.where(weight > 0, weight, 1), weight)


def _prm_labels(forest: Forest) -> Targets:
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
  return Targets(target=is_right, weight=is_right | forest.is_settled)


def _leaves(forest: Forest) -> np.ndarray:
  """The last edges of all lines: candidates with nothing below, int [R]."""
  into_node = forest.ancestors[0]
  is_leaf = forest.edges["count"] > 0
  has_more = is_leaf.reshape(-1, forest.num_candidates).any(axis=1)
  is_leaf[into_node[has_more & (into_node >= 0)]] = False
  return np.flatnonzero(is_leaf)


def _lay_out(
  forest: Forest, leaf: np.ndarray, row: np.ndarray
) -> tuple[lines.Segments, np.ndarray]:
  """Lines that end in edges `leaf`, int [R], in the rows of a batch.

  Returns:
    The R prompts, then the steps of all lines; and the steps' edges.
  """
  length = forest.edges["length"]
  above_node = forest_lib.at(length, forest.ancestors, 0).sum(axis=0)
  node_start = forest.prompt_length[forest.tree_of_node] + above_node
  edge_start = np.repeat(node_start, forest.num_candidates)
  prompt_offset = np.cumsum(forest.prompt_length) - forest.prompt_length
  edge_offset = forest.prompt_length.sum() + np.cumsum(length) - length
  on_line = np.vstack([leaf[None], forest.above(leaf)])
  edge = on_line[on_line >= 0]
  tree = forest.tree_of_edge[leaf]

  def column(of_prompt, of_edge):
    return np.concatenate([of_prompt, of_edge])

  return lines.Segments(
    row=column(row, np.broadcast_to(row, on_line.shape)[on_line >= 0]),
    start=column(np.zeros(len(leaf), np.int64), edge_start[edge]),
    offset=column(prompt_offset[tree], edge_offset[edge]),
    length=column(forest.prompt_length[tree], length[edge]),
  ), edge


def _place(
  forest: Forest,
  leaf: np.ndarray,
  edge_policy: np.ndarray,
  edge_value: Targets,
  root_value: Targets,
  prm: Targets,
  actions: dict[str, np.ndarray],
) -> lines.Lesson:
  """One row per line, the prompt and every edge with targets in one of them."""
  segments, edge = _lay_out(forest, leaf, np.arange(len(leaf)))
  tree = forest.tree_of_edge[leaf]
  credit, root_credit = _first_of_each(edge), _first_of_each(tree)
  none = np.zeros(len(tree))

  def column(of_prompt, of_edge):
    return np.concatenate([of_prompt, of_edge])

  columns = {name: column(none, y[edge]) for name, y in actions.items()}
  if actions:
    columns["action_weight"][len(tree) :] *= credit
  return lines.Lesson(
    **vars(segments),
    policy_weight=column(none, credit * edge_policy[edge]),
    value_target=column(root_value.target[tree], edge_value.target[edge]),
    value_weight=column(
      root_credit * root_value.weight[tree], credit * edge_value.weight[edge]
    ),
    prm_target=column(none, prm.target[edge]),
    prm_weight=column(none, credit * prm.weight[edge]),
    **columns,
  )


def _rivals(
  forest: Forest, leaf: np.ndarray, prm: Targets, max_line_tokens: int
) -> dict[str, np.ndarray]:
  """For lines whose last step has a better sibling, the line that ends in it.

  Better is what has the larger label; of several siblings it is the best one.
  Each labelled leaf is compared once, with the best that stood beside it.

  Args:
    forest: the trees.
    leaf: int [B], the last edges of the rows.
    prm: labels of edges.
    max_line_tokens: T.

  Returns:
    The fields of `TrainBatch` by name.
  """
  label = np.where(prm.weight > 0, prm.target, -np.inf)
  beside = forest.candidates(leaf // forest.num_candidates)
  best = beside[np.arange(len(leaf)), label[beside].argmax(axis=1)]
  has_rival = (prm.weight[leaf] > 0) & (label[best] > label[leaf])
  segments, _ = _lay_out(forest, best[has_rival], np.flatnonzero(has_rival))
  tokens, length = lines.write_tokens(
    forest.tokens, segments, len(leaf), max_line_tokens
  )
  return {
    "rival_tokens": tokens,
    "rival_length": length,
    "rival_weight": has_rival.astype(np.float32),
  }


def _first_of_each(values: np.ndarray) -> np.ndarray:
  """bool, of the shape of values: the first of all that are equal to it."""
  is_first = np.zeros(len(values), bool)
  is_first[np.unique(values, return_index=True)[1]] = True
  return is_first
