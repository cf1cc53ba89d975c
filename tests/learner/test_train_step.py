"""The gradient step: on one device and eight, on nothing, and on one batch."""

import dataclasses
import itertools

import chex
import jax
import numpy as np
import optax
import pytest
from flax import nnx

from qstar_jax.config import LearnerConfig, MeshConfig, ModelConfig
from qstar_jax.distributed import hlo
from qstar_jax.distributed.mesh import make_mesh
from qstar_jax.learner import train_step as train_step_lib
from qstar_jax.model.transformer import init_model
from qstar_jax.records import TrainBatch

_VOCABULARY_SIZE = 24
_TOKENS = 12
_LINES = 16
_CONFIG = LearnerConfig(
  learning_rate=1e-2,
  warmup_steps=0,
  weight_decay=0.0,
  losses={"prm": 1.0, "value": 0.7, "policy": 1.0},
)


def _mesh(num_devices, **axes):
  return make_mesh(MeshConfig(**axes), jax.devices()[:num_devices])


def _batch(seed=0):
  """Noise in every field, with rows of every length."""
  rng = np.random.default_rng(seed)
  shape = (_LINES, _TOKENS)
  length = rng.integers(1, _TOKENS, _LINES, np.int32, endpoint=True)
  in_use = np.arange(_TOKENS) < length[:, None]

  def field():
    return np.where(in_use, rng.random(shape), 0).astype(np.float32)

  tokens = rng.integers(3, _VOCABULARY_SIZE, shape)
  return TrainBatch(
    tokens=np.where(in_use, tokens, 0).astype(np.int32),
    policy_weight=field(),
    value_target=field(),
    value_weight=field(),
    prm_target=field(),
    prm_weight=field(),
  )


@pytest.fixture(params=[False, True], ids=["unrolled", "scanned"])
def network(request):
  config = ModelConfig(
    num_layers=2,
    model_dim=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_dim=32,
    scan_layers=request.param,
  )
  graphdef, params = init_model(config, _VOCABULARY_SIZE, seed=0)
  # The heads start at zero, where their inputs have no gradient.
  leaves, structure = jax.tree.flatten(params)
  rng = np.random.default_rng(0)
  leaves = [
    leaf + rng.normal(0, 0.1, leaf.shape).astype(np.float32) for leaf in leaves
  ]
  return graphdef, jax.tree.unflatten(structure, leaves)


def _step(network, optimizer, config, mesh, batch, calls=(1,)):
  """State and metrics after steps on the same batch, from fresh parameters.

  A call for each number in `calls`, of that many steps.
  """
  graphdef, params = network
  # The steps consume their state: work on a copy.
  params = jax.tree.map(np.array, params)
  train_steps = train_step_lib.make_train_steps(
    graphdef, optimizer, config, mesh
  )
  state = train_step_lib.init_state(params, optimizer, config, mesh)
  history = []
  for num_steps in calls:
    batches = train_step_lib.put_batches([batch] * num_steps, mesh)
    state, metrics = train_steps(state, batches)
    metrics = jax.device_get(metrics)
    history += [
      {name: values[i] for name, values in metrics.items()}
      for i in range(num_steps)
    ]
  return jax.device_get(state), history


@pytest.mark.parametrize("axes", [(8, 1, 1), (2, 2, 2)])
def test_eight_devices_make_the_gradients_of_one(network, axes):
  # With plain descent at rate 1 the parameters move by minus the gradient.
  data, fsdp, model = axes
  meshes = _mesh(1), _mesh(8, data=data, fsdp=fsdp, model=model)
  states, histories = zip(
    *(
      _step(network, optax.sgd(1.0), _CONFIG, mesh, _batch()) for mesh in meshes
    ),
    strict=True,
  )
  moved = 0.0
  for one, eight, before in zip(
    *(jax.tree.leaves(state.params) for state in states),
    jax.tree.leaves(network[1]),
    strict=True,
  ):
    np.testing.assert_allclose(one, eight, rtol=0, atol=1e-5)
    moved += np.abs(one - np.asarray(before)).sum()
  assert moved > 1
  for name, value in histories[0][0].items():
    np.testing.assert_allclose(value, histories[1][0][name], rtol=1e-5)


def test_a_step_keeps_the_learners_layout(network):
  """Of parameters, moments and average; it compiles from shapes alone."""
  graphdef, params = network
  mesh = _mesh(8, data=2, fsdp=2, model=2)
  config = dataclasses.replace(_CONFIG, ema_decay=0.5)
  optimizer = train_step_lib.make_optimizer(config, total_steps=10)
  abstract = train_step_lib.abstract_state(params, optimizer, config, mesh)
  train_steps = train_step_lib.make_train_steps(
    graphdef, optimizer, config, mesh
  )
  state = train_step_lib.init_state(params, optimizer, config, mesh)
  batches = train_step_lib.put_batches([_batch()], mesh)
  compiled = train_steps.lower(abstract, batches).compile()
  after, _ = compiled(state, batches)
  for x, expected in zip(*map(jax.tree.leaves, (after, abstract)), strict=True):
    assert x.sharding.is_equivalent_to(expected.sharding, x.ndim)
  whole, part = (
    sum(np.prod(shape_of(x)) for x in jax.tree.leaves(abstract))
    for shape_of in (
      lambda x: x.shape,
      lambda x: x.sharding.shard_shape(x.shape),
    )
  )
  # A quarter of each matrix, and the little that is whole everywhere.
  assert part < 0.3 * whole
  # Parameters are gathered, over fsdp; of lines there are only sums.
  found = hlo.collectives(compiled.as_text(), mesh.shape)
  sums = {"all-reduce", "reduce-scatter"}
  assert {(c.kind, c.axes) for c in found if c.kind not in sums} == {
    ("all-gather", frozenset({"fsdp"}))
  }


def test_steps_of_one_call_are_those_of_several(network):
  config = dataclasses.replace(_CONFIG, ema_decay=0.5)
  optimizer = train_step_lib.make_optimizer(config, total_steps=10)
  args = network, optimizer, config, _mesh(8), _batch()
  one, of_one = _step(*args, calls=(5,))
  several, of_several = _step(*args, calls=(1, 3, 1))
  chex.assert_trees_all_close(one, several, rtol=1e-4, atol=1e-5)
  chex.assert_trees_all_close(of_one, of_several, rtol=1e-4)
  assert of_one[0]["loss"] > of_one[4]["loss"]


def test_metrics_say_what_the_step_did(network):
  state, (metrics,) = _step(
    network, optax.sgd(1.0), _CONFIG, _mesh(8), _batch()
  )
  assert set(metrics) == {
    *("loss", "policy", "value", "prm", "grad_norm", "param_norm")
  }
  assert metrics["loss"] == pytest.approx(
    metrics["policy"] + 0.7 * metrics["value"] + metrics["prm"], rel=1e-5
  )
  gradients = jax.tree.map(
    lambda before, after: np.asarray(before) - after, network[1], state.params
  )
  for name, tree in (("grad_norm", gradients), ("param_norm", state.params)):
    norm = float(optax.tree.norm(tree))
    assert metrics[name] == pytest.approx(norm, rel=1e-3)
  assert state.step == 1


def test_a_batch_of_padding_changes_nothing(network):
  empty = jax.tree.map(np.zeros_like, _batch())
  optimizer = train_step_lib.make_optimizer(_CONFIG, total_steps=10)
  state, (metrics, _) = _step(
    network, optimizer, _CONFIG, _mesh(8), empty, calls=(2,)
  )
  assert metrics["loss"] == metrics["grad_norm"] == 0
  for before, after in zip(
    jax.tree.leaves(network[1]), jax.tree.leaves(state.params), strict=True
  ):
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_only_the_layers_matrices_decay(network, name):
  config = LearnerConfig(
    optimizer=name, learning_rate=0.1, warmup_steps=0, weight_decay=0.5
  )
  optimizer = train_step_lib.make_optimizer(config, total_steps=10)
  empty = jax.tree.map(np.zeros_like, _batch())
  state, _ = _step(network, optimizer, config, _mesh(1), empty)
  before = nnx.to_flat_state(network[1])
  after = nnx.to_flat_state(state.params)
  for (path, old), (_, new) in zip(before, after, strict=True):
    is_decayed = path[0] == "layers" and path[-1] == "kernel"
    expected = np.asarray(old[...]) * (1 - 0.1 * 0.5 * is_decayed)
    np.testing.assert_allclose(np.asarray(new[...]), expected, rtol=1e-5)


def test_the_average_is_exponential(network):
  config = LearnerConfig(ema_decay=0.75, warmup_steps=0)
  optimizer = optax.sgd(1.0)
  expected = jax.device_get(network[1])
  for num_steps in (1, 2, 3):
    state, _ = _step(
      network, optimizer, config, _mesh(1), _batch(), calls=(num_steps,)
    )
    expected = jax.tree.map(
      lambda average, new: 0.75 * average + 0.25 * new, expected, state.params
    )
  assert state.played is state.average
  chex.assert_trees_all_close(state.average, expected, rtol=1e-5, atol=1e-6)


def test_without_average_the_newest_parameters_play(network):
  optimizer = optax.sgd(1.0)
  state, _ = _step(network, optimizer, LearnerConfig(), _mesh(1), _batch())
  assert state.average is None
  assert state.played is state.params


def test_muon_orthogonalises_each_layers_matrix(network):
  """Most of a step's singular values are about equal, and none is larger.

  A handful of Newton-Schulz steps leaves the smallest ones behind.
  """
  config = LearnerConfig(optimizer="muon", warmup_steps=0, weight_decay=0.0)
  optimizer = train_step_lib.make_optimizer(config, total_steps=10)
  state, _ = _step(network, optimizer, config, _mesh(1), _batch())
  before = nnx.to_flat_state(network[1])
  after = nnx.to_flat_state(state.params)
  for (path, old), (_, new) in zip(before, after, strict=True):
    if path[0] == "layers" and path[-1] == "kernel":
      step_LXY = np.asarray(new[...] - old[...]) / config.learning_rate
      values = np.linalg.svd(step_LXY, compute_uv=False)
      expected = 0.2 * np.sqrt(max(step_LXY.shape[1:]))
      assert (np.median(values, axis=1) > 0.6 * expected).all(), path
      assert (values < 1.3 * expected).all(), path


def test_the_loss_of_a_fixed_batch_falls(network):
  optimizer = train_step_lib.make_optimizer(_CONFIG, total_steps=60)
  _, history = _step(
    network, optimizer, _CONFIG, _mesh(1), _batch(), calls=(60,)
  )
  for name in ("loss", "policy", "value", "prm"):
    losses = [float(metrics[name]) for metrics in history]
    assert losses[-1] < losses[0] - 0.01
  assert history[-1]["policy"] < 0.7 * history[0]["policy"]


def test_the_schedule_warms_up_and_decays():
  config = LearnerConfig(learning_rate=1.0, warmup_steps=4, weight_decay=1.0)
  optimizer = train_step_lib.make_optimizer(config, total_steps=20)
  params = {"layers": {"kernel": np.ones((1, 2, 2), np.float32)}}
  state = optimizer.init(params)
  gradients = jax.tree.map(np.zeros_like, params)
  rates = []
  for _ in range(22):
    # Without gradients a step is -rate * decay * parameter.
    updates, state = optimizer.update(gradients, state, params)
    rates.append(-float(updates["layers"]["kernel"][0, 0, 0]))
  np.testing.assert_allclose(rates[:5], [0, 0.25, 0.5, 0.75, 1], atol=1e-6)
  assert all(a > b for a, b in itertools.pairwise(rates[4:21]))
  np.testing.assert_allclose(rates[20:], 0.1, atol=1e-6)
