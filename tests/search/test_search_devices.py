"""Trees split over eight devices are those of one: every choice is the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from qstar_jax.config import MeshConfig, SearchConfig
from qstar_jax.distributed.mesh import make_mesh
from qstar_jax.distributed.rules import BATCH_AXES
from qstar_jax.search import driver, testing
from qstar_jax.search.driver import SearchState
from qstar_jax.search.tree import NONE

A, MAX_STEPS, NUM_TREES, NUM_DEVICES = 3, 4, 16, 8
CONFIG = SearchConfig(num_candidates=A, num_simulations=8, leaves_per_round=2)
TREES = P(BATCH_AXES)
STATE_SPEC = SearchState(
  tree=TREES,
  store=testing.HashStore(TREES, P(None, BATCH_AXES)),
  round=TREES,
  rng_key=TREES,
)
# XLA orders the arithmetic of two trees and of sixteen in different ways.
ROUNDED = {"value_sum"}


def play_on(num_devices, state):
  """The finished trees, from a mesh of so many devices."""
  mesh = make_mesh(MeshConfig(), jax.devices()[:num_devices])
  play = functools.partial(
    driver.play,
    None,
    expand_fn=testing.make_hash_expand_fn(A, end_probability=0.2),
    config=CONFIG,
    max_steps=MAX_STEPS,
  )
  mapped = jax.shard_map(
    play,
    mesh=mesh,
    in_specs=(STATE_SPEC,),
    out_specs=STATE_SPEC,
    check_vma=False,
  )
  tree = jax.jit(mapped)(state).tree
  assert len(tree.visits.sharding.device_set) == num_devices
  return jax.device_get(tree)


def test_eight_devices_make_the_trees_of_one():
  assert jax.device_count() == NUM_DEVICES
  roots = jnp.arange(100, 100 + NUM_TREES, dtype=jnp.uint32)
  start = jax.jit(testing.new_state, static_argnums=(1, 2))
  state = start(roots, CONFIG, MAX_STEPS)
  one, eight = play_on(1, state), play_on(NUM_DEVICES, state)
  is_node = one.depth != NONE
  np.testing.assert_array_equal(is_node, eight.depth != NONE)
  # Some trees end before others: the devices run apart.
  assert len(set(is_node.sum(axis=1))) > 1
  for name in one:
    left, right = one[name], eight[name]
    if left.shape[:2] == is_node.shape:
      left, right = left[is_node], right[is_node]
    if name in ROUNDED:
      np.testing.assert_allclose(left, right, atol=1e-5, err_msg=name)
    else:
      np.testing.assert_array_equal(left, right, err_msg=name)
