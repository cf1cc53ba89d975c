"""What the learner learns from search trees.

Every edge, a node's candidate, is a step with targets of its own, that stands
once in a row below the steps that it goes on from. Targets are functions of the
raw tree, computed on read: a new rule needs no new play.
"""

from collections.abc import Sequence

import numpy as np

from qstar_jax.config import LearnerConfig, SearchConfig
from qstar_jax.learner import forest as forest_lib
from qstar_jax.learner import (
  objective,
  policy_targets,
  returns,
  rows,
  tree_policy,
)
from qstar_jax.learner.forest import Forest, Targets
from qstar_jax.records import Outcome, TrainBatch, TreeRecord


def trees_to_rows(
  trees: Sequence[TreeRecord],
  learner: LearnerConfig,
  search: SearchConfig,
  row_tokens: int,
  rng: np.random.Generator,
) -> TrainBatch:
  """What trees have to teach.

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
    row_tokens: T of the batch.
    rng: draws the light steps that stay, see `_thin`; consumed.

  Returns:
    As many rows as it takes; 0 if there is nothing to teach.

  Raises:
    UserError: a line is longer than T.
  """
  forest = forest_lib.plant(trees)
  if learner.tree_q == "replanned":
    forest = tree_policy.replanned(forest, search)
  policy_NA = tree_policy.search_policy(forest, learner, search)
  if learner.value_target == "step_q":
    edge_value, prompt_value = returns.step_q(forest)
  else:
    edge_value, prompt_value = _value_targets(
      forest, policy_NA, learner, search
    )
  if learner.prm_target == "progress":
    change = returns.progress(forest, policy_NA)
    prm = Targets((1 + change.target) / 2, change.weight)
  else:
    prm = _prm_labels(forest)
  columns = {
    "policy_weight": policy_targets.policy_weights(forest, policy_NA, learner),
    "value_target": edge_value.target,
    "value_weight": edge_value.weight,
    "prm_target": prm.target,
    "prm_weight": prm.weight,
  }
  if objective.reads(learner, "reward"):
    columns |= returns.actions(forest, policy_NA, learner)
  if objective.reads(learner, "rival"):
    columns |= _rivals(forest, prm)
  columns = _thin(forest, columns, learner.light_steps, rng)
  lesson = _in_preorder(forest, columns, prompt_value)
  return rows.assemble(forest.tokens, lesson, row_tokens)


def _value_targets(
  forest: Forest,
  policy_NA: np.ndarray,
  learner: LearnerConfig,
  search: SearchConfig,
) -> tuple[Targets, Targets]:
  """P(solved) after each edge, and after each prompt.

  * A fact where there is one, with weight 1: 0 after an illegal step and all
    below it, and the verifier's score after a step that finishes its line. A
    finished line is a target even if the search did not commit it: what is
    biased by the search's choice is a line's outcome as a sign of the states
    *above* its end, and there it does not go.
  * Else a mix of the committed line's outcome, on this line, with weight
    lambda, and the search's value, at what the search visited, with weight
    1 - lambda. The cross-entropy is linear in its target, so where one of the
    two is missing the other one's share of the loss remains. (Searches that
    back nothing up count no visits; `replanned` Q asks what they expanded.)
  * Else none: what the network said itself is no news to it.

  A prompt's search value is the mean of Q under pi', and over its roots.
  Search values are P(solved) only if V drove the search or they are
  `replanned`; else, under `utility: prm` and `mix`, they are left out.

  Returns:
    Targets of edges [E] and of prompts [K].
  """
  edges, tree = forest.edges, forest.tree_of_edge
  is_committed = np.zeros(len(tree), bool)
  is_committed[forest.committed] = True
  is_replanned = learner.tree_q == "replanned"
  is_visited = forest.node_below >= 0 if is_replanned else edges["visits"] > 0
  is_probability = search.utility == "value" or is_replanned
  q_share = 1 - learner.value_lambda if is_probability else 0.0
  mix = _mix(
    forest.final_score[tree],
    learner.value_lambda * (is_committed & forest.has_verdict[tree]),
    edges["q"],
    q_share * is_visited,
  )
  edge_targets = Targets(
    target=np.where(forest.is_settled, forest.fact, mix.target),
    weight=np.where(forest.is_settled, 1.0, mix.weight),
  )
  policy_RA = policy_NA[forest.roots]
  q_RA = edges["q"].reshape(policy_NA.shape)[forest.roots]
  tree_R = forest.tree_of_node[forest.roots]
  # pi' is 0 where the search knows nothing of it.
  count_K, sum_K = (
    np.bincount(tree_R, values_R, forest.num_trees)
    for values_R in (policy_RA.any(axis=1), (policy_RA * q_RA).sum(axis=1))
  )
  prompt_targets = _mix(
    forest.final_score,
    learner.value_lambda * forest.has_verdict,
    sum_K / np.maximum(count_K, 1),
    q_share * (count_K > 0),
  )
  return edge_targets, prompt_targets


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


# Policy weight of a token below which a step counts as light.
_LIGHT = 0.1


def _thin(
  forest: Forest,
  columns: dict[str, np.ndarray],
  share: float,
  rng: np.random.Generator,
) -> dict[str, np.ndarray]:
  """Takes the weight off most steps that have little to teach, without bias.

  Most steps of a tree are candidates that the improved policy dropped and
  nothing went on from: they show value and PRM one more mistake, that both knew
  for the most part. Of such steps a share stays, half of it evenly and half by
  `_surprise`; one that stays with probability p weighs 1 / p. Every loss keeps
  its expectation, gradient steps go to what matters, and a mistake that was
  taken for right is not missed. (Surprise is the size of the gradient that the
  step had when it was played: importance sampling.)

  Args:
    forest: the trees.
    columns: of edges [E], by names of `rows.Lesson`.
    share: of the light steps, in (0, 1]; somewhat fewer stay where surprise is
      large and rare, as p ends at 1.
    rng: consumed.

  Returns:
    The columns with other weights.
  """
  is_light = (columns["policy_weight"] < _LIGHT) & (forest.node_below < 0)
  is_light &= forest.edges["count"] > 0
  surprise = np.where(is_light, _surprise(forest, columns), 0.0)
  mean = surprise.sum() / max(is_light.sum(), 1)
  relative = surprise / mean if mean > 0 else np.ones_like(surprise)
  # As often as one stays of (1 + relative) / 2 steps on average.
  p = np.where(is_light, 1 - (1 - share) ** ((1 + relative) / 2), 1.0)
  scale = (rng.random(len(p)) < p) / p
  return {
    name: scale * column if name.endswith("_weight") else column
    for name, column in columns.items()
  }


def _surprise(forest: Forest, columns: dict[str, np.ndarray]) -> np.ndarray:
  """How far off the player's V or PRM was where there is a target, [E] to 1."""
  off = [
    np.abs(forest.edges[name] - columns[f"{name}_target"])
    * (columns[f"{name}_weight"] > 0)
    for name in ("value", "prm")
  ]
  return np.maximum(*off)


def _rivals(forest: Forest, prm: Targets) -> dict[str, np.ndarray]:
  """For labelled steps with a better sibling the best one, an edge; or -1.

  Better is what has the larger label.
  """
  label = np.where(prm.weight > 0, prm.target, -np.inf)
  every = np.arange(len(label))
  beside = forest.candidates(every // forest.num_candidates)
  best = beside[every, label[beside].argmax(axis=1)]
  has_rival = (prm.weight > 0) & (label[best] > label)
  return {
    "rival": np.where(has_rival, best, -1),
    "rival_weight": has_rival.astype(np.float32),
  }


def _in_preorder(
  forest: Forest, columns: dict[str, np.ndarray], prompt_value: Targets
) -> rows.Lesson:
  """The pieces of trees that have something to teach, or lead to such a one.

  Args:
    forest: the trees.
    columns: of edges [E], by names of `rows.Lesson`.
    prompt_value: of prompts [K].
  """
  weights = [c for name, c in columns.items() if name.endswith("_weight")]
  is_kept = (sum(weights) > 0) & (forest.edges["count"] > 0)
  if "rival" in columns:
    is_kept[columns["rival"][columns["rival_weight"] > 0]] = True
  for edge, below in forest.levels():
    is_kept[edge] |= is_kept[below].any(axis=1)
  piece, above = _preorder(forest, is_kept, prompt_value.weight > 0)
  num_trees, length = forest.num_trees, forest.edges["length"]

  def column(of_prompt, of_edge):
    return np.concatenate([of_prompt, of_edge])[piece]

  none = np.zeros(num_trees)
  filled = {name: column(none, c) for name, c in columns.items()}
  filled["value_target"] = column(prompt_value.target, columns["value_target"])
  filled["value_weight"] = column(prompt_value.weight, columns["value_weight"])
  if "rival" in columns:
    place = np.full(num_trees + len(length), -1)
    place[piece] = np.arange(len(piece))
    rival = column(np.full(num_trees, -1), columns["rival"])
    filled["rival"] = np.where(rival >= 0, place[num_trees + rival], -1)
  return rows.Lesson(
    above=above,
    offset=column(forest.prompt_offset, forest.edge_offset),
    length=column(forest.prompt_length, length),
    **filled,
  )


def _preorder(
  forest: Forest, is_kept: np.ndarray, is_prompt_kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Prompts and steps in the order in which rows hold them.

  Steps that nothing goes on from come before their siblings: where a tree is
  cut, less of it has to be written again.

  Args:
    forest: K trees.
    is_kept: bool [E], of edges; so is all that is above them.
    is_prompt_kept: bool [K], the prompt has something to teach itself.

  Returns:
    (piece [P], k for the prompt of tree k and K + e for edge e; above [P], the
    place of what it goes on from, -1 for prompts).
  """
  into_node = forest.ancestors[0]
  comes_after = np.where(
    into_node < 0, forest.tree_of_node, forest.num_trees + into_node
  )
  # What is pushed last comes first.
  kept = np.flatnonzero(is_kept)[::-1]
  kept = kept[np.argsort(forest.node_below[kept] < 0, kind="stable")]
  below: dict[int, list[int]] = {}
  for edge, before in zip(
    kept.tolist(),
    comes_after[kept // forest.num_candidates].tolist(),
    strict=True,
  ):
    below.setdefault(before, []).append(forest.num_trees + edge)
  piece, above = [], []
  for tree in range(forest.num_trees):
    if not (is_prompt_kept[tree] or tree in below):
      continue
    stack = [(tree, -1)]
    while stack:
      one, place_above = stack.pop()
      stack += [(other, len(piece)) for other in below.get(one, ())]
      piece.append(one)
      above.append(place_above)
  return np.array(piece, np.int64), np.array(above, np.int64)
