"""Policy targets: how much each step of a tree is practised."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from qstar_jax import improvement
from qstar_jax.config import LearnerConfig, SearchConfig
from qstar_jax.learner import offline, returns
from qstar_jax.learner.forest import Forest, at
from qstar_jax.records import Outcome

# Nodes per call of the compiled policy improvement: one shape, one compilation.
_NODES_PER_CALL = 4096


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
  if policy_target != "visits":
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


def search_policy(
  forest: Forest, learner: LearnerConfig, search: SearchConfig
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
    & ~at(forest.is_failed, forest.ancestors[0], False)
  )
  return policy_NA * is_target[:, None]


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
    policy_NA: of `search_policy`.
    learner: says which; see `LearnerConfig.policy_target`.
  """
  return _TARGETS[learner.policy_target](forest, policy_NA, learner)
