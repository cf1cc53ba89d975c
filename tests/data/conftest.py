"""Small files, and the samples of every reader."""

import gzip
import json

import pytest


@pytest.fixture
def write(tmp_path):
  """Writes records as JSON lines (gzipped if the name says so)."""

  def write_file(records, name="file.jsonl"):
    text = "".join(json.dumps(record) + "\n" for record in records)
    path = tmp_path / name
    is_gzip = name.endswith(".gz")
    path.write_bytes(gzip.compress(text.encode()) if is_gzip else text.encode())
    return path

  return write_file
