"""What others need to read our trees: tensorflow_datasets, and nothing else."""

import json
import subprocess
import sys

import numpy as np
import pytest

from qstar_jax.replay import codec

_READ = """
import importlib.machinery, json, sys

class Blocked:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in ("qstar_jax", "tensorflow", "jax"):
      return importlib.machinery.ModuleSpec(name, self)

  def create_module(self, spec):
    raise ImportError(spec.name + " is blocked")

  def exec_module(self, module):
    pass

sys.meta_path.insert(0, Blocked())
import numpy as np
import tensorflow_datasets as tfds

if len(sys.argv) == 2:
  builder = tfds.builder_from_directory(sys.argv[1])
else:
  builder = tfds.builder_from_directories(sys.argv[1:])
source = builder.as_data_source("train")
for index in range(len(source)):
  fields = {}
  for name, value in source[index].items():
    if isinstance(value, np.ndarray):
      value = [value.dtype.name, list(value.shape), value.tobytes().hex()]
    elif isinstance(value, bytes):
      value = value.decode()
    fields[name] = value
  print(json.dumps(fields))
"""


def _read(*folders):
  output = subprocess.run(
    [sys.executable, "-c", _READ, *folders],
    check=True,
    capture_output=True,
    text=True,
    cwd="/",
  ).stdout
  return [json.loads(line) for line in output.splitlines()]


def _array(value):
  dtype, shape, content = value
  return np.frombuffer(bytes.fromhex(content), dtype).reshape(shape)


@pytest.fixture
def assert_fields(make_tree):
  def check(fields):
    record = make_tree(fields["sequence"], actor_id=fields["actor_id"])
    for name in (*codec.TEXTS, *codec.INTEGERS):
      assert fields[name] == getattr(record, name)
    for name in codec.DOUBLES:
      assert _array(fields[name]) == getattr(record, name)
    for name in codec.VECTORS | codec.MATRICES:
      array = _array(fields[name])
      assert array.dtype == getattr(record, name).dtype
      if name in codec.MATRICES:
        array = array.reshape(-1, fields["num_candidates"])
      np.testing.assert_array_equal(array, getattr(record, name))

  return check


def test_one_actor(fill, assert_fields):
  read = _read(fill(9))
  assert [fields["sequence"] for fields in read] == list(range(9))
  for fields in read:
    assert_fields(fields)


def test_several_actors(fill, assert_fields):
  read = _read(fill(5, actor_id=0), fill(3, actor_id=1))
  assert len(read) == 8
  for fields in read:
    assert_fields(fields)
