"""Value-guided decoding: each token by log pi + beta (Q - V).

The most likely tokens after a state are tried, and the one of largest
log pi(t) + beta (Q(t) - V) goes on, beta being `guidance` and Q(t) that of the
network's token-Q heads, or V after t if it has none: the decoding of ILQL
(Snell et al. 2022, arXiv:2206.11871, section 4) and, up to the constant V,
token-wise controlled decoding (Mudgal et al. 2023, arXiv:2310.17022). A step of
the tree is a token.

Deviations: the argmax is taken and not sampled; the num_candidates most likely
tokens stand for the vocabulary; V is that of the value head, whatever Q is: a
constant changes no argmax. V after t is Q where transitions are deterministic.
"""

import dataclasses

import chex
import jax.numpy as jnp

from qstar_jax.config import SearchConfig
from qstar_jax.search import lanes
from qstar_jax.search.searcher import step_down
from qstar_jax.search.tree import NONE, SearchTree


def score(tree: SearchTree, config: SearchConfig) -> chex.Array:
  """log pi + beta (Q - V), float32 [N, A]."""
  advantage_NA = tree.token_q - tree.raw_value[:, None]
  return tree.log_prob + config.guidance * advantage_NA


def commit(tree: SearchTree, config: SearchConfig) -> SearchTree:
  """The one line, whatever was left beside it."""
  node = jnp.max(jnp.where(tree.depth != NONE, jnp.arange(tree.depth.size), 0))
  is_candidate_A = tree.count[node] > 0
  score_A = jnp.where(is_candidate_A, score(tree, config)[node], -jnp.inf)
  edge = jnp.stack([node, jnp.argmax(score_A)]).astype(jnp.int32)
  return step_down(tree, edge, jnp.bool_(True))


SEARCHER = lanes.make_searcher(score)._replace(commit=commit)


def for_evaluation(config: SearchConfig) -> SearchConfig:
  """One line, over the most likely tokens."""
  return dataclasses.replace(
    config,
    num_lines=1,
    leaves_per_round=1,
    proposal="stochastic_beam",
    temperature=0.0,
  )
