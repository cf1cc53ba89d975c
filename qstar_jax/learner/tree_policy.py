"""What the search would play at the nodes of stored trees, and Q to go by."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from qstar_jax import improvement
from qstar_jax.config import LearnerConfig, SearchConfig
from qstar_jax.learner.forest import Forest, at

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


def _policy_at(
  forest: Forest,
  node: np.ndarray,
  q: np.ndarray,
  policy_target: str,
  search: SearchConfig,
) -> np.ndarray:
  """pi' of the candidates of S nodes by Q of all edges [E]: float32 [S, A].

  Where the search asked the verifier (`terminal_value: outcome`), what it
  refused is no candidate: the search could not have played it, and pi' of the
  others is what is left. Elsewhere the search did not know, and pi' is its own.
  """
  edges, of_node = forest.edges, forest.candidates(node)
  was_root = np.zeros(len(forest.tree_of_node), bool)
  was_root[forest.committed // forest.num_candidates] = True
  columns = [
    edges["log_prob"][of_node],
    edges["proposal_log_prob"][of_node],
    forest.playable_count[of_node],
    q[of_node],
    edges["visits"][of_node],
    was_root[node, None],
  ]
  policy_SA = np.zeros(of_node.shape, np.float32)
  for start in range(0, len(node), _NODES_PER_CALL):
    stop = min(start + _NODES_PER_CALL, len(node))
    fill = ((0, start + _NODES_PER_CALL - stop), (0, 0))
    part = jax.device_put([np.pad(c[start:stop], fill) for c in columns])
    policy = _node_policy(*part, policy_target=policy_target, search=search)
    policy_SA[start:stop] = jax.device_get(policy)[: stop - start]
  return policy_SA


def search_policy(
  forest: Forest, learner: LearnerConfig, search: SearchConfig
) -> np.ndarray:
  """pi' of every candidate, 0 at nodes that are no target: float32 [N, A].

  Nodes below an illegal step are no targets: the line is lost whatever is
  played, and values there are the network's invention.
  """
  every = np.arange(len(forest.tree_of_node))
  policy_NA = _policy_at(
    forest, every, forest.edges["q"], learner.policy_target, search
  )
  visits_NA = forest.edges["visits"].reshape(policy_NA.shape)
  count_NA = forest.playable_count.reshape(policy_NA.shape)
  is_target = (
    (1 + visits_NA.sum(axis=1) >= learner.min_visits)
    & (count_NA > 0).any(axis=1)
    & ~at(forest.is_failed, forest.ancestors[0], False)
  )
  return policy_NA * is_target[:, None]


def replanned(forest: Forest, search: SearchConfig) -> Forest:
  """The trees with Q as it would be, had the search begun with what it found.

  A search backs up means over its visits: a solution that it found late, or
  below the move before, hardly moves Q further up. Here Q is backed up once
  more from the leaves of the finished tree: a fact where there is one, V where
  nothing is below, and else the mean of Q below under the improved policy there
  (the regularised backup of Grill et al. 2020, arXiv:2007.12509, in the
  closed form of Gumbel MuZero). Steps have no chance in them, so a line that
  is found can be played.
  """
  q = np.where(forest.is_settled, forest.fact, forest.edges["value"])
  for edge, below in forest.levels():
    node = below[:, 0] // forest.num_candidates
    policy_SA = _policy_at(forest, node, q, "improved", search)
    value_S = (policy_SA * q[below]).sum(axis=1)
    is_open_S = (forest.edges["count"][below] > 0).any(axis=1)
    is_open_S &= ~forest.is_settled[edge]
    q[edge] = np.where(is_open_S, value_S, q[edge])
  return dataclasses.replace(forest, edges=forest.edges | {"q": q})
