"""metrics.jsonl: whole lines, no duplicates, no garbage."""

import contextlib
import json
import math
import resource

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qstar_jax.errors import UserError
from qstar_jax.store import files
from qstar_jax.training import metrics_log
from qstar_jax.training.metrics_log import MetricsLog, read_metrics


def warm_start(step):
  return {"kind": "warm_start", "step": step, "loss": 1 / (1 + step)}


def steps_of(run_dir):
  return [record["step"] for record in read_metrics(run_dir)]


@pytest.fixture
def path(tmp_path):
  return tmp_path / metrics_log.FILE_NAME


def test_a_record_is_one_line_at_once(tmp_path, path):
  log = MetricsLog(tmp_path)
  log.append(warm_start(0))
  log.append(warm_start(1))
  first, second = map(json.loads, path.read_text().splitlines())
  assert (first["step"], second["step"], second["loss"]) == (0, 1, 0.5)
  assert 0 <= first["minutes"] <= second["minutes"] < 1
  assert 1.6e9 < first["time"] <= second["time"]


def test_numbers_that_are_not_finite_become_null_and_are_named(tmp_path):
  record = warm_start(3) | {
    "loss": math.nan,
    "grad_norm": -math.inf,
    "interval": [0.5, math.inf],
    "value": 0.25,
  }
  MetricsLog(tmp_path).append(record)
  (read,) = read_metrics(tmp_path)
  assert read["non_finite"] == ["loss", "grad_norm", "interval"]
  assert read["loss"] is None and read["grad_norm"] is None
  assert read["interval"] == [0.5, None] and read["value"] == 0.25


def test_scalars_of_numpy_and_jax_are_numbers(tmp_path):
  record = {"kind": "warm_start", "step": np.int64(7)}
  record |= {"a": np.float32(0.5), "b": jnp.float32(jnp.nan), "c": jnp.int32(2)}
  MetricsLog(tmp_path).append(record | {"d": (np.float32(1), 2)})
  (read,) = read_metrics(tmp_path)
  assert [read[name] for name in ("step", "a", "b", "c", "d")] == (
    [7, 0.5, None, 2, [1.0, 2]]
  )
  assert read["non_finite"] == ["b"]


@pytest.mark.parametrize(
  "record",
  [
    {"step": 1},
    {"kind": "warm_start"},
    {"kind": "warm_start", "step": 1.5},
    {"kind": "iteration", "step": 1},
    {"kind": "evaluation", "step": 1, "phase": "random", "searcher": "greedy"},
  ],
)
def test_a_record_that_could_not_be_read_is_not_written(tmp_path, path, record):
  with pytest.raises(ValueError, match="cannot be logged"):
    MetricsLog(tmp_path).append(record)
  assert not path.exists()


@given(cut=st.integers(0, 10_000), lines=st.integers(1, 4))
def test_a_write_cut_anywhere_loses_its_own_line_only(
  tmp_path_factory, cut, lines
):
  run_dir = tmp_path_factory.mktemp("run")
  log = MetricsLog(run_dir)
  for step in range(lines):
    log.append(warm_start(step))
  path = run_dir / metrics_log.FILE_NAME
  content = path.read_bytes()
  content = content[: cut % (len(content) + 1)]
  path.write_bytes(content)
  whole = list(range(content.count(b"\n")))
  assert steps_of(run_dir) == whole
  MetricsLog(run_dir).append(warm_start(99))
  assert steps_of(run_dir) == [*whole, 99]


def test_a_resumed_run_has_no_duplicates_and_goes_on_counting(tmp_path, path):
  log = MetricsLog(tmp_path)
  for step in (0, 5, 5, 9):
    log.append(warm_start(step))
  lines = [json.dumps(record | {"minutes": 70}) for record in log.records]
  path.write_text("\n".join(lines) + "\n")
  log = MetricsLog(tmp_path)
  log.truncate(5)
  assert steps_of(tmp_path) == [0, 5, 5]
  log.append(warm_start(9))
  assert steps_of(tmp_path) == [0, 5, 5, 9]
  assert 70 <= read_metrics(tmp_path)[-1]["minutes"] < 72
  log.truncate(-1)
  assert steps_of(tmp_path) == []


def test_truncating_replaces_the_file_in_one_go(tmp_path, path, monkeypatch):
  log = MetricsLog(tmp_path)
  for step in range(4):
    log.append(warm_start(step))
  content = path.read_bytes()

  def fail(*_):
    raise OSError("killed")

  monkeypatch.setattr(files.os, "replace", fail)
  with pytest.raises(UserError):
    log.truncate(1)
  assert path.read_bytes() == content


@pytest.mark.parametrize(
  ("line", "fault"),
  [
    (b"", "it is not JSON"),
    (b"\x00\x00\xff", "it is not JSON"),
    (b"[" * 100_000, "it is not JSON"),
    (b"[1]", "it is not a JSON object"),
    (b'{"kind": "iteration"}', "it has no 'step'"),
    (
      b'{"kind": "x", "step": 1, "time": 1, "minutes": NaN}',
      "its 'minutes' is nan",
    ),
    (
      b'{"kind": "x", "step": 1, "time": 1, "minutes": 1e999}',
      "its 'minutes' is inf",
    ),
    (
      b'{"kind": "x", "step": "1", "time": 1, "minutes": 0}',
      "its 'step' is '1'",
    ),
    (
      b'{"kind": "evaluation", "step": 1, "time": 1, "minutes": 0, "phase": "",'
      b' "searcher": "greedy", "top1": 0.5, "ci95": [0.1]}',
      r"its 'ci95' is \[0.1\]",
    ),
  ],
)
def test_garbage_is_refused_by_file_and_line(tmp_path, path, line, fault):
  MetricsLog(tmp_path).append(warm_start(0))
  path.write_bytes(path.read_bytes() + line + b"\n")
  content = path.read_bytes()
  with pytest.raises(UserError, match=f"jsonl, line 2 .*{fault}") as error:
    MetricsLog(tmp_path)
  assert "\n" not in str(error.value)
  assert path.read_bytes() == content


@given(st.binary(max_size=60))
def test_any_bytes_are_records_or_a_user_error(tmp_path_factory, content):
  run_dir = tmp_path_factory.mktemp("run")
  (run_dir / metrics_log.FILE_NAME).write_bytes(content)
  with contextlib.suppress(UserError):
    assert all(isinstance(record, dict) for record in read_metrics(run_dir))


def test_a_full_disk_leaves_whole_lines(tmp_path, path):
  log = MetricsLog(tmp_path)
  log.append(warm_start(0))
  content = path.read_bytes()
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) + 20, limits[1]))
  try:
    with pytest.raises(UserError, match="free space"):
      log.append(warm_start(1))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert path.read_bytes() == content
  log.append(warm_start(1))
  assert steps_of(tmp_path) == [0, 1]


def test_a_bucket_holds_the_same_lines(tmp_path, monkeypatch):
  # Where files cannot grow, each append writes the file anew.
  monkeypatch.setattr(files, "is_local", lambda path: False)
  log = MetricsLog(tmp_path)
  for step in range(4):
    log.append(warm_start(step))
  log.truncate(2)
  MetricsLog(tmp_path).append(warm_start(8))
  assert steps_of(tmp_path) == [0, 1, 2, 8]
