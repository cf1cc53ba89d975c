"""What is set before JAX starts. Each case is a process of its own."""

import json
import os
import pathlib
import platform
import subprocess
import sys
import types
import warnings

import pytest

from qstar_jax.cli import runtime

_CODE = """
import json, logging
from qstar_jax.cli.runtime import start_runtime
from qstar_jax.config import ExperimentConfig, MeshConfig
start_runtime(ExperimentConfig(mesh=MeshConfig(cpu_devices=3)))
import jax
print(json.dumps({
  "devices": jax.device_count(),
  "cache": jax.config.jax_compilation_cache_dir,
  "logging": logging.getLogger("absl").level,
}))
"""


# A thread uses and frees as much memory as a gradient step, again and again,
# while its first heap is full: the number of new pages at each time.
_MALLOC_CODE = """
import ctypes, json, resource, threading
from qstar_jax.cli.runtime import start_runtime
start_runtime()
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def take(megabytes):
  address = libc.malloc(megabytes << 20)
  libc.memset(address, 1, megabytes << 20)
  return address

def num_faults():
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

faults = []
def work():
  take(20)
  take(20)
  for _ in range(10):
    before = num_faults()
    libc.free(take(30))
    faults.append(num_faults() - before)

thread = threading.Thread(target=work)
thread.start()
thread.join()
print(json.dumps(faults))
"""


# A program large enough for the cache, and another warning.
_COMPILE_CODE = """
import json, warnings
from qstar_jax.cli.runtime import start_runtime
start_runtime()
import jax, jax.numpy as jnp
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print(json.dumps(float(jax.jit(jnp.sum)(jnp.ones(3)))))
warnings.warn("another")
"""


def _start(code=_CODE, **variables):
  """What a fresh process prints after `start_runtime`."""
  return json.loads(_finish(code, "-Werror", **variables).stdout)


def _finish(code, *options, **variables):
  environment = {
    name: value
    for name, value in os.environ.items()
    if name == "PATH" or name.startswith("PYTHON")
  }
  return subprocess.run(
    [sys.executable, *options, "-c", code],
    env={**environment, "JAX_PLATFORMS": "cpu", **variables},
    check=True,
    capture_output=True,
    text=True,
  )


def test_devices_cache_and_logging_are_set(tmp_path):
  started = _start(QSTAR_CACHE_DIR=str(tmp_path))
  assert started == {
    "devices": 3,
    "cache": str(tmp_path / "xla"),
    "logging": 30,
  }


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_used_again(tmp_path):
  faults = _start(_MALLOC_CODE, QSTAR_CACHE_DIR=str(tmp_path))
  assert max(faults[1:]) < 100, faults


def test_variables_of_jax_win(tmp_path):
  started = _start(
    JAX_NUM_CPU_DEVICES="2",
    JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"),
    QSTAR_CACHE_DIR=str(tmp_path / "other"),
  )
  assert started["devices"] == 2
  assert started["cache"] == str(tmp_path / "mine")


def test_a_cache_that_cannot_be_made_is_done_without(tmp_path):
  (tmp_path / "file").touch()
  assert _start(QSTAR_CACHE_DIR=str(tmp_path / "file"))["cache"] is None


def test_reads_that_were_given_up_are_not_told_of(monkeypatch):
  shown = []
  monkeypatch.setattr(
    sys, "unraisablehook", lambda unraisable: shown.append(unraisable)
  )
  runtime._silence_late_reads()

  def unraisable(error, of=None):
    return types.SimpleNamespace(object=of, exc_value=error)

  told = [
    unraisable(RuntimeError("Event loop is closed"), of=len),
    unraisable(RuntimeError("another")),
    unraisable(OSError("Event loop is closed")),
  ]
  for one in [unraisable(RuntimeError("Event loop is closed")), *told]:
    sys.unraisablehook(one)
  assert shown == told


def test_a_cut_cache_entry_that_stays_is_told_of(tmp_path, monkeypatch):
  message = "Error reading persistent compilation cache entry for 'jit_f': cut"
  shown = []
  monkeypatch.setattr(
    warnings, "showwarning", lambda message, *_: shown.append(str(message))
  )
  runtime._drop_cut_entries(tmp_path)

  def warn(message):
    warnings.showwarning(message, UserWarning, "compiler.py", 1)

  warn(message)
  assert shown == [message]
  # A folder cannot be unlinked, as a file of somebody else cannot.
  (tmp_path / "jit_f-1-cache").mkdir()
  warn(message)
  assert shown == [message] * 2
  (tmp_path / "jit_f-1-cache").rmdir()
  (tmp_path / "jit_f-2-cache").touch()
  warn(message)
  assert shown == [message] * 2
  assert not list(tmp_path.iterdir())


def test_the_cache_is_found_by_the_usual_variables(monkeypatch):
  monkeypatch.delenv("QSTAR_CACHE_DIR", raising=False)
  monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
  assert runtime.cache_dir() == pathlib.Path.home() / ".cache" / "qstar_jax"
  monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
  assert runtime.cache_dir() == pathlib.Path("/xdg/qstar_jax")
  monkeypatch.setenv("QSTAR_CACHE_DIR", "/own")
  assert runtime.cache_dir() == pathlib.Path("/own")


def test_a_cut_cache_entry_is_made_anew(tmp_path):
  """As where a program was killed while it wrote the entry."""

  def finish():
    finished = _finish(_COMPILE_CODE, QSTAR_CACHE_DIR=str(tmp_path))
    assert finished.stdout == "3.0\n"
    assert "another" in finished.stderr
    assert "cache" not in finished.stderr
    return {
      path.name: path.stat().st_size for path in tmp_path.glob("xla/*-cache")
    }

  whole = finish()
  assert whole
  for name, size in whole.items():
    os.truncate(tmp_path / "xla" / name, size // 2)
  assert finish() == whole
