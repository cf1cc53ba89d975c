"""What steps of stored trees earn: rewards, returns, the best that is below.

Offline reinforcement learning sees a tree as a set of decisions: at a node the
policy took each of its candidates, as often as it was sampled.
"""

from collections.abc import Callable, Mapping

import numpy as np

from qstar_jax.config import LearnerConfig
from qstar_jax.learner.forest import Forest, Targets, at


def progress(forest: Forest, policy_NA: np.ndarray) -> Targets:
  """Q(s, a) - V(s) of steps, the change in P(solved): float [E] in [-1, 1].

  Process advantages (Setlur et al. 2024, arXiv:2410.08146), with the search as
  the prover: V(s) is the mean of Q over the candidates of s under pi'. Where a
  line is settled, Q is the fact. At nodes without pi' there is none.

  Args:
    forest: searched by V.
    policy_NA: pi', 0 at nodes that are no target.
  """
  q = np.where(forest.is_settled, forest.fact, forest.edges["q"])
  q_NA = q.reshape(policy_NA.shape)
  value_N = (policy_NA * q_NA).sum(axis=1)
  has_policy_N = policy_NA.any(axis=1)
  count_NA = forest.edges["count"].reshape(policy_NA.shape)
  is_known_NA = has_policy_N[:, None] & (count_NA > 0)
  change_NA = (q_NA - value_N[:, None]) * is_known_NA
  return Targets(change_NA.ravel(), is_known_NA.ravel())


def _outcome(forest: Forest, policy_NA: np.ndarray) -> Targets:
  """The verdict at the line's end, 0 before; unknown at ends nobody judged."""
  del policy_NA
  is_known = forest.is_settled | ~forest.edges["ended"]
  return Targets(forest.fact, is_known)


def _prm(forest: Forest, policy_NA: np.ndarray) -> Targets:
  """The stored PRM score of every step; 0 of an illegal one."""
  del policy_NA
  score = np.where(forest.is_failed, 0.0, forest.edges["prm"])
  return Targets(score, np.ones(len(score), bool))


# By the names of `LearnerConfig.reward`.
_REWARDS: Mapping[str, Callable[[Forest, np.ndarray], Targets]] = {
  "outcome": _outcome,
  "prm": _prm,
  "progress": progress,
}


def rewards(forest: Forest, policy_NA: np.ndarray, reward: str) -> Targets:
  """What each step earns: float [E], with weight its samples, 0 if unknown.

  A step below an illegal one earns nothing and is no decision.

  Args:
    forest: the trees.
    policy_NA: pi', 0 at nodes that are no target; read by `progress`.
    reward: `outcome`, `prm` or `progress`.
  """
  known = _REWARDS[reward](forest, policy_NA)
  into_node = np.repeat(forest.ancestors[0], forest.num_candidates)
  is_decision = known.weight & ~at(forest.is_failed, into_node, False)
  return Targets(known.target, is_decision * forest.edges["count"])


def discounts(forest: Forest, discount: float) -> np.ndarray:
  """Of what comes after each step: float [E], 0 where the line is over."""
  is_over = forest.is_settled | forest.edges["ended"]
  return np.where(is_over, 0.0, discount)


def returns(forest: Forest, reward: Targets, discount: np.ndarray) -> Targets:
  """The mean return of the finished lines that go through each step.

  G = reward + discount · mean of G below, in which every candidate counts as
  often as it was sampled. A line that is still open says nothing.

  Args:
    forest: the trees.
    reward: see `rewards`.
    discount: float [E], see `discounts`.

  Returns:
    float [E], with the weight of the reward where a return is known.
  """
  value = reward.target.copy()
  weight = np.where(discount == 0, reward.weight, 0)
  for edge, below in forest.levels():
    total = weight[below].sum(axis=1)
    mean = (weight[below] * value[below]).sum(axis=1) / np.maximum(total, 1)
    goes_on = (total > 0) & (discount[edge] > 0)
    edge, mean = edge[goes_on], mean[goes_on]
    value[edge] += discount[edge] * mean
    weight[edge] = reward.weight[edge]
  return Targets(value, weight)


def advantages(
  forest: Forest, policy_NA: np.ndarray, learner: LearnerConfig
) -> Targets:
  """Return less baseline of each step, with the weight of its return.

  The baseline is the mean return of the candidates beside it, as often as they
  were sampled: what their own policy can expect there. The stored V is what a
  search can expect. By that, samples of a state that it can solve are bad even
  where they are the best there are, and those of a lost one never: the policy
  would be learned from lost states.
  """
  reward = rewards(forest, policy_NA, learner.reward)
  of_step = returns(forest, reward, discounts(forest, learner.discount))
  value_NA, weight_NA = (
    x.reshape(policy_NA.shape) for x in (of_step.target, of_step.weight)
  )
  total_N = np.maximum(weight_NA.sum(axis=1), 1)
  baseline_N = (weight_NA * value_NA).sum(axis=1) / total_N
  baseline = np.repeat(baseline_N, forest.num_candidates)
  return Targets(of_step.target - baseline, of_step.weight)


def actions(
  forest: Forest, policy_NA: np.ndarray, learner: LearnerConfig
) -> dict[str, np.ndarray]:
  """All steps as decisions: the columns of a `Lesson` of that name, [E]."""
  reward = rewards(forest, policy_NA, learner.reward)
  return {
    "reward": reward.target,
    "discount": discounts(forest, learner.discount),
    "action_weight": reward.weight,
  }


def step_q(forest: Forest) -> tuple[Targets, Targets]:
  """The best that the stored candidates lead to, after steps and prompts.

  Q-learning over the stored candidates, Q(s, a) = V(s · a): the value after a
  step is the largest among the candidates there, and theirs likewise, down to
  facts and to the stored V of what was never expanded. These are the values
  that one-step backups come to on the stored trees. A maximum of guesses is
  too high, the more so the more candidates there are.

  Returns:
    Of edges [E] and of prompts [K], in [0, 1]; no target where nothing is below
    and the line is not settled.
  """
  count = forest.edges["count"]
  value = np.where(forest.is_settled, forest.fact, forest.edges["value"])
  weight = forest.is_settled & (count > 0)

  def best(below):
    return np.where(count[below] > 0, value[below], 0.0).max(axis=1)

  for edge, below in forest.levels():
    is_backed = ~forest.is_settled[edge] & (count[below] > 0).any(axis=1)
    value[edge] = np.where(is_backed, best(below), value[edge])
    weight[edge] |= is_backed
  below_root = forest.candidates(forest.roots)
  tree = forest.tree_of_node[forest.roots]
  prompt = Targets(np.zeros(forest.num_trees), np.zeros(forest.num_trees, bool))
  np.maximum.at(prompt.target, tree, best(below_root))
  np.logical_or.at(prompt.weight, tree, (count[below_root] > 0).any(axis=1))
  return Targets(value, weight), prompt
