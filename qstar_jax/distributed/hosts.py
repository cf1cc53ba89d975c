"""Several hosts that run one program.

All processes run the same Python code on the same numbers, and so take the same
decisions. What differs from host to host, its own devices, clock, signals and
files, is looked at *in its own time*, inside `together` or `on_first`, and
becomes known to all before it decides anything.
"""

import contextlib
import functools
import hashlib
import json
import pickle
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qstar_jax.errors import LostHostError

T = TypeVar("T")

# Bytes that cross at once: one compiled program for few, one for many. Those of
# all hosts are on a device of each then.
_CHUNKS = 1 << 12, 1 << 20

# How JAX's runtime says that another process does not answer any more.
_LOST = re.compile(
  "UNAVAILABLE|DEADLINE_EXCEEDED|heartbeat|Gloo|Connection (closed|reset)"
)

_own_time = threading.local()


def count() -> int:
  """Processes of the program."""
  return jax.process_count()


def index() -> int:
  """Of this process."""
  return jax.process_index()


def is_first() -> bool:
  """Whether this process is the one that speaks and writes for all."""
  return index() == 0


def exchange(value: Any) -> list[Any]:
  """What every process has, in their order. All must call it.

  Args:
    value: can be pickled; it goes to processes of the same program alone.
  """
  if count() == 1:
    return [value]
  data = np.frombuffer(pickle.dumps(value), np.uint8)
  sizes = np.asarray(_gather(np.array([data.size], np.uint32)))[:, 0]
  chunk = _CHUNKS[int(sizes.max()) > _CHUNKS[0]]
  parts = []
  for start in range(0, int(sizes.max()), chunk):
    part = np.zeros(chunk, np.uint8)
    own = data[start : start + chunk]
    part[: own.size] = own
    parts.append(np.asarray(_gather(part)))
  rows = np.concatenate(parts, axis=1)
  return [
    pickle.loads(row[:size].tobytes())
    for row, size in zip(rows, sizes, strict=True)
  ]


def _gather(row: np.ndarray) -> jax.Array:
  """Rows of all processes, stacked in their order, once they are there."""
  by_host, gather = _gather_program()
  shape = count(), *row.shape
  return gather(
    jax.make_array_from_callback(shape, by_host, lambda _: row[None])
  )


@functools.cache
def _gather_program() -> tuple[NamedSharding, Callable]:
  """One device of each process will do."""
  devices = {}
  for device in jax.devices():
    devices.setdefault(device.process_index, device)
  mesh = Mesh(np.array([devices[i] for i in range(count())]), ("hosts",))
  everywhere = NamedSharding(mesh, P())
  return NamedSharding(mesh, P("hosts")), jax.jit(
    lambda rows: rows, out_shardings=everywhere
  )


def together(work: Callable[[], T]) -> list[T]:
  """Does something on every process, each in its own time. All must call it.

  Args:
    work: waits for no other process. What it returns or raises is pickled.

  Returns:
    What came of it, by process.

  Raises:
    Exception: that of the first process on which it failed, on all of them.
  """
  if count() == 1:
    return [work()]
  try:
    with _in_own_time():
      outcome = work(), None
  except Exception as error:
    outcome = None, _portable(error)
  outcomes = exchange(outcome)
  for _, error in outcomes:
    if error is not None:
      raise error
  return [value for value, _ in outcomes]


def _portable(error: Exception) -> Exception:
  """The error, or what it says if it cannot be pickled."""
  try:
    pickle.loads(pickle.dumps(error))
  except Exception:
    return RuntimeError(f"{type(error).__name__}: {error}")
  return error


def on_first(work: Callable[[], T]) -> T:
  """Does something on the first process; all get what came of it."""
  return together(lambda: work() if is_first() else None)[0]


def check_alike(what: str, make: Callable[[], Any]) -> None:
  """Finds out processes that have gone different ways. All must call it.

  Args:
    what: is compared, in words.
    make: gives the same on all of them, JSON-able; not called where there is
      one process alone.

  Raises:
    RuntimeError: it is not; nothing that they do from here on has a meaning.
  """
  if count() == 1:
    return
  text = json.dumps(make(), sort_keys=True).encode()
  digests = exchange(hashlib.sha256(text).hexdigest())
  others = [i for i, digest in enumerate(digests) if digest != digests[0]]
  if others:
    raise RuntimeError(
      f"{what} of process {others[0]} is not that of process 0, and they ran "
      "the same program on the same numbers: some code looked at what differs "
      "from host to host, see docs/design/distributed.md"
    )


@contextlib.contextmanager
def _in_own_time() -> Iterator[None]:
  _own_time.depth = getattr(_own_time, "depth", 0) + 1
  try:
    yield
  finally:
    _own_time.depth -= 1


def raise_if_lost(error: BaseException) -> None:
  """Raises `LostHostError` if it is why something else could not be done.

  Args:
    error: of JAX, Orbax or any other who waited for other processes, and may
      have wrapped what it got in an error of its own.
  """
  cause = error
  while cause is not None and count() > 1:
    if _LOST.search(str(cause)):
      raise LostHostError(
        f"process {index()} has lost another process of the program; see the "
        "logs of the others, and start all of them again: what is saved is "
        "whole"
      ) from error
    cause = cause.__cause__ or cause.__context__


class AnyHost:
  """Whether any process has said yes: what all of them can act on.

  In its own time a process answers for itself. Elsewhere all must ask alike,
  and yes is heard one question late: nobody waits for it.
  """

  def __init__(self):
    self._before: jax.Array | None = None

  def __call__(self, own: bool) -> bool:
    """Says something for this process; whether any has said yes."""
    if count() == 1 or getattr(_own_time, "depth", 0):
      return own
    before = self._before
    self._before = _gather(np.array([own]))
    return before is not None and bool(np.asarray(before).any())
