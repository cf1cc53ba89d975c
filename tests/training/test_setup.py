"""What a run begins with, on any mesh."""

import dataclasses

import jax
import numpy as np
import pytest
from etils import epath

from qstar_jax.config import MeshConfig
from qstar_jax.distributed import rules
from qstar_jax.distributed.mesh import make_mesh
from qstar_jax.model import partitioning
from qstar_jax.training import setup

pytest_plugins = ["tests.training.micro_run"]


@pytest.fixture
def config(micro_config):
  model = dataclasses.replace(
    micro_config.model, num_kv_heads=2, vocabulary_multiple=4
  )
  return dataclasses.replace(micro_config, model=model, seed=2**32 - 1)


def test_random_parameters_lie_as_the_learner_has_them(config, tmp_path):
  """On eight devices the numbers of one, bit for bit."""
  one, eight = (
    setup.begin(config, epath.Path(tmp_path), mesh, lambda: None)
    for mesh in (
      make_mesh(MeshConfig(), jax.devices()[:1]),
      make_mesh(MeshConfig(data=2, fsdp=2, model=2)),
    )
  )
  assert one[0].vocabulary.size % 2 == 1
  lies = partitioning.shardings(eight[1], rules.LEARNER, eight[0].mesh)
  for x, y, sharding in zip(
    *map(jax.tree.leaves, (one[1], eight[1], lies)), strict=True
  ):
    assert y.sharding == sharding
    np.testing.assert_array_equal(x, y)
