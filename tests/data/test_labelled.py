"""Datasets of labelled lines by one name."""

import pytest

from qstar_jax.data import labelled
from qstar_jax.data.reading import Report
from qstar_jax.errors import UserError
from qstar_jax.labels.codec import LINES
from qstar_jax.store.writer import StoreWriter
from tests.labels.conftest import is_same, line_of

_SHEPHERD = {
  "input": "What is 1 + 1? Step 1: It is 2. \u043a\u0438\nStep 2: So 3. "
  "\u043a\u0438",
  "label": "What is 1 + 1? Step 1: It is 2. +\nStep 2: So 3. -",
  "task": "t",
}


def test_what_is_an_outside_file():
  for source in ("prm800k:a/b.jsonl", "prm800k:gs://bucket/file", "nope:x"):
    assert labelled.is_outside(source)
  for source in ("labels/checked", "gs://bucket/labels", "./a:b"):
    assert not labelled.is_outside(source)


def test_a_file_here_or_in_the_data_folder(write, tmp_path, monkeypatch):
  path = write([_SHEPHERD], "shepherd.jsonl")
  report = Report()
  (line,) = labelled.read(f"math_shepherd:{path}", report)
  assert line.label.tolist() == [1, 0]
  assert report.num_records == 1
  monkeypatch.delenv("QSTAR_DATA_DIR", raising=False)
  with pytest.raises(UserError, match=r"no file shepherd\.jsonl; check"):
    labelled.read("math_shepherd:shepherd.jsonl", report)
  monkeypatch.setenv("QSTAR_DATA_DIR", str(tmp_path))
  (again,) = labelled.read("math_shepherd:shepherd.jsonl", report)
  assert is_same(line, again)


def test_a_directory(tmp_path):
  lines = [line_of(i) for i in range(5)]
  with StoreWriter(tmp_path / "labels", LINES, shard_records=2) as writer:
    writer.extend(lines)
  found = list(labelled.read(str(tmp_path / "labels"), Report()))
  assert all(map(is_same, found, lines)) and len(found) == 5


def test_an_unknown_format_lists_the_known_ones():
  with pytest.raises(UserError, match=r"no format 'prm'; known.* prm800k, m"):
    labelled.read("prm:file", Report())
