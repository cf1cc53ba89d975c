"""Plays in a hash world, and that world written plainly."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from qstar_jax.config import SearchConfig
from qstar_jax.search import budget as budget_lib
from qstar_jax.search import driver, testing
from qstar_jax.search.searchers import for_evaluation
from qstar_jax.search.tree import NONE, UNLIMITED

A, MAX_STEPS, NUM_TREES = 3, 4, 16
# Tokens of a step in the hash world, its delimiter included.
STEP_TOKENS = 2
BASE = SearchConfig(
  num_candidates=A, num_simulations=12, num_lines=6, beam_width=2
)
AGGREGATES = {
  "last": lambda scores: scores[-1],
  "min": min,
  "product": np.prod,
  "mean": np.mean,
}
ROOTS = jnp.arange(7, 7 + NUM_TREES, dtype=jnp.uint32)
LEAST_BUDGET = budget_lib.least_tokens(1, MAX_STEPS, STEP_TOKENS, A)


@functools.partial(jax.jit, static_argnames="config")
def play_on_device(roots_B, budget, config):
  expand_fn = testing.make_hash_expand_fn(
    config.num_candidates, end_probability=0.3
  )
  state = testing.new_state(roots_B, config, MAX_STEPS, budget)
  return driver.play(None, state, expand_fn, config, MAX_STEPS).tree


def play(config, roots=ROOTS, budget=UNLIMITED):
  return jax.device_get(play_on_device(roots, budget, config))


def setting(name, **changes):
  return for_evaluation(dataclasses.replace(BASE, **changes), name)


def row(tree, b):
  return jax.tree.map(lambda x: x[b], tree)


def committed(tree, b):
  """(node, candidate) pairs of the committed line, first to last."""
  edges, edge = [], (int(tree.root_parent[b]), int(tree.root_candidate[b]))
  while edge[0] != NONE:
    edges.append(edge)
    edge = (int(tree.parent[b, edge[0]]), int(tree.candidate[b, edge[0]]))
  return edges[::-1]


def path(tree, b, edge):
  """Candidate indices from the problem to an edge."""
  steps = []
  while edge[0] != NONE:
    steps.append(int(edge[1]))
    edge = tree.parent[b, edge[0]], tree.candidate[b, edge[0]]
  return tuple(steps[::-1])


def expanded_paths(tree, b):
  """Paths of the nodes, in the order in which they were made."""
  return [
    path(tree, b, (tree.parent[b, n], tree.candidate[b, n]))
    for n in np.flatnonzero(tree.depth[b] != NONE)
  ]


@functools.cache
def all_numbers():
  """By stream and depth: float [NUM_TREES, A ** depth], in order of paths."""
  level, levels = ROOTS[:, None], []
  for _ in range(MAX_STEPS):
    shape = (*level.shape, A)
    candidates = jnp.broadcast_to(jnp.arange(A)[None, None], shape)
    above = jnp.broadcast_to(level[..., None], shape)
    level = testing.child_state(above, candidates).reshape(NUM_TREES, -1)
    levels.append(level)
  return {
    stream: [np.asarray(testing.unit(level, stream)) for level in levels]
    for stream in range(5)
  }


class PlainWorld:
  """One tree of the hash world, path by path."""

  def __init__(self, b):
    self.b = b

  def number(self, path_, stream):
    index = 0
    for a in path_:
      index = index * A + a
    return float(all_numbers()[stream][len(path_) - 1][self.b, index])

  def log_prob(self, path_):
    """Of its last step; of a made-up policy, and up to a constant."""
    return 2 * self.number(path_, 0)

  def value(self, path_):
    return self.number(path_, 1)

  def prm(self, path_):
    return self.number(path_, 2)

  def token_q(self, path_):
    return self.number(path_, 4)

  def is_finished(self, path_):
    return self.number(path_, 3) < 0.3

  def is_terminal(self, path_):
    return self.is_finished(path_) or len(path_) == MAX_STEPS

  def children(self, path_):
    return [(*path_, a) for a in range(A)]
