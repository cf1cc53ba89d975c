"""What every command sets before JAX starts."""

import ctypes
import logging
import os
import pathlib
import re
import sys
import warnings

import qstar_jax
from qstar_jax import configuration
from qstar_jax.config import ExperimentConfig
from qstar_jax.distributed import start
from qstar_jax.errors import UserError

# A program that compiles faster than this is not worth a file.
_MIN_COMPILE_SECONDS = 0.2

# How JAX warns of a cache entry that it cannot read, by its program's name.
_UNREADABLE_ENTRY = re.compile(
  r"Error reading persistent compilation cache entry for '(\w+)'"
)

# Of glibc's mallopt(3). A thread's heap has 64 MB and is given back as soon as
# it is empty, unless heaps are to grow by that much.
_MALLOC_OPTIONS = {
  -1: 2**31 - 1,  # M_TRIM_THRESHOLD, the most: what a heap may keep free.
  -2: 64 << 20,  # M_TOP_PAD: by how much a heap grows.
  -3: 32 << 20,  # M_MMAP_THRESHOLD, the most: what is mapped apart from heaps.
}


def cache_dir() -> pathlib.Path:
  """Per-user cache: $QSTAR_CACHE_DIR, else qstar_jax/ in the XDG cache."""
  if path := os.environ.get("QSTAR_CACHE_DIR"):
    return pathlib.Path(path).expanduser()
  base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(base).expanduser() / "qstar_jax"


def keep_freed_memory() -> None:
  """Has glibc reuse freed memory rather than give it back to the system.

  A CPU program takes its temporaries from malloc at every run. Pages that come
  fresh from the system each cost a fault, up to a third of a gradient step.
  """
  try:
    mallopt = ctypes.CDLL("libc.so.6").mallopt
  except (OSError, AttributeError):
    return  # Another C library.
  for option, value in _MALLOC_OPTIONS.items():
    mallopt(option, value)


def start_runtime(config: ExperimentConfig | None = None) -> None:
  """Sets malloc, logging, virtual CPU devices and the compilation cache.

  To be called before anything computes: JAX fixes its devices at the first use.
  JAX's own environment variables (JAX_NUM_CPU_DEVICES,
  JAX_COMPILATION_CACHE_DIR, ...) win over what is set here.

  Args:
    config: gives the number of virtual devices, used where the platform is CPU;
      None leaves JAX's default of one.
  """
  keep_freed_memory()
  _silence_late_reads()
  # JAX's and TensorFlow's C++ libraries read this when they are loaded.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  logging.getLogger("absl").setLevel(logging.WARNING)

  import jax  # Not above: the variable must be set first.

  settings = {
    "jax_persistent_cache_min_compile_time_secs": _MIN_COMPILE_SECONDS
  }
  if (directory := _writable_cache()) is not None:
    settings["jax_compilation_cache_dir"] = str(directory)
  if config is not None:
    settings["jax_num_cpu_devices"] = config.mesh.cpu_devices
  for name, value in settings.items():
    if name.upper() not in os.environ:
      jax.config.update(name, value)
  if jax.config.jax_compilation_cache_dir:
    _drop_cut_entries(pathlib.Path(jax.config.jax_compilation_cache_dir))


def meet_other_hosts(config: ExperimentConfig, facts: dict[str, str]) -> None:
  """Starts JAX together with the program's processes on other hosts.

  Does nothing where the environment says that there are none, see
  `start.find_place`. To be called after `start_runtime`, before anything
  computes.

  Args:
    config: all must have the same.
    facts: likewise.

  Raises:
    UserError: they do not come, or do not agree.
  """
  place = start.find_place(os.environ)
  if place is None:
    return
  if config.run_mode == "split":
    raise UserError(
      f"run_mode is split: runs on one host, and here are {place.num_processes}"
      "; use alternate or files"
    )
  import jax  # Not above: it has to be set up first.

  versions = {"qstar_jax": qstar_jax.__version__, "jax": jax.__version__}
  start.meet(
    place,
    {**facts, "config": configuration.to_json(config), "versions": versions},
    timeout=config.mesh.start_timeout_seconds,
    say=lambda words: print(words, file=sys.stderr, flush=True),
  )
  start.start(place, timeout=config.mesh.start_timeout_seconds)


def _silence_late_reads() -> None:
  """Has TensorStore not tell, read by read, what Orbax has given up.

  Where one array of a checkpoint cannot be read or written, Orbax gives up the
  others and closes their event loop. Each then has a traceback of its own, and
  they bury the message of the one that failed.
  """
  show = sys.unraisablehook

  def drop_or_show(unraisable):
    is_late = unraisable.object is None and isinstance(
      unraisable.exc_value, RuntimeError
    )
    if not (is_late and str(unraisable.exc_value) == "Event loop is closed"):
      show(unraisable)

  sys.unraisablehook = drop_or_show


def _drop_cut_entries(cache: pathlib.Path) -> None:
  """Has entries that a killed program left cut made anew.

  JAX writes an entry in place, warns at every later read of a cut one, compiles
  the program again, and keeps the cut entry. Its warning is the one sign of it.
  It is shown where nothing can be dropped: in a bucket, or in a folder of
  somebody else.
  """
  show = warnings.showwarning

  def drop_or_show(message, *args, **kwargs):
    unreadable = _UNREADABLE_ENTRY.match(str(message))
    entries = list(cache.glob(f"{unreadable[1]}-*")) if unreadable else []
    try:
      for entry in entries:
        entry.unlink(missing_ok=True)
    except OSError:
      entries = []
    if not entries:
      show(message, *args, **kwargs)

  warnings.showwarning = drop_or_show


def _writable_cache() -> pathlib.Path | None:
  """Folder for compiled programs; None where a home cannot be written."""
  directory = cache_dir() / "xla"
  try:
    directory.mkdir(parents=True, exist_ok=True)
  except OSError:
    return None
  return directory
