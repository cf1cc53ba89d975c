"""Problem files: three formats, rows, and every way a file can be bad."""

import gzip
import json
import os
import re

import pytest

from qstar_jax.domains import make_domain
from qstar_jax.domains.readers import read_problems
from qstar_jax.errors import UserError

GAME = make_domain("game24")
COUNTDOWN = make_domain("countdown")
CSV = "Rank,Puzzles,Solved rate\n1,1 1 4 6,99%\n2,1 1 11 11,98%\n3,1 2 3 4,9%"
JSONL = "\n".join(
  json.dumps({"target": 10 + i, "nums": [i, 10], "hint": []})
  for i in range(1, 6)
)


@pytest.fixture
def write(tmp_path):
  def write(name, content):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path

  return write


def prompts(domain, path, rows=None):
  return [p.prompt.strip() for p in read_problems(domain, path, rows)]


def refused(domain, path, match, rows=None):
  with pytest.raises(UserError, match=re.escape(match)) as info:
    read_problems(domain, path, rows)
  assert "\n" not in str(info.value)


def test_csv(write):
  expected = ["1 1 4 6 -> 24", "1 1 11 11 -> 24", "1 2 3 4 -> 24"]
  assert prompts(GAME, write("a.csv", CSV)) == expected
  assert prompts(GAME, write("b.csv", "\ufeff" + CSV + "\n\n")) == expected
  crlf = CSV.replace("\n", "\r\n")
  assert prompts(GAME, write("c.csv", crlf)) == expected
  packed = gzip.compress(CSV.encode())
  assert prompts(GAME, str(write("d.csv.gz", packed))) == expected


def test_jsonl(write):
  expected = [f"{i} 10 -> {10 + i}" for i in range(1, 6)]
  assert prompts(COUNTDOWN, write("a.jsonl", JSONL)) == expected
  packed = gzip.compress(JSONL.encode())
  assert prompts(COUNTDOWN, write("a.jsonl.gz", packed)) == expected


def test_plain_text(write):
  path = write("a.txt", "\n4 9 10 13\n\n1 2 3 4 -> 24\r\n")
  assert prompts(GAME, path) == ["4 9 10 13 -> 24", "1 2 3 4 -> 24"]
  path = write("problems", "3 + 4 * 2\n")
  assert prompts(make_domain("arithmetic"), path) == ["3 + 4 * 2 -> ?"]


@pytest.mark.parametrize(
  ("rows", "expected"),
  [("0:1", [1]), ("1:3", [2, 3]), ("3:", [4, 5]), (":2", [1, 2]), (":", None)],
)
def test_rows(write, rows, expected):
  path = write("a.jsonl", JSONL)
  expected = expected or [1, 2, 3, 4, 5]
  expected = [f"{i} 10 -> {10 + i}" for i in expected]
  assert prompts(COUNTDOWN, path, rows) == expected


def test_only_selected_rows_are_parsed(write):
  path = write("a.txt", "4 9 10 13\nrubbish\n")
  assert len(read_problems(GAME, path, "0:1")) == 1
  refused(GAME, path, "a.txt, line 2: 'rubbish\\n'"[:-3], rows="1:2")


@pytest.mark.parametrize(
  "rows", ["", "3", "a:b", "-2:", "1:2:3", "0:\u0663", "1 :2", "0:" + "9" * 50]
)
def test_malformed_rows(write, rows):
  refused(GAME, write("a.csv", CSV), "write start:end, such as 900", rows)


@pytest.mark.parametrize("rows", ["1:1", "2:1", "3:4", "0:4", "3:", ":0"])
def test_rows_that_select_nothing_or_too_much(write, rows):
  refused(GAME, write("a.csv", CSV), "has rows 0 to 2; need start", rows)


def test_missing_file_and_folder(tmp_path):
  refused(GAME, tmp_path / "no.csv", "no.csv: cannot be read (No such file")
  refused(GAME, tmp_path, "cannot be read (Is a directory)")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(write):
  path = write("a.csv", CSV)
  path.chmod(0)
  refused(GAME, path, "cannot be read (Permission denied)")


def test_wrong_columns(write):
  path = write("a.csv", "Rank,Hands\n1,1 1 4 6\n")
  refused(GAME, path, "needs a column 'Puzzles' in its first line, which has")
  refused(GAME, path, "'Rank, Hands'")
  refused(GAME, write("b.csv", ""), "needs a column 'Puzzles'")


def test_no_problems(write):
  refused(GAME, write("a.csv", "Rank,Puzzles\n"), "a.csv: has no problems")
  refused(GAME, write("a.txt", " \n\n"), "a.txt: has no problems")
  refused(COUNTDOWN, write("a.jsonl", ""), "a.jsonl: has no problems")


@pytest.mark.parametrize(
  ("row", "reason"),
  [
    ("4,1 2 3", "line 5: '1 2 3' is no game of 24"),
    ("4", "line 5: '' has 0 numbers"),
    ("4,1 2 3 99", "line 5: '1 2 3 99' is no game of 24"),
    ('4,"' + "9" * 200_000 + '"', "line 5: not csv (field larger than"),
  ],
)
def test_bad_csv_row(write, row, reason):
  refused(GAME, write("a.csv", f"{CSV}\n{row}\n"), f"a.csv, {reason}")


@pytest.mark.parametrize(
  ("row", "reason"),
  [
    ("{", "'{' is not JSON"),
    ("[1, 2]", "needs the fields nums and target"),
    ("[" * 100_000, "is not JSON"),
    ('{"nums": [1, 2]}', "needs the fields nums and target"),
    ('{"nums": 3, "target": 3}', "nums is '3': must be a list of integers"),
    ('{"nums": [1, "x"], "target": 3}', "'x' is not an integer"),
    ('{"nums": [1, 2.0], "target": 3}', "'2.0' is not an integer"),
    ('{"nums": [1, true], "target": 3}', "'True' is not an integer"),
    ('{"nums": [1, 2], "target": null}', "'None' is not an integer"),
    ('{"nums": [1, 2], "target": ' + "9" * 5000 + "}", "is not JSON"),
    ('{"nums": [[1, 2]], "target": 3}', "'[1,' is not an integer"),
  ],
)
def test_bad_jsonl_row(write, row, reason):
  path = write("a.jsonl", f"{JSONL}\n{row}\n")
  refused(COUNTDOWN, path, "a.jsonl, line 6: ")
  refused(COUNTDOWN, path, reason)


def test_bad_encodings(write):
  refused(GAME, write("a.csv", b"Rank,Puzzles\n1,\xff"), "not UTF-8 text (byte")
  packed = gzip.compress(CSV.encode())
  match = "not a whole gzip file"
  refused(GAME, write("a.csv.gz", packed[:-12]), match)
  refused(GAME, write("b.csv.gz", packed[:20] + b"xx" + packed[22:]), match)
  refused(GAME, write("c.csv.gz", CSV), match)
  refused(GAME, write("d.csv.gz", b""), "has")
