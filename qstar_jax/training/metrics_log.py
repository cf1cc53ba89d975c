"""metrics.jsonl: every number a run reports, one JSON object per line."""

import errno
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from qstar_jax.errors import UserError
from qstar_jax.store import files

FILE_NAME = "metrics.jsonl"

Record = dict[str, Any]

# No number of a run is so large; NaN and infinity fail the comparison too.
_HUGE = 1e100

_Check = Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
  is_real = _is_whole(value) or isinstance(value, float)
  return is_real and -_HUGE < value < _HUGE


def _is_text(value: Any) -> bool:
  return isinstance(value, str)


def _is_number_or_null(value: Any) -> bool:
  return value is None or _is_number(value)


def _is_interval(value: Any) -> bool:
  is_pair = isinstance(value, list) and len(value) == 2
  return is_pair and all(map(_is_number_or_null, value))


# What readers rely on, of every record and of those of some kinds.
_COMMON: Mapping[str, _Check] = {
  "kind": _is_text,
  "step": _is_whole,
  "time": _is_number,
  "minutes": _is_number,
}
_OF_KIND: Mapping[str, Mapping[str, _Check]] = {
  "iteration": {"iteration": _is_whole},
  "evaluation": {
    "phase": _is_text,
    "searcher": _is_text,
    "top1": _is_number_or_null,
    "ci95": _is_interval,
  },
  "step_evaluation": {
    "phase": _is_text,
    "steps": _is_whole,
    **{
      name: check
      for figure in ("auroc", "brier", "ece")
      for name, check in (
        (figure, _is_number_or_null),
        (f"{figure}_ci95", _is_interval),
      )
    },
  },
  "ladder": {
    "budget": _is_whole,
    "top1": _is_number_or_null,
    "ci95": _is_interval,
  },
  "trial": {
    "decision": _is_text,
    "wins": _is_whole,
    "losses": _is_whole,
    "ties": _is_whole,
    "rating": _is_number,
  },
  "warning": {"message": _is_text},
}


def _fault(record: Any) -> str:
  """What a record lacks, in words; empty if nothing."""
  if not isinstance(record, dict):
    return "it is not a JSON object"
  kind = record.get("kind")
  of_kind = _OF_KIND.get(kind, {}) if isinstance(kind, str) else {}
  for name, check in (_COMMON | of_kind).items():
    if name not in record:
      return f"it has no {name!r}"
    if not check(record[name]):
      return f"its {name!r} is {record[name]!r:.40}"
  return ""


def number(record: Record, name: str) -> float | None:
  """A number of a record; None if it was not finite, or is not there."""
  value = record.get(name)
  return value if _is_number(value) else None


def append_whole(path: epath.Path, piece: bytes) -> None:
  """Appends to a file, all of `piece` or nothing.

  In a bucket, where objects cannot grow, the file is written anew.

  Raises:
    UserError: the file could not be written; it is as it was.
  """
  if not files.is_local(path):
    content = files.read_bytes(path) if files.exists(path) else b""
    with files.explain_failed_write(path.parent, len(content) + len(piece)):
      files.attempt(path, lambda: path.write_bytes(content + piece))
    return
  with (
    files.explain_failed_write(path.parent, len(piece)),
    # One unbuffered write: a kill leaves the whole piece or, rarely, a part.
    open(path, "ab", buffering=0) as file,
  ):
    size = file.tell()
    try:
      if file.write(piece) < len(piece):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
      file.truncate(size)
      raise


def read_metrics(run_dir: epath.PathLike) -> list[Record]:
  """The records of a run, oldest first; none if there is no file.

  A last line without its newline was cut while it was written: it is left out.

  Raises:
    UserError: a line is no record; names the file and the line.
  """
  path = epath.Path(run_dir) / FILE_NAME
  if not files.exists(path):
    return []
  *lines, _ = files.read_bytes(path).split(b"\n")
  return [_parse(line, path, number) for number, line in enumerate(lines, 1)]


def _parse(line: bytes, path: epath.Path, number: int) -> Record:
  try:
    record = json.loads(line)
    fault = _fault(record)
  except (ValueError, RecursionError):
    fault = "it is not JSON"
  if fault:
    raise UserError(
      f"{path}, line {number} is no record of a run ({fault}): remove the line,"
      " or restore the file from a copy"
    )
  return record


def _as_json(value: Any) -> tuple[Any, bool]:
  """The value as JSON has it, and whether it is finite."""
  if isinstance(value, list | tuple):
    parts = [_as_json(part) for part in value]
    return [part for part, _ in parts], all(finite for _, finite in parts)
  if hasattr(value, "item"):  # A scalar of numpy or JAX.
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return None, False
  return value, True


class MetricsLog:
  """Appends to a run's metrics.jsonl, over any number of resumes."""

  def __init__(self, run_dir: epath.PathLike):
    """Opens the file, which need not exist; drops a line cut by a kill.

    Raises:
      UserError: the file holds a line that is no record.
    """
    self._path = epath.Path(run_dir) / FILE_NAME
    self.records = read_metrics(run_dir)
    is_there = files.exists(self._path)
    if is_there and not files.read_bytes(self._path).endswith(b"\n"):
      self._rewrite()
    earlier = self.records[-1]["minutes"] if self.records else 0.0
    self._start = time.monotonic() - 60 * earlier

  def minutes(self) -> float:
    """Minutes since the run began, not counting those when it did not run."""
    return (time.monotonic() - self._start) / 60

  def append(self, record: Mapping[str, Any]) -> Record:
    """Writes one line, at once.

    Args:
      record: numbers, also of numpy or JAX, texts, and lists of them. Needs
        `kind` and `step`, and what readers want of its kind.

    Returns:
      The record as written: with `time` (Unix, seconds) and `minutes`, and null
      for numbers that are not finite, whose names are listed in `non_finite`.

    Raises:
      UserError: the file could not be written; no part of the line is in it.
      ValueError: the record lacks something.
    """
    values = {name: _as_json(value) for name, value in record.items()}
    written = {name: value for name, (value, _) in values.items()}
    written |= {"time": time.time(), "minutes": self.minutes()}
    bad = [name for name, (_, is_finite) in values.items() if not is_finite]
    if bad:
      written["non_finite"] = bad
    if fault := _fault(written):
      raise ValueError(f"record {written} cannot be logged: {fault}")
    append_whole(self._path, _to_line(written))
    self.records.append(written)
    return written

  def truncate(self, step: int) -> None:
    """Drops, atomically, the records of steps later than `step`."""
    kept = [record for record in self.records if record["step"] <= step]
    if len(kept) < len(self.records):
      self.records = kept
      self._rewrite()

  def _rewrite(self) -> None:
    content = b"".join(map(_to_line, self.records))
    files.publish_text(self._path, content.decode())


def _to_line(record: Record) -> bytes:
  return json.dumps(record, allow_nan=False).encode() + b"\n"
