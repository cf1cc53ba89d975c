"""Drift: how far the policy has moved from the one that sampled the trees.

Where actor and learner are one process, trees that have just been played show
none but rounding: more of it says that the actor plays old params, or that the
step cache computes something else than the learner does. Trees from the window
show how far off-policy the learner learns.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from qstar_jax import improvement
from qstar_jax.config import ExperimentConfig
from qstar_jax.distributed import rules
from qstar_jax.learner import forest as forest_lib
from qstar_jax.learner import rows
from qstar_jax.learner.train_step import put_batches
from qstar_jax.records import TrainBatch, TreeRecord

# Of log-ratios in an exponent: larger ones say no more, and stay finite.
_MAX_LOG_RATIO = 50.0


class DriftMeter:
  """Measures drift on one step of every tree it is shown. See `measure`."""

  def __init__(
    self, graphdef: nnx.GraphDef, config: ExperimentConfig, mesh: Mesh
  ):
    """Compiles nothing yet; measures `learner.lines_per_batch` trees
    at most."""
    self._config = config
    self._mesh = mesh

    @jax.jit
    def log_prob(params, batches):
      batch = jax.tree.map(lambda x: x[0], batches)
      model = nnx.merge(graphdef, params)
      logits_BTV = model.logits(model.forward(batch.tokens))
      nll_BT = optax.softmax_cross_entropy_with_integer_labels(
        logits_BTV[:, :-1], batch.tokens[:, 1:]
      )
      return -jnp.sum(nll_BT * batch.policy_weight[:, 1:], axis=1)

    self._log_prob = log_prob

  def measure(
    self, params: Any, trees: Sequence[TreeRecord], rng: np.random.Generator
  ) -> dict[str, float]:
    """How the params differ from those that sampled the trees.

    Args:
      params: of the network, on the mesh.
      trees: at least one; of more than `learner.lines_per_batch` the first.
      rng: draws the steps; consumed.

    Returns:
      See `statistics`.
    """
    num_lines = self._config.learner.lines_per_batch
    batch, behaviour = draw_steps(
      trees[:num_lines], rng, self._config.text.max_line_tokens
    )
    index = np.arange(len(behaviour))
    # Actors measure it too, whose devices need not divide a learner's batch.
    num_shards = rules.num_shards(self._mesh.shape)
    num_rows = -(-num_lines // num_shards) * num_shards
    batch = rows.take(batch, index, num_rows)
    log_prob = self._log_prob(params, put_batches([batch], self._mesh))
    return statistics(jax.device_get(log_prob)[index] - behaviour)


def draw_steps(
  trees: Sequence[TreeRecord], rng: np.random.Generator, max_line_tokens: int
) -> tuple[TrainBatch, np.ndarray]:
  """A random step of each tree, as the actor's policy would have sampled it.

  The node is drawn uniformly, the candidate from the prior over the node's
  candidates: what the search thought of it makes no difference, so that means
  over the steps are means under the policy (up to the bias, of order 1/A, of
  weights that are normalised).

  Args:
    trees: K, with the same number of candidates per node; each has one.
    rng: consumed.
    max_line_tokens: T.

  Returns:
    Rows that end in the step, with policy weight 1 at its tokens and no other
    weight; and float32 [K], what the actor gave as its log-probability, nats.
  """
  forest = forest_lib.plant(trees)
  edges, shape_NA = forest.edges, (-1, forest.num_candidates)
  has_candidates_N = (edges["count"].reshape(shape_NA) > 0).any(axis=1)
  node = rng.permutation(np.flatnonzero(has_candidates_N))
  # The first of each tree in random order.
  _, first = np.unique(forest.tree_of_node[node], return_index=True)
  node_K = node[first]
  names = ("log_prob", "proposal_log_prob", "count")
  columns = [edges[name].reshape(shape_NA)[node_K] for name in names]
  prior_logits_KA = jax.device_get(
    improvement.candidate_prior_logits(*jax.device_put(columns))
  )
  # Gumbel's way to sample from a softmax.
  noise_KA = rng.gumbel(size=prior_logits_KA.shape)
  candidate_K = np.argmax(prior_logits_KA + noise_KA, axis=1)
  edge_K = node_K * forest.num_candidates + candidate_K
  batch = _lines_to(forest, edge_K, max_line_tokens)
  return batch, edges["log_prob"][edge_K]


def _lines_to(
  forest: forest_lib.Forest, edge_K: np.ndarray, max_line_tokens: int
) -> TrainBatch:
  """A row for each edge: the prompt and the steps down to it."""
  edge_offset, edge_length = forest.edge_offset, forest.edges["length"]
  prompt_offset = forest.prompt_offset

  def tokens_at(offset, length):
    return forest.tokens[offset : offset + length]

  lines = []
  for edge, above in zip(edge_K, forest.above(edge_K).T, strict=True):
    tree = forest.tree_of_edge[edge]
    prompt = tokens_at(prompt_offset[tree], forest.prompt_length[tree])
    path = [*above[above >= 0][::-1], edge]
    steps = [tokens_at(edge_offset[e], edge_length[e]) for e in path]
    lines.append([prompt, *steps])
  tokens, pieces = rows.in_lines(lines)
  none = np.zeros(len(pieces["length"]))
  is_end = np.append(pieces["above"][1:] < 0, True)
  lesson = rows.Lesson(
    **pieces,
    policy_weight=is_end,
    value_target=none,
    value_weight=none,
    prm_target=none,
    prm_weight=none,
  )
  return rows.assemble_lines(tokens, lesson, max_line_tokens, 1)


def statistics(log_ratio: np.ndarray) -> dict[str, float]:
  """Means over steps that the actor sampled.

  Args:
    log_ratio: [K] log pi_learner(step) - log pi_actor(step), nats, K >= 1.

  Returns:
    logprob_drift: mean |log ratio|, nats per step; drift_ratio: mean of r =
    pi_learner / pi_actor, 1 in expectation; drift_kl_k1, drift_kl_k3: estimates
    of KL(actor || learner) in nats per step, -log r and r - 1 - log r
    (Schulman, "Approximating KL Divergence", 2020); both are unbiased, and k3
    is never negative.
  """
  log_ratio = np.asarray(log_ratio, np.float64)
  excess = np.expm1(np.minimum(log_ratio, _MAX_LOG_RATIO))
  return {
    "logprob_drift": float(np.mean(np.abs(log_ratio))),
    "drift_ratio": float(1 + np.mean(excess)),
    "drift_kl_k1": float(np.mean(-log_ratio)),
    "drift_kl_k3": float(np.mean(excess - log_ratio)),
  }
