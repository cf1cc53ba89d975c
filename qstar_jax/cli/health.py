"""What `qstar doctor` looks at."""

import dataclasses
import glob
import importlib
import importlib.metadata
import os
import pathlib
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from qstar_jax.cli import runtime

_DISTRIBUTION = "qstar-jax"
_LOW_SPACE_GIB = 2


@dataclasses.dataclass(frozen=True)
class Check:
  """One finding.

  Attributes:
    name: what was checked.
    status: `fail` if commands cannot work, `warn` if something may surprise.
    detail: what was found.
    fix: what to do; empty if nothing.
  """

  name: str
  status: Literal["ok", "warn", "fail"]
  detail: str
  fix: str = ""


def run_checks(run_dir: pathlib.Path) -> Iterator[Check]:
  """All checks, each shielded from the failure of another."""
  parts: dict[str, Callable[[str], Check]] = {
    "python": _check_python,
    "packages": _check_packages,
    "devices": _check_devices,
    "compilation": _check_compilation,
    "run directory": lambda name: _check_folder(name, run_dir),
    "cache": lambda name: _check_folder(name, runtime.cache_dir()),
    "sentencepiece": _check_sentencepiece,
    "array_record": _check_array_record,
    # After all that might load it.
    "tensorflow": _check_tensorflow,
    "data": _check_data,
  }
  for name, check in parts.items():
    try:
      yield check(name)
    except Exception as error:
      detail = f"{type(error).__name__}: {error}"
      yield Check(name, "fail", detail, f"reinstall {_DISTRIBUTION}")


def _check_python(name: str) -> Check:
  found = f"{platform.python_version()} at {sys.executable}"
  wanted = importlib.metadata.metadata(_DISTRIBUTION)["Requires-Python"]
  if SpecifierSet(wanted).contains(platform.python_version()):
    return Check(name, "ok", found)
  return Check(name, "fail", found, f"use a Python {wanted}")


def _check_packages(name: str) -> Check:
  """The installed versions against the bounds that the package declares."""
  shown, wrong, wanted = [], [], []
  for line in importlib.metadata.requires(_DISTRIBUTION) or ():
    requirement = Requirement(line)
    if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
      continue
    try:
      version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
      version = "missing"
    if version == "missing" or version not in requirement.specifier:
      wrong.append(f"{requirement.name} {version}")
      wanted.append(f"'{requirement.name}{requirement.specifier}'")
    if requirement.name in ("jax", "flax"):
      shown.append(f"{requirement.name} {version}")
  shown.append(f"jaxlib {importlib.metadata.version('jaxlib')}")
  if wrong:
    return Check(
      name, "fail", ", ".join(wrong), f"pip install {' '.join(wanted)}"
    )
  return Check(name, "ok", ", ".join(shown))


def _check_devices(name: str) -> Check:
  import jax

  devices = jax.devices()
  found = f"{len(devices)} x {devices[0].device_kind} ({jax.default_backend()})"
  if jax.default_backend() == "cpu":
    for pattern, extra in (("/dev/accel*", "tpu"), ("/dev/nvidia0", "cuda")):
      if glob.glob(pattern):
        fix = f"install {_DISTRIBUTION}[{extra}] and unset JAX_PLATFORMS"
        return Check(name, "warn", f"{found}, accelerator not in use", fix)
  return Check(name, "ok", found)


def _check_compilation(name: str) -> Check:
  import jax
  import jax.numpy as jnp

  start = time.monotonic()
  product = jax.jit(lambda x: x @ x)(jnp.full((8, 8), 0.5))
  if float(product[0, 0]) != 2.0:
    detail = f"0.5 * 0.5 summed 8 times gave {product[0, 0]}"
    return Check(name, "fail", detail, "reinstall jaxlib")
  return Check(
    name, "ok", f"a matrix product in {time.monotonic() - start:.2f} s"
  )


def _check_folder(name: str, folder: pathlib.Path) -> Check:
  """Whether files can be written there, and how many."""
  folder = folder.resolve()
  # What does not exist yet will be made inside what does.
  existing = next(p for p in (folder, *folder.parents) if p.is_dir())
  try:
    with tempfile.TemporaryFile(dir=existing):
      pass
  except OSError as error:
    detail = f"{folder}: {error.strerror}"
    return Check(name, "fail", detail, "make it writable or choose another")
  free = shutil.disk_usage(existing).free / 2**30
  found = f"{folder}: {free:.0f} GiB free"
  if free < _LOW_SPACE_GIB:
    return Check(name, "warn", found, "free some space")
  return Check(name, "ok", found)


def _check_sentencepiece(name: str) -> Check:
  return Check(name, "ok", importlib.import_module(name).__version__)


def _check_array_record(name: str) -> Check:
  importlib.import_module("array_record.python.array_record_module")
  return Check(name, "ok", importlib.metadata.version(name))


def _check_tensorflow(name: str) -> Check:
  """That TensorFlow cannot take the accelerators from JAX."""
  importlib.import_module("qstar_jax.replay")
  if name not in sys.modules:
    return Check(name, "ok", "not loaded, so it takes no accelerator")
  visible = sys.modules[name].config.get_visible_devices()
  taken = [device.name for device in visible if device.device_type != "CPU"]
  if taken:
    fix = "call tf.config.set_visible_devices([], kind) before its first use"
    return Check(name, "fail", f"sees {', '.join(taken)}", fix)
  return Check(name, "ok", "loaded, sees the CPU alone")


def _check_data(name: str) -> Check:
  value = os.environ.get("QSTAR_DATA_DIR")
  if not value:
    return Check(name, "ok", "QSTAR_DATA_DIR is not set; generated problems do")
  folder = pathlib.Path(value)
  if not folder.is_dir():
    fix = "set QSTAR_DATA_DIR to the folder that holds game24/, or unset it"
    return Check(name, "fail", f"QSTAR_DATA_DIR: no folder {value}", fix)
  found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
  if not found:
    return Check(name, "warn", f"{value} is empty", "put game24/ and others in")
  return Check(name, "ok", f"{value}: {', '.join(found)}")
