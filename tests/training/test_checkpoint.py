"""Checkpoints: round trips, other devices, and what is wrong with a file."""

import dataclasses
import gc
import json
import math
import pathlib
import re
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from qstar_jax import checkpoint as checkpoint_lib
from qstar_jax.checkpoint import Checkpointer
from qstar_jax.config import CheckpointConfig, LearnerConfig, MeshConfig
from qstar_jax.distributed.mesh import make_mesh
from qstar_jax.errors import UserError
from qstar_jax.learner.train_step import (
  TrainState,
  init_state,
  make_optimizer,
)
from qstar_jax.model.transformer import init_model
from qstar_jax.store import files

pytest_plugins = ["tests.training.micro_run"]

# A restore that fails leaves coroutines of Orbax behind, which complain when
# they are collected: in this module, see `damaged`.
pytestmark = pytest.mark.filterwarnings(
  "ignore:Exception ignored in. <coroutine object:"
  "pytest.PytestUnraisableExceptionWarning"
)


def _state(seed, *, num_devices=8, size=1000, step=0, with_average=False):
  """A state of noise, replicated over some devices."""
  rng = np.random.default_rng(seed)
  mesh = make_mesh(MeshConfig(), jax.devices()[:num_devices])

  def params():
    kernel = jnp.asarray(rng.normal(size=(size, 3)), "f4")
    return nnx.State({"a": {"kernel": nnx.Param(kernel)}})

  opt_state = (jnp.int32(step), {"m": jnp.asarray(rng.normal(size=5), "f4")})
  average = params() if with_average else None
  state = TrainState(jnp.int32(step), params(), opt_state, average)
  return jax.device_put(state, NamedSharding(mesh, P()))


def _bytes(state):
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


@pytest.mark.parametrize("with_average", [False, True])
@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_round_trip_to_any_number_of_devices(
  tmp_path, num_devices, with_average
):
  saved = _state(0, step=7, with_average=with_average)
  meta = {"progress": {"iteration": 3}, "text": "√", "list": [1, 2.5, None]}
  with Checkpointer(tmp_path, CheckpointConfig()) as checkpointer:
    assert checkpointer.latest_step() is None
    checkpointer.save(saved, meta)
  with Checkpointer(tmp_path, CheckpointConfig()) as checkpointer:
    assert checkpointer.latest_step() == 7
    fresh = _state(1, num_devices=num_devices, with_average=with_average)
    restored, restored_meta = checkpointer.restore(fresh)
  assert _bytes(restored) == _bytes(saved)
  assert jax.tree.structure(restored) == jax.tree.structure(saved)
  for leaf in jax.tree.leaves(restored):
    assert len(leaf.sharding.device_set) == num_devices
    assert leaf.is_fully_replicated
  schema = {"schema_version": checkpoint_lib.SCHEMA_VERSION, "step": 7}
  assert restored_meta == meta | schema


def test_an_earlier_player_is_kept_beside_the_state(tmp_path):
  saved, earlier = _state(0), _state(2).params
  with Checkpointer(tmp_path, CheckpointConfig()) as checkpointer:
    checkpointer.save(saved, {}, earlier)
    fresh, other = _state(1), _state(3).params
    assert _bytes(other) != _bytes(earlier)
    restored, _ = checkpointer.restore(fresh, other)
  assert _bytes(restored) == _bytes(saved)
  assert _bytes(other) == _bytes(earlier)


def _every_part(model, seed, mesh=None):
  """A state as the learner makes it that has all of its optional parts."""
  learner = LearnerConfig(
    losses={"token_q": 1.0, "token_value": 1.0, "kl": float(seed)},
    kl_target=0.1,
    ema_decay=0.9,
  )
  model = dataclasses.replace(model, token_q=True, vocabulary_multiple=4)
  _, params = init_model(model, 11, seed)
  optimizer = make_optimizer(learner, total_steps=1)
  mesh = mesh or make_mesh(MeshConfig())
  state = init_state(params, optimizer, learner, mesh)
  assert None not in state
  return state


def test_round_trip_of_every_part(tmp_path, micro_config):
  saved = _every_part(micro_config.model, 1)
  with Checkpointer(tmp_path, CheckpointConfig()) as checkpointer:
    checkpointer.save(saved, {})
    fresh = _every_part(micro_config.model, 2)
    assert _bytes(fresh) != _bytes(saved)
    restored, _ = checkpointer.restore(fresh)
  assert _bytes(restored) == _bytes(saved)
  assert jax.tree.structure(restored) == jax.tree.structure(saved)


@pytest.mark.parametrize(
  "axes", [(1, 1, 1), (1, 2, 1), (1, 1, 2), (4, 1, 1), (1, 4, 1), (1, 2, 2)]
)
def test_a_mesh_restores_what_another_has_saved(
  micro_config, split_checkpoint, axes
):
  saved, run_dir = split_checkpoint
  num_devices = math.prod(axes)
  mesh = make_mesh(MeshConfig(*axes), jax.devices()[:num_devices])
  model = dataclasses.replace(micro_config.model, num_kv_heads=2)
  fresh = _every_part(model, 2, mesh)
  lies = [leaf.sharding for leaf in jax.tree.leaves(fresh)]
  with Checkpointer(run_dir, CheckpointConfig()) as checkpointer:
    restored, _ = checkpointer.restore(fresh)
  assert _bytes(restored) == saved
  assert [leaf.sharding for leaf in jax.tree.leaves(restored)] == lies
  is_split = not all(sharding.is_fully_replicated for sharding in lies)
  assert is_split == (axes[1:] != (1, 1))


@pytest.fixture(scope="module")
def split_checkpoint(tmp_path_factory, micro_config):
  """Bytes of a state that eight devices have saved, and where."""
  run_dir = tmp_path_factory.mktemp("split")
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2))
  model = dataclasses.replace(micro_config.model, num_kv_heads=2)
  state = _every_part(model, 1, mesh)
  with Checkpointer(run_dir, CheckpointConfig()) as checkpointer:
    checkpointer.save(state, {})
  return _bytes(state), run_dir


def test_a_state_may_be_consumed_while_it_is_saved(tmp_path):
  """Steps that donate the state do not write into what is being saved."""
  add_one = jax.jit(
    lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0
  )
  state = add_one(_state(0, num_devices=1, size=1_000_000))
  expected = _bytes(state)
  with Checkpointer(tmp_path, CheckpointConfig()) as checkpointer:
    checkpointer.save(state, {})
    step = state.step
    later = state
    for _ in range(10):
      later = add_one(later)
    jax.block_until_ready(later)
    assert step.is_deleted()
    checkpointer.wait()
    restored, _ = checkpointer.restore(_state(1, num_devices=1, size=1_000_000))
  assert _bytes(restored) == expected


def test_the_newest_are_kept(tmp_path):
  with Checkpointer(tmp_path, CheckpointConfig(keep=2)) as checkpointer:
    for step in (0, 3, 4, 9):
      checkpointer.save(_state(step, step=step), {})
  kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
  assert kept == {"4", "9"}


def test_a_disk_without_room_is_told_before(tmp_path, monkeypatch):
  monkeypatch.setattr(
    shutil, "disk_usage", lambda path: types.SimpleNamespace(free=5)
  )
  with Checkpointer(tmp_path, CheckpointConfig()) as checkpointer:
    with pytest.raises(UserError, match=r"takes 12\d+ bytes and 5 are free"):
      checkpointer.save(_state(0), {})
    assert checkpointer.latest_step() is None


def test_load_a_run_or_one_of_its_checkpoints(micro_run, micro_config):
  directory = micro_run.directory
  before = sorted(directory.rglob("*"))
  newest = checkpoint_lib.load(directory)
  assert newest.config == micro_config
  assert newest.meta["progress"]["iteration"] == micro_config.num_iterations
  steps = sorted(
    int(path.name) for path in (directory / "checkpoints").iterdir()
  )
  assert newest.step == steps[-1]
  assert len(steps) == micro_config.checkpoint.keep
  loaded = [
    checkpoint_lib.load(directory / "checkpoints" / str(step)) for step in steps
  ]
  assert [one.step for one in loaded] == steps
  assert _bytes(loaded[-1].params) == _bytes(newest.params)
  assert _bytes(loaded[0].params) != _bytes(newest.params)
  for leaf in jax.tree.leaves(newest.params):
    assert len(leaf.sharding.device_set) == jax.device_count()
  assert sorted(directory.rglob("*")) == before


def test_latest_meta(micro_run, tmp_path):
  loaded = checkpoint_lib.load(micro_run.directory)
  assert checkpoint_lib.latest_meta(micro_run.directory) == loaded.meta
  assert checkpoint_lib.latest_meta(tmp_path) is None
  (tmp_path / "checkpoints").mkdir()
  assert checkpoint_lib.latest_meta(tmp_path) is None


@pytest.fixture
def damaged(micro_run, tmp_path):
  """A copy of the finished run, to be damaged; and its newest checkpoint."""
  run_dir = tmp_path / "run"
  shutil.copytree(micro_run.directory, run_dir)
  steps = [int(path.name) for path in (run_dir / "checkpoints").iterdir()]
  yield run_dir, run_dir / "checkpoints" / str(max(steps))
  gc.collect()


def _assert_refused(path, *parts):
  """Loading raises one line that has all the parts."""
  with pytest.raises(UserError) as caught:
    checkpoint_lib.load(path)
  message = str(caught.value)
  assert "\n" not in message
  for part in parts:
    assert part in message


def test_there_is_none(damaged, tmp_path):
  run_dir, newest = damaged
  _assert_refused(tmp_path / "nothing", "nothing is no run", "qstar train")
  other = newest.with_name("1")
  _assert_refused(other, f"{other} is no finished checkpoint", newest.name)
  shutil.rmtree(run_dir / "checkpoints")
  (run_dir / "checkpoints").mkdir()
  _assert_refused(run_dir, f"{run_dir} is no finished checkpoint", "none yet")


def test_nothing_is_made_that_is_thrown_away(micro_run):
  """Nothing is computed: not even a seed gets to a device."""
  with jax.transfer_guard_host_to_device("disallow"):
    loaded = checkpoint_lib.load(micro_run.directory)
  model = nnx.merge(loaded.graphdef, loaded.params)
  tokens = np.zeros((1, 3), np.int32)
  assert np.isfinite(model.logits(model.forward(tokens))).all()


def _edit_meta(checkpoint, edit):
  path = checkpoint / "meta" / "metadata"
  meta = json.loads(path.read_text())
  edit(meta)
  path.write_text(json.dumps(meta))


def test_another_schema(damaged):
  run_dir, newest = damaged
  _edit_meta(newest, lambda meta: meta.update(schema_version=99))
  _assert_refused(
    run_dir, str(newest), "schema 99", "reads 1", "use the version"
  )


def test_another_vocabulary(damaged):
  run_dir, newest = damaged
  _edit_meta(
    newest, lambda meta: meta["vocabulary"].update(fingerprint="0123abcd")
  )
  _assert_refused(run_dir, "fingerprint", "0123abcd", "restore the checkpoint")


def test_a_vocabulary_that_is_none(damaged):
  run_dir, newest = damaged
  for value in ("!", "abcd"):
    _edit_meta(newest, lambda meta, v=value: meta["vocabulary"].update(bytes=v))
    _assert_refused(run_dir)


def _largest_file(folder: pathlib.Path) -> pathlib.Path:
  files = [path for path in folder.rglob("*") if path.is_file()]
  return max(files, key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("item", ["meta", "average"])
@pytest.mark.parametrize("damage", ["cut", "empty", "removed", "scrambled"])
def test_damage(damaged, item, damage):
  run_dir, newest = damaged
  path = _largest_file(newest / item)
  content = path.read_bytes()
  if damage == "removed":
    path.unlink()
  else:
    scrambled = bytes(byte ^ 0x5A for byte in content)
    cut = content[: len(content) // 2]
    path.write_bytes({"cut": cut, "empty": b"", "scrambled": scrambled}[damage])
  _assert_refused(run_dir, str(newest), "copy")


def test_an_item_that_is_missing(damaged):
  run_dir, newest = damaged
  shutil.rmtree(newest / "average")
  _assert_refused(run_dir, str(newest), "copy")


@pytest.mark.parametrize("item", ["params", "opt_state", "average"])
def test_a_run_does_not_go_on_from_damage(damaged, item):
  run_dir, newest = damaged
  loaded = checkpoint_lib.load(run_dir)
  learner = loaded.config.learner
  optimizer = make_optimizer(learner, total_steps=1)
  mesh = make_mesh(loaded.config.mesh)
  state = init_state(loaded.params, optimizer, learner, mesh)
  _largest_file(newest / item).write_bytes(b"")
  with (
    Checkpointer(run_dir, loaded.config.checkpoint) as checkpointer,
    pytest.raises(UserError, match=re.escape(str(newest))),
  ):
    checkpointer.restore(state)


def test_the_one_before_a_damaged_one_is_used_once_it_is_gone(damaged):
  run_dir, newest = damaged
  shutil.rmtree(newest)
  assert checkpoint_lib.load(run_dir).step < int(newest.name)


def test_a_checkpoint_that_goes_while_they_are_listed(micro_run, monkeypatch):
  """Orbax looks at each step it has listed, which may be gone by then."""
  steps = checkpoint_lib.finished_steps(micro_run.directory)
  make = checkpoint_lib.ocp.CheckpointManager
  failures = iter([FileNotFoundError("16"), FileNotFoundError("22")])

  def fail_at_first(*args, **kwargs):
    for error in failures:
      raise error
    return make(*args, **kwargs)

  monkeypatch.setattr(checkpoint_lib.ocp, "CheckpointManager", fail_at_first)
  assert checkpoint_lib.finished_steps(micro_run.directory) == steps != []
  assert next(failures, None) is None
  failures = iter([FileNotFoundError("16")] * 100)
  with pytest.raises(UserError, match=r"cannot be listed \(16\)"):
    checkpoint_lib.finished_steps(micro_run.directory)


class _OpError(Exception):
  """What a bucket's library raises; 14 is unavailable, 7 no permission."""

  def __init__(self, error_code):
    super().__init__("from the bucket")
    self.error_code = error_code


def _fail_at_first(monkeypatch, owner, name, error, times):
  monkeypatch.setattr(checkpoint_lib.files, "_WAITS", (0, 0, 0))
  operate, failures = getattr(owner, name), [error] * times

  def fail_at_first(*args, **kwargs):
    if failures:
      raise failures.pop()
    return operate(*args, **kwargs)

  monkeypatch.setattr(owner, name, fail_at_first)


@pytest.mark.parametrize(
  ("name", "doing"),
  [("CheckpointManager", "listed"), ("CheckpointManager.restore", "readable")],
)
def test_a_bucket_that_fails(micro_run, monkeypatch, capsys, name, doing):
  """It is not told as damage, which would have somebody remove checkpoints."""
  owner = checkpoint_lib.ocp
  if name.endswith("restore"):
    owner, name = owner.CheckpointManager, "restore"

  def look(error_code, times):
    with monkeypatch.context() as patch:
      _fail_at_first(patch, owner, name, _OpError(error_code), times)
      return checkpoint_lib.latest_meta(micro_run.directory)

  assert look(14, 2) == checkpoint_lib.latest_meta(micro_run.directory)
  assert capsys.readouterr().err.count("tried again") == 2
  with pytest.raises(files.UnreachableError, match="from the bucket"):
    look(14, 99)
  with pytest.raises(UserError, match=f"{doing}.*from the bucket") as caught:
    look(7, 1)
  assert "\n" not in str(caught.value)
