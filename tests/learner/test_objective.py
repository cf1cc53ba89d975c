"""Losses by name, and what the train step carries for them."""

import dataclasses
import typing

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from qstar_jax.config import LearnerConfig, LossName, MeshConfig, ModelConfig
from qstar_jax.distributed.mesh import make_mesh
from qstar_jax.learner import losses, objective, offline, regularizers
from qstar_jax.learner import train_step as train_step_lib
from qstar_jax.model.transformer import abstract_model, init_model
from qstar_jax.records import TrainBatch

V, T, B = 24, 10, 16
MODEL = ModelConfig(
  num_layers=1,
  model_dim=16,
  num_heads=2,
  num_kv_heads=1,
  head_dim=8,
  ffn_dim=32,
  token_q=True,
)
EVERY_LOSS = {name: 0.5 for name in objective.LOSSES}
CONFIG = LearnerConfig(losses=EVERY_LOSS, target_decay=0.75)


def noisy(params, seed):
  """Params with noise: fresh heads are zero, and teach nothing below them."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), params
  )


@pytest.fixture(scope="module")
def network():
  graphdef, params = init_model(MODEL, V, seed=0)
  return graphdef, noisy(params, 1)


def batch_of_noise(seed=0):
  """Every field but those of trees, and rows of every length."""
  rng = np.random.default_rng(seed)
  length = rng.integers(1, T + 1, B)
  in_use = np.arange(T) < length[:, None]

  def field():
    return np.where(in_use, rng.random((B, T)), 0).astype(np.float32)

  def whole(below):
    return np.where(in_use, rng.integers(0, below, (B, T)), 0).astype(np.int32)

  names = [f.name for f in dataclasses.fields(TrainBatch)]
  batch = {name: field() for name in names}
  batch |= {"tokens": whole(V), "rival": whole(T)}
  # Nothing predicts a line's first token.
  batch["policy_weight"][:, 0] = batch["action_weight"][:, 0] = 0
  return TrainBatch(**batch | dict.fromkeys(("position", "previous", "last")))


def trees_of_noise(seed=0):
  """The same, with two branches after the second token of every row."""
  place = np.tile(np.arange(T, dtype=np.int32), (B, 1))
  is_first = (place >= 2) & (place < 5)
  is_second = place >= 5
  previous = np.maximum(place - 1, 0)
  previous[:, 5] = 1
  return dataclasses.replace(
    batch_of_noise(seed),
    position=np.where(is_second, place - 3, place),
    previous=previous,
    last=np.where(is_first, 4, T - 1).astype(np.int32),
  )


def mesh(num_devices):
  return make_mesh(MeshConfig(), jax.devices()[:num_devices])


def run(network, config, batches, *, num_devices=1, rate=1.0, **kwargs):
  """Plain descent: the states after each of the batches, and the metrics."""
  graphdef, params = network
  optimizer, devices = optax.sgd(rate), mesh(num_devices)
  steps = train_step_lib.make_train_steps(
    graphdef, optimizer, config, devices, **kwargs
  )
  state = train_step_lib.init_state(
    jax.tree.map(np.array, params), optimizer, config, devices
  )
  states, history = [jax.device_get(state)], []
  for batch in batches:
    put = train_step_lib.put_batches([batch], devices)
    state, metrics = steps(state, put)
    states.append(jax.device_get(state))
    history.append({k: float(v[0]) for k, v in metrics.items()})
  return states, history


def test_the_config_knows_every_loss():
  assert set(objective.LOSSES) == set(typing.get_args(LossName))


def before(batch, after):
  """What stands one token earlier in each line; 0 where there is none."""
  out = np.zeros_like(after)
  for b, t in np.ndindex(B, T):
    if batch.previous is not None:
      out[b, t] = after[b, batch.previous[b, t]]
    elif t > 0:
      out[b, t] = after[b, t - 1]
  return jnp.asarray(out)


def q_of_tokens(model, batch, hidden_before):
  """Token by token, float [Z, B, T]."""
  q = np.zeros((2, B, T), np.float32)
  for b, t in np.ndindex(B, T):
    token = batch.tokens[b, t : t + 1]
    q[:, b, t] = model.token_q(hidden_before[b, t], token)[:, 0]
  return jnp.asarray(q)


@pytest.mark.parametrize("make_batch", [batch_of_noise, trees_of_noise])
def test_each_loss_reads_what_belongs_to_it(network, make_batch):
  """Against the losses themselves, on arrays put together by hand."""
  graphdef, params = network
  batch = make_batch()
  model, reference, target = (
    nnx.merge(graphdef, noisy(params, seed)) for seed in (2, 3, 4)
  )
  x = objective.Pass(model, batch, CONFIG, reference, target)
  tree = {"position_BT": batch.position, "last_BT": batch.last}
  hidden = model.forward(batch.tokens, **tree)
  heads, hidden_before = model.heads(hidden), before(batch, hidden)
  logits = model.logits(hidden_before)
  taken = q_of_tokens(model, batch, hidden_before)
  low = target.token_q(hidden_before, batch.tokens[..., None])[..., 0].min(
    axis=0
  )
  value, weight = model.token_value(hidden), batch.action_weight
  value_before = before(batch, value)
  rows = np.arange(B)[:, None]
  reference_hidden = reference.forward(batch.tokens, **tree)
  expected = {
    "policy": losses.policy_loss(logits, batch.tokens, batch.policy_weight),
    "value": losses.value_loss(
      heads.value_logit, batch.value_target, batch.value_weight
    ),
    "prm": losses.prm_loss(heads.prm_logit, batch.prm_target, batch.prm_weight),
    "prm_ranking": losses.prm_ranking_loss(
      heads.prm_logit[rows, batch.rival], heads.prm_logit, batch.rival_weight
    ),
    "token_q": offline.q_loss(
      taken, value, batch.reward, batch.discount, weight
    ),
    "token_value": offline.expectile_loss(
      value_before, low, weight, expectile=0.7
    ),
    "cql": offline.cql_loss(
      model.token_q_log_sum(hidden_before), taken, weight
    ),
    "awac": offline.awac_loss(
      logits,
      batch.tokens,
      weight,
      low - value_before,
      temperature=0.25,
      max_weight=20.0,
    ),
    "kl": regularizers.kl_loss(
      logits,
      reference.logits(before(batch, reference_hidden)),
      batch.policy_weight,
    ),
    "entropy": regularizers.entropy_loss(logits, batch.policy_weight),
  }
  weights = {name: 1.0 + i for i, name in enumerate(expected)}
  total, by_name = objective.total_loss(x, weights)
  for name, loss in expected.items():
    np.testing.assert_allclose(by_name[name], loss, rtol=1e-4, err_msg=name)
  by_hand = sum(weights[name] * loss for name, loss in expected.items())
  np.testing.assert_allclose(total, by_hand, rtol=1e-4)
  assert len({float(loss) for loss in expected.values()}) == len(expected)


def test_losses_that_are_not_named_are_not_computed(network):
  graphdef, params = network
  x = objective.Pass(nnx.merge(graphdef, params), batch_of_noise(), CONFIG)
  total, by_name = objective.total_loss(x, {"value": 2.0})
  assert set(by_name) == {"value", "loss"}
  assert total == 2 * by_name["value"]
  assert not {"logits_BTV", "token_q_ZBT"} & set(vars(x))


def test_a_batch_without_a_field_leaves_its_losses_out(network):
  graphdef, params = network
  batch = dataclasses.replace(batch_of_noise(), reward=None)
  x = objective.Pass(nnx.merge(graphdef, params), batch, CONFIG)
  _, by_name = objective.total_loss(x, {"value": 1.0, "token_q": 1.0})
  assert set(by_name) == {"value", "loss"}


def test_eight_devices_make_the_gradients_of_one(network):
  (_, one), of_one = run(network, CONFIG, [batch_of_noise()])
  (_, eight), of_eight = run(network, CONFIG, [batch_of_noise()], num_devices=8)
  chex.assert_trees_all_close(one, eight, rtol=0, atol=1e-5)
  chex.assert_trees_all_close(of_one, of_eight, rtol=1e-4, atol=1e-6)


def test_padding_of_the_vocabulary_changes_nothing(network):
  """Not even where its embedding, which nothing should read, is large."""
  padding = np.full((8, MODEL.model_dim), 50, np.float32)
  model = dataclasses.replace(MODEL, vocabulary_multiple=16)
  params = nnx.clone(network[1])
  embedding = params["embedding"]["embedding"]
  embedding.set_value(jnp.concatenate([embedding[...], padding]))
  padded = abstract_model(model, V)[0], params
  batches = [batch_of_noise(i) for i in range(2)]
  _, expected = run(network, CONFIG, batches)
  states, found = run(padded, CONFIG, batches)
  for left, right in zip(expected, found, strict=True):
    del left["param_norm"], right["param_norm"]
    assert left == pytest.approx(right, rel=1e-4, abs=1e-6)
  after = states[-1].params["embedding"]["embedding"][...]
  np.testing.assert_array_equal(after[V:], padding)


def test_a_batch_of_padding_changes_nothing(network):
  empty = jax.tree.map(np.zeros_like, batch_of_noise())
  (before, after), (metrics,) = run(network, CONFIG, [empty])
  assert metrics["loss"] == metrics["grad_norm"] == 0
  jax.tree.map(np.testing.assert_array_equal, before.params, after.params)


def test_target_heads_are_a_moving_average(network):
  states, _ = run(network, CONFIG, [batch_of_noise(i) for i in range(3)])
  expected = states[0].params["token_q_heads"]
  for state in states:
    expected = jax.tree.map(
      lambda old, new: 0.75 * old + 0.25 * new,
      expected,
      state.params["token_q_heads"],
    )
    chex.assert_trees_all_close(state.target_heads, expected, atol=1e-6)
  moved = np.abs(
    states[3].target_heads["hidden"]["kernel"][...]
    - states[3].params["token_q_heads"]["hidden"]["kernel"][...]
  )
  assert moved.max() > 1e-4


def test_the_reference_follows_up_to_its_step_and_then_stays(network):
  batches = [batch_of_noise(i) for i in range(4)]
  states, history = run(network, CONFIG, batches, reference_step=2)
  for state in states[:3]:
    jax.tree.map(np.testing.assert_array_equal, state.reference, state.params)
  for state in states[3:]:
    jax.tree.map(
      np.testing.assert_array_equal, state.reference, states[2].params
    )
  kl = [metrics["kl"] for metrics in history]
  assert np.abs(kl[:3]).max() < 1e-6
  assert kl[3] > 1e-4


def test_what_no_loss_needs_is_not_there(network):
  (state, _), _ = run(network, LearnerConfig(), [batch_of_noise()])
  assert state.average is None
  assert state.reference is None
  assert state.target_heads is None
  assert state.kl_coefficient is None


def test_the_coefficient_holds_the_target(network):
  """Against a pull away from the reference, which would go far beyond it."""
  batch = batch_of_noise()
  target = 0.3
  config = LearnerConfig(losses={"policy": 1.0, "kl": 1.0}, kl_target=target)
  _, free = run(
    network,
    dataclasses.replace(config, kl_target=0.0),
    [batch] * 60,
    rate=0.2,
  )
  states, history = run(network, config, [batch] * 160, rate=0.2)
  assert free[-1]["kl"] > 2 * target
  late = [metrics["kl"] for metrics in history[-40:]]
  assert abs(np.mean(late) / target - 1) < 0.2
  coefficients = [float(state.kl_coefficient) for state in states]
  np.testing.assert_allclose(
    coefficients[:-1], [m["kl_coefficient"] for m in history], rtol=1e-6
  )
  for before, after, metrics in zip(
    coefficients[:-1], coefficients[1:], history, strict=True
  ):
    expected = regularizers.adapted_coefficient(before, metrics["kl"], target)
    assert after == pytest.approx(float(expected), rel=1e-5)


def test_token_values_of_a_chain(network):
  """Three tokens to a reward of 1: after each of them it is still to come."""
  tokens = np.tile(np.array([[3, 4, 5, 6] + [0] * (T - 4)], np.int32), (B, 1))
  empty = jax.tree.map(np.zeros_like, batch_of_noise())
  weight = np.zeros((B, T), np.float32)
  weight[:, 1:4] = 1
  discount = weight.copy()
  discount[:, 3] = 0
  batch = dataclasses.replace(
    empty,
    tokens=tokens,
    action_weight=weight,
    reward=weight - discount,
    discount=discount,
  )
  config = LearnerConfig(
    losses={"token_q": 1.0, "token_value": 1.0, "cql": 0.01},
    target_decay=0.5,
  )
  states, history = run(network, config, [batch] * 200, rate=0.05)
  model = nnx.merge(network[0], states[-1].params)
  hidden = model.forward(tokens[:1])
  np.testing.assert_allclose(model.token_value(hidden)[0, :3], 1, atol=0.15)
  every = jnp.broadcast_to(jnp.arange(V), (1, T, V))
  q = np.asarray(model.token_q(hidden, every))[:, 0]
  for t in range(3):
    taken = q[:, t, tokens[0, t + 1]]
    np.testing.assert_allclose(taken, 1, atol=0.15)
  # Nobody took the others, and they are worth less.
  assert q[:, 0].mean() < 0.9
  assert history[-1]["cql"] < history[0]["cql"]
