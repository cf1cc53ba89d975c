"""A run on a mesh of data, fsdp and model, and what other meshes make of it."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import yaml

from qstar_jax import checkpoint, configuration
from qstar_jax.cli.main import main
from qstar_jax.config import MeshConfig
from qstar_jax.distributed import rules
from qstar_jax.distributed.mesh import make_mesh

pytest_plugins = ["tests.training.micro_run"]


@pytest.fixture(scope="module")
def run_dir(micro_config, tmp_path_factory):
  """A finished run on eight devices."""
  config = dataclasses.replace(
    micro_config,
    num_iterations=2,
    # A vocabulary of 259 bytes is padded to 260.
    model=dataclasses.replace(
      micro_config.model, num_kv_heads=2, vocabulary_multiple=4
    ),
    mesh=MeshConfig(data=2, fsdp=2, model=2),
  )
  folder = tmp_path_factory.mktemp("mesh")
  path = folder / "config.yaml"
  path.write_text(yaml.safe_dump(configuration.to_json(config)))
  assert main(["train", str(path), "--run-dir", str(folder / "run")]) == 0
  return folder / "run"


@pytest.mark.slow
def test_the_actor_plays_what_the_learner_has_learned(run_dir):
  """Split heads sample with the probabilities that split lines are given."""
  lines = (run_dir / "metrics.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  drifts = [r["logprob_drift"] for r in records if "logprob_drift" in r]
  assert len(drifts) == 2
  assert max(drifts) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("axes", [(1, 1, 1), (2, 2, 1), (1, 1, 2)])
def test_what_played_is_loaded_on_other_meshes(run_dir, axes):
  mesh = make_mesh(MeshConfig(*axes), jax.devices()[: np.prod(axes)])
  whole, split = checkpoint.load(run_dir), checkpoint.load(run_dir, mesh)
  for one, other in zip(
    *(jax.tree.leaves(loaded.params) for loaded in (whole, split)), strict=True
  ):
    assert one.is_fully_replicated
    assert len(other.sharding.device_set) == np.prod(axes)
    np.testing.assert_array_equal(one, other)
  query = split.params["layers"]["query"]["kernel"][...]
  lies = rules.sharding((None, "embed", "heads"), rules.ACTOR, mesh)
  assert query.sharding.is_equivalent_to(lies, 3)
