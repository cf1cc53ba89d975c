"""Gradients of a fixed batch, as one of several processes; one saves them.

usage: python gradients_program.py OUT.npz, with the variables of
`qstar_jax.distributed.start`.
"""

import os
import sys

import jax
import numpy as np

from qstar_jax.config import MeshConfig, ModelConfig
from qstar_jax.distributed import hosts, rules, start
from qstar_jax.distributed.mesh import make_mesh
from qstar_jax.learner import train_step
from qstar_jax.model import partitioning
from tests.learner import test_train_step as given

_MODEL = ModelConfig(
  num_layers=2, model_dim=16, num_heads=2, num_kv_heads=1, head_dim=8
)


def main(path):
  if place := start.find_place(os.environ):
    start.start(place, timeout=60)
  # Every parameter is split over the processes, and so are the lines.
  mesh = make_mesh(MeshConfig(data=1, fsdp=-1))
  graphdef, params = partitioning.init_params(
    _MODEL, given._VOCABULARY_SIZE, 0, rules.LEARNER, mesh
  )
  optimizer = train_step.make_optimizer(given._CONFIG, total_steps=1)
  state = train_step.init_state(params, optimizer, given._CONFIG, mesh)
  batches = train_step.put_batches([given._batch()], mesh)

  def gradients(state, batches):
    batch = jax.tree.map(lambda x: x[0], batches)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      grads, _ = jax.grad(train_step.loss_fn, has_aux=True)(
        state.params, state, graphdef, batch, given._CONFIG
      )
    return grads

  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  grads = jax.jit(gradients, out_shardings=everywhere)(state, batches)
  if hosts.is_first():
    leaves = jax.tree.leaves_with_path(grads)
    np.savez(path, **{jax.tree_util.keystr(k): v for k, v in leaves})


if __name__ == "__main__":
  main(sys.argv[1])
