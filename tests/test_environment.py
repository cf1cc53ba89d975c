"""The environment of conftest.py is as strict as it says."""

import os
import pathlib
import socket
import subprocess
import sys
import warnings

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_warnings_are_errors():
  with pytest.raises(UserWarning, match="heed me"):
    warnings.warn("heed me", stacklevel=1)


def test_rank_promotion_raises_on_eight_devices():
  import jax
  import jax.numpy as jnp

  assert jax.device_count() == 8
  with pytest.raises(ValueError, match="could not be broadcast"):
    jnp.ones(3) + jnp.ones((2, 3))


def test_there_is_no_network_but_this_machine():
  refused = pytest.raises(RuntimeError, match="no network")
  with socket.socket() as client, refused:
    client.connect(("192.0.2.1", 80))  # Reserved: nothing would answer.
  with socket.create_server(("localhost", 0)) as server:
    socket.create_connection(server.getsockname(), timeout=5).close()


_DATA_TESTS = """
import pytest
def test_that_runs(data_dir): assert data_dir.is_absolute()
def test_that_skips(data_dir): pytest.skip("no")
def test_that_needs_no_data(): pytest.skip("no")
"""


@pytest.mark.parametrize(
  ("data_dir", "expected"),
  [
    ("", "3 skipped"),
    (".", "1 failed, 1 passed, 1 skipped"),
    ("no_such_folder", "1 skipped, 2 errors"),
  ],
)
def test_data_tests_skip_only_where_no_data_is_promised(
  tmp_path, data_dir, expected
):
  (tmp_path / "test_data.py").write_text(_DATA_TESTS)
  finished = subprocess.run(
    [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "."],
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": str(ROOT), "QSTAR_DATA_DIR": data_dir},
    capture_output=True,
    text=True,
  )
  assert expected in finished.stdout.splitlines()[-1], finished.stdout
