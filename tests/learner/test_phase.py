"""A learner phase: which batches it makes, and how it runs its steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qstar_jax.config import MeshConfig, ReplayConfig
from qstar_jax.distributed.mesh import make_mesh
from qstar_jax.errors import UserError
from qstar_jax.learner import phase
from qstar_jax.learner.train_step import TrainState
from qstar_jax.records import TrainBatch
from qstar_jax.replay import ReplayReader, ReplayWindow
from tests.learner.whole_rows import whole_rows

pytest_plugins = ["tests.training.micro_run"]


@pytest.fixture(scope="module")
def trees(micro_run):
  """Trees of real self-play."""
  reader = ReplayReader(micro_run.directory / "replay")
  return [reader[i] for i in range(len(reader))]


def _window(trees, max_reuse=3, seed=0):
  config = ReplayConfig(window_trees=len(trees), max_reuse=max_reuse)
  window = ReplayWindow(config, seed=seed)
  for tree in trees:
    window.add(tree)
  return window


def _config(config, **learner):
  """A config whose learner takes every step and reads every field."""
  learner["light_steps"] = 1.0
  learner["losses"] = {"policy": 1.0, "token_q": 1.0, "prm_ranking": 1.0}
  return dataclasses.replace(
    config, learner=dataclasses.replace(config.learner, **learner)
  )


def _whole(trees, config):
  return whole_rows(trees, config.learner, config.search, config.row_tokens)


def _targets(batches):
  """All that is to be learned: lines, with what is said of their last token."""
  names = [
    field.name
    for field in dataclasses.fields(TrainBatch)
    if field.name.endswith(("_weight", "_target", "reward", "discount"))
  ]
  found = []
  for batch in batches:
    said = np.stack([getattr(batch, name) for name in names], axis=-1)
    weighs = [i for i, name in enumerate(names) if name.endswith("_weight")]
    for row, place in np.argwhere(said[..., weighs].any(axis=-1)):
      seen = np.flatnonzero(batch.last[row, : place + 1] >= place)
      line = batch.tokens[row, seen].tolist()
      found.append((line, said[row, place].tolist()))
  return sorted(found)


def _sample(trees, config, *, max_reuse=3, rng=0):
  window = _window(trees, max_reuse)
  return list(phase.sample_batches(window, np.random.default_rng(rng), config))


def test_as_many_full_batches_as_steps(trees, micro_config):
  config = _config(micro_config, steps_per_iteration=5, batch_size=8)
  batches = _sample(trees, config)
  assert len(batches) == 5
  for batch in batches:
    assert batch.tokens.shape == (8, config.text.max_line_tokens)
    assert batch.tokens.any(axis=1).all()
  # Nothing is there that the sampled trees do not have.
  every = _targets([_whole(trees, config)])
  assert all(target in every for target in _targets(batches))


def test_a_window_with_less_gives_fewer(trees, micro_config):
  """Every step of every tree, max_reuse times; the last batch is filled up."""
  config = _config(micro_config, steps_per_iteration=1000, batch_size=16)
  window = _window(trees, max_reuse=2)
  rng = np.random.default_rng(0)
  batches = list(phase.sample_batches(window, rng, config))
  whole = _whole(trees, config)
  assert _targets(batches) == _targets([whole, whole])
  *full, last = batches
  assert all(batch.tokens.any(axis=1).all() for batch in full)
  padding = ~last.tokens.any(axis=1)
  for field in jax.tree.leaves(last):
    assert not field[padding].any()
  assert list(phase.sample_batches(window, rng, config)) == []


def test_a_phase_is_determined_by_window_and_rng(trees, micro_config):
  config = _config(micro_config, steps_per_iteration=4, batch_size=8)
  first, again = (_sample(trees, config) for _ in range(2))
  other = _sample(trees, config, rng=1)
  for batch, same in zip(first, again, strict=True):
    jax.tree.map(np.testing.assert_array_equal, batch, same)
  assert any(
    not np.array_equal(batch.tokens, different.tokens)
    for batch, different in zip(first, other, strict=True)
  )


_MESH = make_mesh(MeshConfig(), jax.devices()[:1])
_STATE = TrainState(jnp.int32(4), {}, ())


def _batches(values):
  for value in values:
    fields = dataclasses.fields(TrainBatch)
    yield TrainBatch(**{f.name: np.full((2, 2), value, "f4") for f in fields})


def _fake_steps(state, batches):
  loss = batches.policy_weight[:, 0, 0]
  metrics = {"loss": loss, "one": jnp.ones_like(loss)}
  return state._replace(step=state.step + len(loss)), metrics


@pytest.mark.parametrize(
  ("steps_per_call", "calls"), [(1, [0, 1, 2]), (2, [0, 2]), (4, [0])]
)
def test_metrics_are_means_over_the_steps(steps_per_call, calls):
  done = []
  state, metrics = phase.run_steps(
    _fake_steps,
    _STATE,
    _batches([1, 2, 6]),
    _MESH,
    steps_per_call=steps_per_call,
    on_call=done.append,
  )
  assert state.step == 7
  assert metrics == {"loss": 3.0, "one": 1.0}
  assert done == calls


def test_no_batch_no_metrics():
  state, metrics = phase.run_steps(
    _fake_steps, _STATE, _batches([]), _MESH, steps_per_call=2
  )
  assert (state, metrics) == (_STATE, {})


@pytest.mark.parametrize("steps_per_call", [1, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_names_the_step(value, steps_per_call):
  with pytest.raises(UserError) as caught:
    phase.run_steps(
      _fake_steps,
      _STATE,
      _batches([1, value, 3]),
      _MESH,
      steps_per_call=steps_per_call,
    )
  message = str(caught.value)
  assert message.startswith("loss of gradient step 6 not finite; lower ")
  assert "\n" not in message


def test_a_stop_comes_between_calls():
  taken = []

  def steps(state, batches):
    taken.append(batches)
    return _fake_steps(state, batches)

  def on_call(done):
    if done == 2:
      raise InterruptedError

  with pytest.raises(InterruptedError):
    phase.run_steps(
      steps,
      _STATE,
      _batches(range(5)),
      _MESH,
      steps_per_call=1,
      on_call=on_call,
    )
  assert len(taken) == 2


def test_the_host_is_one_call_ahead_at_most():
  """Or a signal would wait for all the steps that are on their way."""

  @jax.jit
  def slow(x):
    # Tens of milliseconds.
    product = jax.lax.fori_loop(
      0, 40, lambda _, y: jnp.tanh(y @ y), jnp.full((300, 300), x)
    )
    return product[0]

  losses = []

  def steps(state, batches):
    losses.append(slow(batches.policy_weight[0, 0, 0])[:1])
    return state._replace(step=state.step + 1), {"loss": losses[-1]}

  def on_call(done):
    assert all(loss.is_ready() for loss in losses[: done - 1])

  phase.run_steps(
    steps,
    _STATE,
    _batches(range(6)),
    _MESH,
    steps_per_call=1,
    on_call=on_call,
  )
