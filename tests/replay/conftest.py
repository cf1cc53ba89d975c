"""Trees to store, and what it means that two of them are the same."""

import dataclasses

import numpy as np
import pytest

from qstar_jax.records import TreeRecord


def random_tree(
  sequence: int,
  *,
  actor_id: int = 0,
  params_version: int = 0,
  num_nodes: int = 3,
  num_candidates: int = 4,
  max_step_tokens: int = 10,
) -> TreeRecord:
  """A tree that its arguments determine, with noise for content."""
  rng = np.random.default_rng([actor_id, sequence, params_version])
  n, shape = num_nodes, (num_nodes, num_candidates)
  length = rng.integers(1, max_step_tokens, shape, np.int32, endpoint=True)
  return TreeRecord(
    domain="countdown",
    domain_version=1,
    problem_key=f"{sequence} 3 5",
    prompt=f"{sequence} 3 5 -> 8\n",
    actor_id=actor_id,
    sequence=sequence,
    params_version=params_version,
    terminal_value="value",
    temperature=0.7,
    prompt_tokens=rng.integers(0, 600, 7, np.int32),
    node_parent=np.arange(-1, n - 1, dtype=np.int32),
    node_candidate=np.zeros(n, np.int32),
    node_value=rng.random(n, np.float32),
    tokens=rng.integers(0, 600, length.sum(), np.int32),
    length=length,
    count=rng.integers(0, 3, shape, np.int32),
    log_prob=-rng.exponential(9, shape).astype(np.float32),
    proposal_log_prob=-rng.exponential(9, shape).astype(np.float32),
    value=rng.random(shape, np.float32),
    prm=rng.random(shape, np.float32),
    ended=rng.random(shape) < 0.3,
    visits=rng.integers(0, 9, shape, np.int32),
    q=rng.random(shape, np.float32),
    legal=rng.integers(-1, 2, shape, np.int8),
    outcome=rng.integers(-1, 4, shape, np.int8),
    score=rng.random(shape, np.float32),
    committed_node=np.arange(min(n, 3), dtype=np.int32),
    committed_candidate=np.zeros(min(n, 3), np.int32),
    final_outcome=int(rng.integers(0, 4)),
    final_score=float(rng.random()),
  )


def is_same(one: TreeRecord, other: TreeRecord) -> bool:
  """Equal in every type, dtype, shape and bit."""
  for field in dataclasses.fields(TreeRecord):
    left, right = getattr(one, field.name), getattr(other, field.name)
    if type(left) is not type(right):
      return False
    if _content(left) != _content(right):
      return False
  return True


def _content(value):
  if isinstance(value, np.ndarray):
    return value.dtype, value.shape, value.tobytes()
  return repr(value)


@pytest.fixture(scope="session")
def make_tree():
  return random_tree


@pytest.fixture(scope="session")
def same_tree():
  return is_same


@pytest.fixture
def store(tmp_path):
  return tmp_path / "replay"


@pytest.fixture
def fill(store):
  """Appends trees to the store and flushes; returns the actor's folder."""
  # Imported late: a child process loads this file for `random_tree` alone.
  from qstar_jax.replay import ReplayWriter

  def fill_store(num_trees, *, actor_id=0, shard_trees=4, params_version=0):
    with ReplayWriter(store, actor_id, shard_trees=shard_trees) as writer:
      for _ in range(num_trees):
        writer.append(
          random_tree(
            writer.next_sequence,
            actor_id=actor_id,
            params_version=params_version,
          )
        )
      return writer.folder

  return fill_store
