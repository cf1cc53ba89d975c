"""The strict environment that every test runs in.

JAX is configured through its environment variables, which it reads when it is
imported: tests that need no JAX never load it, and child processes inherit the
same settings.
"""

import os
import pathlib
import sys

import hypothesis
import pytest

from qstar_jax.cli import runtime

if "jax" in sys.modules:
  raise RuntimeError("JAX was imported before tests/conftest.py configured it.")

os.environ |= {
  "JAX_PLATFORMS": "cpu",
  "JAX_NUM_CPU_DEVICES": "8",
  "JAX_NUMPY_RANK_PROMOTION": "raise",
  "JAX_COMPILATION_CACHE_DIR": str(runtime.cache_dir() / "xla"),
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
  "TF_CPP_MIN_LOG_LEVEL": "3",
}

# The same examples on every run and machine, however slow it is.
hypothesis.settings.register_profile(
  "qstar",
  deadline=None,
  derandomize=True,
  suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("qstar")


def _refuse_network(event: str, args: tuple) -> None:
  if event != "socket.connect":
    return
  address = args[1]
  is_internet = isinstance(address, tuple)
  if is_internet and address[0] not in ("localhost", "127.0.0.1", "::1"):
    raise RuntimeError(f"Tests use no network, but one connects to {address}.")


sys.addaudithook(_refuse_network)


# Linux lets a process have 65,530; each compiled program holds several.
_MAX_MEMORY_MAPS = 30_000


@pytest.fixture(scope="module", autouse=True)
def _free_compiled_programs():
  """Keeps a worker from dying of too many programs, compiled one by one."""
  yield
  maps = pathlib.Path("/proc/self/maps")
  if "jax" not in sys.modules or not maps.exists():
    return
  if maps.read_bytes().count(b"\n") > _MAX_MEMORY_MAPS:
    sys.modules["jax"].clear_caches()


def _data_dir_variable() -> str:
  return os.environ.get("QSTAR_DATA_DIR", "")


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
  """The folder of third-party data (game24/, countdown/, ...)."""
  if not _data_dir_variable():
    pytest.skip("QSTAR_DATA_DIR is not set")
  path = pathlib.Path(_data_dir_variable()).resolve()
  if not path.is_dir():
    pytest.fail(f"QSTAR_DATA_DIR is {path}, which is not a folder.")
  return path


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
  """With QSTAR_DATA_DIR set, a data test that skips has failed."""
  report = yield
  needs_data = "data_dir" in getattr(item, "fixturenames", ())
  is_skip = report.skipped and not hasattr(report, "wasxfail")
  if is_skip and needs_data and _data_dir_variable():
    report.outcome = "failed"
    report.longrepr = f"{item.nodeid} skipped though QSTAR_DATA_DIR is set."
  return report
