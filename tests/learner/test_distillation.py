"""Under constant Q the distillation gradient is zero in the mean.

The search then has nothing to say, so a policy that moves all the same moves
for a wrong reason, such as a prior that counts the policy twice.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qstar_jax.config import LearnerConfig, SearchConfig
from qstar_jax.learner.losses import policy_loss
from qstar_jax.records import TreeRecord
from tests.learner.whole_rows import whole_rows

# Token 1 ends a step, and so does the third token.
STEPS = [
  (1,),
  *itertools.product((0, 2), (1,)),
  *itertools.product((0, 2), (0, 2), (0, 1, 2)),
]
LOGITS = np.array([[0.5, -0.5, 0.2], [1.0, 0.0, -1.0], [-0.3, 0.4, 0.0]])
STEP_TOKENS = 3


def step_log_probs(temperature):
  """Log-probability of every step, [S], under the tempered policy."""
  logits = LOGITS / temperature
  log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
  return np.array(
    [sum(log_probs[t, token] for t, token in enumerate(s)) for s in STEPS]
  )


def sampled_tree(index, rng, num_samples, temperature, recorded_proposal):
  """One expansion: steps drawn with replacement, duplicates merged."""
  proposal = step_log_probs(temperature)
  count = rng.multinomial(num_samples, np.exp(proposal))[None]
  shape = count.shape
  lengths = np.array([[len(step) for step in STEPS]])
  drawn = [STEPS[i] for i in np.flatnonzero(count)]
  return TreeRecord(
    domain="test",
    domain_version=1,
    problem_key="key",
    prompt="prompt\n",
    actor_id=0,
    sequence=index,
    params_version=0,
    terminal_value="value",
    temperature=temperature,
    prompt_tokens=np.array([index], np.int32),
    node_parent=np.array([-1], np.int32),
    node_candidate=np.array([-1], np.int32),
    node_value=np.array([0.5], np.float32),
    tokens=np.array(list(itertools.chain(*drawn)), np.int32),
    length=np.where(count > 0, lengths, 0).astype(np.int32),
    count=count.astype(np.int32),
    log_prob=step_log_probs(1.0)[None],
    proposal_log_prob=recorded_proposal[None],
    value=np.full(shape, 0.5, np.float32),
    prm=np.full(shape, 0.5, np.float32),
    ended=np.zeros(shape, bool),
    visits=(count > 0).astype(np.int32),
    q=np.full(shape, 0.5, np.float32),
    legal=np.full(shape, -1, np.int8),
    outcome=np.full(shape, -1, np.int8),
    score=np.zeros(shape, np.float32),
    committed_node=np.array([0], np.int32),
    committed_candidate=np.array([np.argmax(count)], np.int32),
    final_outcome=1,
    final_score=0.0,
  )


@jax.jit
@jax.vmap
def token_gradient(position, token, weight):
  """Gradient of a token's loss, times its weight."""

  def loss(logits_SV):
    logits_11V = logits_SV[position - 1][None, None]
    one = jnp.ones((1, 1))
    return weight * policy_loss(logits_11V, token[None, None], one)

  return jax.grad(loss)(jnp.asarray(LOGITS, jnp.float32))


def tree_of_tokens(batch):
  """The first token of its line, which numbers its tree, for every token."""
  tree = batch.tokens.copy()
  rows = np.arange(len(tree))
  for t in range(tree.shape[1]):
    above = tree[rows, batch.previous[:, t]]
    tree[:, t] = np.where(batch.position[:, t] > 0, above, tree[:, t])
  return tree


def gradients(num_samples, temperature=1.0, recorded_proposal=None):
  """The distillation gradient of each of many expansions, [K, 9]."""
  num_trees = 8000
  if recorded_proposal is None:
    recorded_proposal = step_log_probs(temperature)
  rng = np.random.default_rng(0)
  trees = [
    sampled_tree(i, rng, num_samples, temperature, recorded_proposal)
    for i in range(num_trees)
  ]
  batch = whole_rows(trees, LearnerConfig(), SearchConfig(), 1 + STEP_TOKENS)
  learned = batch.policy_weight > 0
  of_token = token_gradient(
    batch.position[learned], batch.tokens[learned], batch.policy_weight[learned]
  )
  total = np.zeros((num_trees, LOGITS.size))
  tree = tree_of_tokens(batch)[learned]
  np.add.at(total, tree, np.asarray(of_token).reshape(-1, LOGITS.size))
  return total


def mean_and_error(samples):
  return samples.mean(axis=0), samples.std(axis=0) / np.sqrt(len(samples))


def first_order_bias(num_samples, temperature):
  """Of the self-normalised estimator: -E_beta[w^2 g] / A, w = pi / beta.

  With A samples the weights sum to A only in the mean; that their sum and the
  gradient go up and down together leaves a bias of order 1 / A.
  """
  log_prob, proposal = step_log_probs(1.0), step_log_probs(temperature)
  gradient = []
  for step in STEPS:
    position = jnp.arange(1, 1 + len(step))
    of_token = token_gradient(position, jnp.array(step), jnp.ones(len(step)))
    gradient.append(of_token.sum(axis=0))
  gradient = np.array(gradient).reshape(len(STEPS), -1)
  squared = np.exp(2 * log_prob - proposal)
  return -(squared[:, None] * gradient).sum(axis=0) / num_samples


def test_constant_q_moves_nothing():
  mean, error = mean_and_error(gradients(num_samples=8))
  assert (np.abs(mean) <= 3 * error).all(), mean / error


def test_counting_the_policy_twice_is_seen():
  """The test above can fail: with prior count * pi it does."""
  twice = gradients(num_samples=8, recorded_proposal=np.zeros(len(STEPS)))
  mean, error = mean_and_error(twice)
  assert np.abs(mean / error).max() > 20


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_tempered_proposal_moves_by_the_estimators_bias(temperature):
  mean, error = mean_and_error(gradients(32, temperature))
  bias = first_order_bias(32, temperature)
  assert (np.abs(mean - bias) <= 3 * error).all(), (mean / error, bias / error)
  # Not to correct for the temperature at all is ten times worse.
  uncorrected = gradients(32, temperature, recorded_proposal=step_log_probs(1))
  assert np.abs(uncorrected.mean(axis=0)).max() > 10 * np.abs(bias).max()
