"""Files that are no good, and every reason to refuse, once."""

import functools
import gzip
import json
import tracemalloc

import pytest

from qstar_jax.data import fields, reading
from qstar_jax.data.reading import Reason, Report
from qstar_jax.errors import UserError

# Without the time: workers name tests by their parameters.
_zip = functools.partial(gzip.compress, mtime=0)

GOOD = [{"n": 0}, {"n": 1}, {"n": 2}]
LINES = "".join(json.dumps(record) + "\n" for record in GOOD).encode()


def _parse(record, origin):
  return [fields.take(record, "n", int)]


def _read(path, on_error="skip"):
  report = Report(on_error)
  return list(reading.read(path, _parse, report)), report


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("a.jsonl", LINES),
    ("a.jsonl.gz", _zip(LINES)),
    ("a.jsonl", b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\n\n \r\n")),
    ("a.jsonl", LINES.rstrip()),
    ("a.json", json.dumps(GOOD, indent=2).encode()),
    ("a.json.gz", _zip(json.dumps(GOOD).encode() + b"\n")),
    ("a.json", LINES),
  ],
)
def test_formats(tmp_path, name, content):
  path = tmp_path / name
  path.write_bytes(content)
  values, report = _read(path, "refuse")
  assert values == [0, 1, 2]
  assert report.num_records == 3
  assert not report.refused


def test_parquet(tmp_path):
  import pyarrow
  from pyarrow import parquet

  path = tmp_path / "a.parquet"
  parquet.write_table(pyarrow.Table.from_pylist(GOOD), path)
  assert _read(path, "refuse")[0] == [0, 1, 2]
  content = path.read_bytes()
  for damaged in (content[:-1], content[:40], b"PAR1" * 9):
    path.write_bytes(damaged)
    values, report = _read(path)
    assert values == []
    assert report.refused == {Reason.NOT_PARQUET: 1}


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
ZIPPED = _zip(LINES * 999)


@pytest.mark.parametrize(
  ("name", "content", "reason", "record"),
  [
    ("a.jsonl", b"", Reason.EMPTY_FILE, 1),
    ("a.jsonl.gz", b"", Reason.EMPTY_FILE, 1),
    ("a.jsonl.gz", _zip(b"\n \n"), Reason.EMPTY_FILE, 1),
    ("a.json", b"[]", Reason.EMPTY_FILE, 1),
    ("a.json", b" \n", Reason.EMPTY_FILE, 1),
    ("a.jsonl", POINTER, Reason.LFS_POINTER, 1),
    ("a.jsonl.gz", POINTER, Reason.LFS_POINTER, 1),
    ("a.parquet", POINTER, Reason.LFS_POINTER, 1),
    ("a.jsonl.gz", LINES, Reason.NOT_GZIP, 1),
    ("a.jsonl.gz", ZIPPED[:-1], Reason.DAMAGED_GZIP, 2998),
    ("a.jsonl.gz", ZIPPED + b"more", Reason.DAMAGED_GZIP, 2998),
    ("a.jsonl", LINES + b"\xff\n", Reason.NOT_TEXT, 4),
    ("a.jsonl", LINES + b"{", Reason.NOT_JSON, 4),
    ("a.jsonl", LINES + b"[" * 99_999, Reason.NOT_JSON, 4),
    ("a.jsonl", LINES + b"9" * 9999, Reason.NOT_JSON, 4),
    ("a.json", LINES + b"{", Reason.NOT_JSON, 4),
    ("a.jsonl", LINES + b"{}", Reason.MISSING_FIELD, 4),
    ("a.jsonl", LINES + b"3", Reason.WRONG_TYPE, 4),
    ("a.jsonl", LINES + b'{"n": true}', Reason.WRONG_TYPE, 4),
    ("a.jsonl", LINES + b'{"n": [' + b"[" * 99 + b"]" * 101, None, 4),
    ("a.jsonl", LINES + b'{"n": {}}', Reason.WRONG_TYPE, 4),
  ],
)
def test_each_is_named_and_counted(tmp_path, name, content, reason, record):
  path = tmp_path / name
  path.write_bytes(content)
  values, report = _read(path)
  if reason is not None:
    assert report.refused == {reason: 1}
  assert report.refused.total() == 1
  assert report.num_records == len(values)
  assert values[:3] == [0, 1, 2][: len(values)]
  assert report.messages[0].startswith(f"{path}, record {record}: ")
  with pytest.raises(UserError) as error:
    _read(path, "refuse")
  assert report.messages[0] in str(error.value)
  assert "\n" not in str(error.value)


def test_truncated_gzip_gives_what_stands_before_the_cut(tmp_path):
  path = tmp_path / "a.jsonl.gz"
  path.write_bytes(ZIPPED[: len(ZIPPED) // 2])
  values, report = _read(path)
  assert 0 < len(values) < 2997
  assert values == ([0, 1, 2] * 999)[: len(values)]
  assert report.refused == {Reason.DAMAGED_GZIP: 1}
  assert f"record {len(values) + 1}: damaged gzip" in report.messages[0]


def test_damage_inside_a_gzip_is_found(tmp_path):
  path = tmp_path / "a.jsonl.gz"
  whole = _zip(b"".join(b'{"n": %d}\n' % n for n in range(999)))
  for place in range(12, len(whole), len(whole) // 9):
    path.write_bytes(
      whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :]
    )
    _, report = _read(path)
    assert Reason.DAMAGED_GZIP in report.refused


def test_directory_and_missing_file(tmp_path):
  _, report = _read(tmp_path)
  assert report.refused == {Reason.DIRECTORY: 1}
  with pytest.raises(UserError, match=r"a\.jsonl: no such file; name one"):
    _read(tmp_path / "a.jsonl")


def test_the_rest_of_a_file_is_read(tmp_path, write):
  path = write([{"n": 0}, {"m": 1}, {"n": "x"}, {"n": 3}, []])
  values, report = _read(path)
  assert values == [0, 3]
  assert report.num_records == 2
  assert report.refused == {Reason.MISSING_FIELD: 1, Reason.WRONG_TYPE: 2}
  assert str(report) == (
    "2 records read, 3 refused: 2 wrong type, 1 missing field"
  )
  assert [message.partition(": ")[0] for message in report.messages] == [
    f"{path}, record {n}" for n in (2, 3, 5)
  ]


def test_one_report_for_several_files(write):
  report = Report("skip")
  for name in ("a.jsonl", "b.jsonl.gz"):
    list(reading.read(write([{"n": 0}, {}], name), _parse, report))
  assert report.num_records == 2
  assert report.refused == {Reason.MISSING_FIELD: 2}


def test_memory_is_flat(tmp_path):
  """A gzip of 20 MB of records takes little."""
  path = tmp_path / "a.jsonl.gz"
  line = json.dumps({"n": 0, "text": "x" * 1000}).encode() + b"\n"
  with gzip.open(path, "wb", compresslevel=1) as file:
    for _ in range(20):
      file.write(line * 1000)
  tracemalloc.start()
  report = Report("skip")
  assert sum(1 for _ in reading.read(path, _parse, report)) == 20_000
  assert tracemalloc.get_traced_memory()[1] < 1e6
  tracemalloc.stop()


def test_messages_are_few_and_counts_are_not(write):
  _, report = _read(write([{}] * 1000))
  assert report.refused == {Reason.MISSING_FIELD: 1000}
  assert len(report.messages) == 100


def test_a_line_longer_than_memory_is_cut(tmp_path, monkeypatch):
  monkeypatch.setattr(reading, "_MAX_LINE_BYTES", 50)
  path = tmp_path / "a.jsonl"
  path.write_bytes(LINES + b'{"n": 3, "text": "' + b"x" * 80 + b'"}\n' + LINES)
  values, report = _read(path)
  assert values == [0, 1, 2] * 2
  assert report.refused == {Reason.NOT_JSON: 2}
