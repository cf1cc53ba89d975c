"""Reads problems from a file that the user names."""

import csv
import gzip
import io
import json
import os
import re
import zlib

from etils import epath

from qstar_jax.domains.expressions import quote
from qstar_jax.errors import UserError
from qstar_jax.records import Domain, Problem

_CSV_COLUMN = "Puzzles"
_ROWS = re.compile(r"([0-9]{0,9}):([0-9]{0,9})")


def find_file(name: str) -> epath.Path:
  """A file that a config names.

  Args:
    name: absolute, or relative to the working directory or to the folder
      QSTAR_DATA_DIR.

  Raises:
    UserError: it is in neither.
  """
  path = epath.Path(name)
  if not path.exists() and (folder := os.environ.get("QSTAR_DATA_DIR")):
    path = epath.Path(folder) / name
  if not path.exists():
    raise UserError(
      f"there is no file {path}; check the path, or set QSTAR_DATA_DIR to the "
      "folder that it is in"
    )
  return path


def read_problems(
  domain: Domain, path: epath.PathLike, rows: str | None = None
) -> list[Problem]:
  """The problems in a file, in its order, duplicates included.

  The name says the format; `.gz` at its end is undone first:

  * `.csv`: a header and a column `Puzzles`, as the Game of 24 list of Tree of
    Thoughts (Yao et al., 2023) has it; one problem a row.
  * `.jsonl`: objects with `nums` (list of integers) and `target` (integer), as
    the Countdown-Tasks-3to4 data has them.
  * anything else: one problem a line, as `domain.parse` reads it.

  Blank lines are skipped and count as no row.

  Args:
    domain: parses the problems.
    path: local or remote (gs://) file.
    rows: `900:1000` keeps rows 900 to 999, counted from 0 without the header;
      either end may be left out. Only these are parsed.

  Raises:
    UserError: no such file or not readable as its format; a bad row, named by
      its line; `rows` malformed, empty or past the end.
  """
  text = _read_text(epath.Path(path))
  name = str(path).removesuffix(".gz")
  entries = _csv_cells(path, text) if name.endswith(".csv") else _lines(text)
  problems = []
  for line, entry in _select(path, entries, rows):
    try:
      if name.endswith(".jsonl"):
        entry = _from_json(entry)
      problems.append(domain.parse(entry))
    except ValueError as error:
      raise UserError(f"{path}, line {line}: {error}") from None
  return problems


# An entry: its line number, counted from 1, and its text.
Entry = tuple[int, str]


def _read_text(path: epath.Path) -> str:
  """The file's text, decompressed; UserError if that cannot be had."""
  try:
    content = path.read_bytes()
    if path.suffix == ".gz":
      content = gzip.decompress(content)
    return content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise UserError(
      f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8"
    ) from None
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise UserError(
      f"{path}: not a whole gzip file ({error}); fetch it again"
    ) from None
  except OSError as error:
    raise UserError(
      f"{path}: cannot be read ({error.strerror or error}); name a readable "
      "file"
    ) from None


def _lines(text: str) -> list[Entry]:
  """The lines that are not blank."""
  lines = text.split("\n")
  return [(n, line) for n, line in enumerate(lines, 1) if line.strip()]


def _csv_cells(path: epath.PathLike, text: str) -> list[Entry]:
  """The cells of the column with the problems."""
  reader = csv.DictReader(io.StringIO(text, newline=""))
  try:
    columns = reader.fieldnames or []
    if _CSV_COLUMN not in columns:
      raise UserError(
        f"{path}: needs a column {_CSV_COLUMN!r} in its first line, which has "
        f"{quote(', '.join(columns))}"
      )
    return [(reader.line_num, row[_CSV_COLUMN] or "") for row in reader]
  except csv.Error as error:
    raise UserError(
      f"{path}, line {reader.line_num + 1}: not csv ({error})"
    ) from None


def _from_json(line: str) -> str:
  """The problem of one line of jsonl as a domain writes it."""
  try:
    row = json.loads(line)
  except (ValueError, RecursionError):
    raise UserError(f"{quote(line)} is not JSON") from None
  if not isinstance(row, dict) or not {"nums", "target"} <= row.keys():
    raise UserError(f"{quote(line)} needs the fields nums and target")
  numbers = row["nums"]
  if not isinstance(numbers, list):
    raise UserError(
      f"nums is {quote(str(numbers))}: must be a list of integers"
    )
  return f"{' '.join(map(str, numbers))} -> {row['target']}"


def _select(
  path: epath.PathLike, entries: list[Entry], rows: str | None
) -> list[Entry]:
  """The entries that `rows` names; UserError if there are none."""
  if not entries:
    raise UserError(f"{path}: has no problems")
  if rows is None:
    return entries
  match = _ROWS.fullmatch(rows)
  if not match:
    raise UserError(f"rows {rows!r}: write start:end, such as 900:1000")
  start = int(match[1] or 0)
  end = int(match[2] or len(entries))
  if not start < end <= len(entries):
    raise UserError(
      f"rows {rows!r}: {path} has rows 0 to {len(entries) - 1}; need start < "
      f"end <= {len(entries)}"
    )
  return entries[start:end]
