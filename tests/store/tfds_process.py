"""A pytest plugin: stores read by tensorflow_datasets and nothing else."""

import json
import subprocess
import sys

import numpy as np
import pytest

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
    if isinstance(value, np.ndarray) and value.dtype == object:
      value = [text.decode() for text in value]
    elif isinstance(value, np.ndarray):
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


@pytest.fixture(scope="session")
def read_with_tfds():
  """The records of folders, each a dict of fields, as a process reads them that
  cannot import qstar_jax, TensorFlow or JAX."""
  return _read


@pytest.fixture(scope="session")
def as_array():
  """The array of a field that has one."""
  return _array
