"""What others need to read our trees: tensorflow_datasets, and nothing else."""

import numpy as np
import pytest

from qstar_jax.replay import codec

pytest_plugins = ["tests.store.tfds_process"]


@pytest.fixture
def assert_fields(make_tree, as_array):
  def check(fields):
    record = make_tree(fields["sequence"], actor_id=fields["actor_id"])
    for name in (*codec.TEXTS, *codec.INTEGERS):
      assert fields[name] == getattr(record, name)
    for name in codec.DOUBLES:
      assert as_array(fields[name]) == getattr(record, name)
    for name in codec.VECTORS | codec.MATRICES:
      array = as_array(fields[name])
      assert array.dtype == getattr(record, name).dtype
      if name in codec.MATRICES:
        array = array.reshape(-1, fields["num_candidates"])
      np.testing.assert_array_equal(array, getattr(record, name))

  return check


def test_one_actor(fill, read_with_tfds, assert_fields):
  read = read_with_tfds(fill(9))
  assert [fields["sequence"] for fields in read] == list(range(9))
  for fields in read:
    assert_fields(fields)


def test_several_actors(fill, read_with_tfds, assert_fields):
  read = read_with_tfds(fill(5, actor_id=0), fill(3, actor_id=1))
  assert len(read) == 8
  for fields in read:
    assert_fields(fields)
