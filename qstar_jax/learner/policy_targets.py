"""Policy targets: how much each step of a tree is practised."""

from collections.abc import Callable, Mapping

import numpy as np

from qstar_jax.config import LearnerConfig
from qstar_jax.learner import offline, returns
from qstar_jax.learner.forest import Forest, at
from qstar_jax.records import Outcome


def _as_searched(
  forest: Forest, policy_NA: np.ndarray, learner: LearnerConfig
) -> np.ndarray:
  """pi' of a step, times the probability that pi' comes to its node."""
  del learner
  # What pi' plays on the way to a node; 1 past the root.
  way_DN = at(policy_NA.ravel(), forest.ancestors, 1.0)
  return (policy_NA * way_DN.prod(axis=0)[:, None]).ravel()


def _imitation(
  forest: Forest, policy_NA: np.ndarray, learner: LearnerConfig
) -> np.ndarray:
  """The lines verified correct that go through a step: each of them weighs 1.

  Imitation of what was solved, as in STaR (Zelikman et al. 2022,
  arXiv:2203.14465).
  """
  del policy_NA, learner
  weight = (forest.edges["outcome"] == Outcome.CORRECT).astype(np.float32)
  above = forest.above(np.flatnonzero(weight))
  np.add.at(weight, above[above >= 0], 1)
  return weight


def _awr(
  forest: Forest, policy_NA: np.ndarray, learner: LearnerConfig
) -> np.ndarray:
  """Advantage-weighted regression: samples times exp(A / temperature)."""
  advantage = returns.advantages(forest, policy_NA, learner)
  factor = offline.advantage_weight(
    advantage.target,
    temperature=learner.advantage_temperature,
    max_weight=learner.max_advantage_weight,
  )
  return advantage.weight * np.asarray(factor)


# By the names of `LearnerConfig.policy_target`.
_TARGETS: Mapping[
  str, Callable[[Forest, np.ndarray, LearnerConfig], np.ndarray]
] = {
  "improved": _as_searched,
  "visits": _as_searched,
  "imitation": _imitation,
  "awr": _awr,
}


def policy_weights(
  forest: Forest, policy_NA: np.ndarray, learner: LearnerConfig
) -> np.ndarray:
  """The weight of the tokens of every step: float [E] >= 0.

  Args:
    forest: the trees.
    policy_NA: of `tree_policy.search_policy`.
    learner: says which; see `LearnerConfig.policy_target`.
  """
  return _TARGETS[learner.policy_target](forest, policy_NA, learner)
