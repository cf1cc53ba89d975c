"""Files of records, read one at a time; what is refused is counted and named.

Plain or gzipped (`.gz`), by name: `.json` holds objects one after another, or
an array of them, and is read whole; `.parquet` has rows; anything else is JSON
lines.
"""

import collections
import contextlib
import dataclasses
import enum
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, Literal, TypeVar

from etils import epath

from qstar_jax.domains.expressions import quote
from qstar_jax.errors import UserError

T = TypeVar("T")

# A line of a gzip file of a few bytes may be longer than the memory.
_MAX_LINE_BYTES = 1 << 26
_GZIP = b"\x1f\x8b"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_SPACE = re.compile(r"\s*")
_ROWS_AT_ONCE = 1024
_MAX_MESSAGES = 100


class Reason(enum.StrEnum):
  """Why a file, or a record of one, is refused."""

  DIRECTORY = "directory"
  UNREADABLE = "unreadable file"
  EMPTY_FILE = "empty file"
  LFS_POINTER = "Git-LFS pointer"
  NOT_GZIP = "no gzip"
  DAMAGED_GZIP = "damaged gzip"
  NOT_PARQUET = "no parquet"
  NOT_JSON = "no JSON"
  NOT_TEXT = "no text"
  MISSING_FIELD = "missing field"
  WRONG_TYPE = "wrong type"
  EMPTY_TEXT = "empty text"
  BAD_LABEL = "label outside its values"
  BAD_INDEX = "step index outside its steps"
  MISMATCH = "parts that do not fit together"
  NO_ANSWER = "no final answer"


class Refusal(Exception):
  """A file or a record that cannot be used.

  Attributes:
    reason: what is counted.
    detail: the value, the rule it breaks and the fix, one line.
  """

  def __init__(self, reason: Reason, detail: str):
    super().__init__(detail)
    self.reason = reason
    self.detail = detail


@dataclasses.dataclass
class Report:
  """What readers did with the records they met. One may serve several files.

  Attributes:
    on_error: `refuse` raises at the first record that cannot be used; `skip`
      counts it and goes on. What cannot be read to its end is left there.
    num_records: records used.
    refused: how many records (or files) were refused, by reason.
    messages: the first hundred of them: file, record, value, rule and fix.
  """

  on_error: Literal["refuse", "skip"] = "refuse"
  num_records: int = 0
  refused: collections.Counter[Reason] = dataclasses.field(
    default_factory=collections.Counter
  )
  messages: list[str] = dataclasses.field(default_factory=list)

  def refuse(self, place: str, refusal: Refusal) -> None:
    """Counts a refusal.

    Raises:
      UserError: `on_error` is not `skip`.
    """
    message = f"{place}: {refusal.reason}: {refusal.detail}"
    if self.on_error != "skip":
      raise UserError(
        f"{message}; or skip such records with data.on_error skip"
      )
    self.refused[refusal.reason] += 1
    if len(self.messages) < _MAX_MESSAGES:
      self.messages.append(message)

  def __str__(self) -> str:
    counts = [f"{n} {reason}" for reason, n in self.refused.most_common()]
    total = self.refused.total()
    return (
      f"{self.num_records} records read, {total} refused"
      f"{': ' if counts else ''}{', '.join(counts)}"
    )


def read(
  path: epath.PathLike,
  parse: Callable[[Any, str], Iterable[T]],
  report: Report,
) -> Iterator[T]:
  """What `parse` makes of every record of a file, in its order.

  Args:
    path: local or remote (gs://) file.
    parse: from a record (JSON, of whatever type) and where it stands to what is
      yielded; raises Refusal.
    report: counts, and says what happens to what is refused.

  Raises:
    UserError: no such file; or something is refused and `report` says so.
  """
  path = epath.Path(path)
  if not path.exists():
    raise UserError(f"{path}: no such file; name one that exists")
  number = 0
  try:
    for number, entry in _entries(path):
      place = _place(path, number)
      try:
        record = _from_json(entry) if isinstance(entry, bytes) else entry
        parsed = list(parse(record, place))
      except Refusal as refusal:
        report.refuse(place, refusal)
      else:
        report.num_records += 1
        yield from parsed
  except Refusal as refusal:
    report.refuse(_place(path, number + 1), refusal)


def _place(path: epath.Path, number: int) -> str:
  return f"{path}, record {number}"


def _entries(path: epath.Path) -> Iterator[tuple[int, Any]]:
  """Number from 1, and content, of every record: JSON as bytes, or parsed.

  Raises:
    Refusal: the file cannot be read, or cannot be read on.
  """
  if path.is_dir():
    raise Refusal(Reason.DIRECTORY, "name a file inside it")
  is_empty = True
  with _opened(path) as file:
    for number, entry in enumerate(_contents(path, file), 1):
      if not isinstance(entry, bytes) or entry.strip():
        is_empty = False
        yield number, entry
  if is_empty:
    raise Refusal(Reason.EMPTY_FILE, "it has no records; fetch it again")


@contextlib.contextmanager
def _opened(path: epath.Path) -> Iterator[IO[bytes]]:
  """The file, decompressed; Refusal where it fails, now or later."""
  try:
    with path.open("rb") as file:
      head = file.read(len(_LFS_POINTER))
      file.seek(0)
      if head == _LFS_POINTER:
        raise Refusal(
          Reason.LFS_POINTER, "the content is elsewhere; run `git lfs pull`"
        )
      if path.suffix != ".gz" or not head:
        yield file
        return
      if not head.startswith(_GZIP):
        raise Refusal(
          Reason.NOT_GZIP, "the name ends in .gz; rename it or fetch it again"
        )
      with gzip.open(file) as unzipped:
        yield unzipped
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise Refusal(
      Reason.DAMAGED_GZIP, f"{error}; fetch the file again"
    ) from None
  except OSError as error:
    raise Refusal(
      Reason.UNREADABLE, f"{error.strerror or error}; make it readable"
    ) from None


def _contents(path: epath.Path, file: IO[bytes]) -> Iterable[Any]:
  name = path.name.removesuffix(".gz")
  if name.endswith(".parquet"):
    return _parquet_rows(file)
  if name.endswith(".json"):
    return _json_values(file.read())
  return iter(lambda: file.readline(_MAX_LINE_BYTES), b"")


def _parquet_rows(file: IO[bytes]) -> Iterator[dict[str, Any]]:
  # A dependency of tensorflow_datasets, slow to load.
  import pyarrow
  from pyarrow import parquet

  try:
    table = parquet.ParquetFile(file)
    for batch in table.iter_batches(_ROWS_AT_ONCE):
      yield from batch.to_pylist()
  except (pyarrow.ArrowException, UnicodeDecodeError) as error:
    detail = str(error).partition("\n")[0]
    raise Refusal(
      Reason.NOT_PARQUET, f"{detail}; fetch the file again"
    ) from None


def _json_values(content: bytes) -> Iterator[Any]:
  """The elements of an array, or all values that stand there."""
  text = _decoded(content).rstrip()
  start = 0
  while start < len(text):
    start = _SPACE.match(text, start).end()
    with _json_errors(text[start : start + 80]):
      value, start = json.JSONDecoder().raw_decode(text, start)
    yield from value if isinstance(value, list) else (value,)


def _from_json(content: bytes) -> Any:
  text = _decoded(content)
  with _json_errors(text):
    return json.loads(text)


def _decoded(content: bytes) -> str:
  try:
    return content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise Refusal(
      Reason.NOT_TEXT, f"byte {error.start} is not UTF-8; fetch it again"
    ) from None


@contextlib.contextmanager
def _json_errors(text: str) -> Iterator[None]:
  try:
    yield
  except (ValueError, RecursionError) as error:
    raise Refusal(
      Reason.NOT_JSON, f"{quote(text)} ({error}); mend or remove it"
    ) from None
