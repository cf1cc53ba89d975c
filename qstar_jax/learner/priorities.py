"""How much a tree is to be learned from, by what its search found out.

A priority is a function of the record alone: it is known when the tree enters
the window, and again when a run is resumed. The learner's own error would have
to be sent back for every line of every batch, and ages between two visits.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from qstar_jax import improvement
from qstar_jax.config import ExperimentConfig, SearchConfig
from qstar_jax.records import TreeRecord


def value_error(tree: TreeRecord) -> float:
  """Mean |Q - V| over the candidates that the search visited, in [0, 1].

  After MuZero, whose priority is the distance of a position's value from the
  search's (Schrittwieser et al. 2020, arXiv:1911.08265, appendix G). 0 if
  nothing was visited.
  """
  is_visited = (tree.count > 0) & (tree.visits > 0)
  if not is_visited.any():
    return 0.0
  return float(np.abs(tree.q - tree.value)[is_visited].mean())


def policy_surprise(tree: TreeRecord, search: SearchConfig) -> float:
  """Mean of KL(pi' || prior) over the nodes of the committed line, nats, >= 0.

  As in KataGo's policy surprise weighting (KataGoMethods.md). pi' is the
  improved policy, the prior that over the same candidates: where the search
  saw no difference between them this is 0, and so is what the policy learns.
  """
  fields = ("log_prob", "proposal_log_prob", "count", "q", "visits")
  columns = [getattr(tree, name)[tree.committed_node] for name in fields]
  kl_D = _kl(*jax.device_put(columns), search=search)
  return float(np.mean(jax.device_get(kl_D)))


@functools.partial(jax.jit, static_argnames="search")
def _kl(log_prob, proposal_log_prob, count, q, visits, *, search: SearchConfig):
  """KL(pi' || prior) of nodes [D] by fields of their candidates [D, A]."""
  prior_logits = improvement.candidate_prior_logits(
    log_prob, proposal_log_prob, count
  )
  scaled_q = improvement.sigma(
    q,
    visits,
    maxvisit_init=search.maxvisit_init,
    value_scale=search.value_scale,
  )
  # In logarithms: a prior that underflows would make it infinite.
  log_prior = jax.nn.log_softmax(prior_logits)
  log_policy = jax.nn.log_softmax(prior_logits + scaled_q)
  return jnp.sum(jnp.exp(log_policy) * (log_policy - log_prior), axis=-1)


def make_priority_fn(
  config: ExperimentConfig,
) -> Callable[[TreeRecord], float] | None:
  """The priority that `replay.sampling` asks for; None if it is uniform."""
  return {
    "uniform": None,
    "prioritised": value_error,
    "surprise": functools.partial(policy_surprise, search=config.search),
  }[config.replay.sampling]
