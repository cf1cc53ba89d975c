"""Memory of a run on one device of a topology, and what to change of it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from qstar_jax.distributed.chips import GIB, Topology
from qstar_jax.search import searchers
from tools.aot_programs import Compiled, Run

# Parts of a run's memory.
LEARNER = "parameters (learner)"
OPTIMIZER = "optimizer"
PLAYER = "parameters (player)"
SELF_PLAY = "trees and step cache (self-play)"
EVALUATION = "trees and step cache (evaluation)"


class Memory(NamedTuple):
  """Bytes on one device.

  Attributes:
    parts: by what they are for; they are there at once.
    largest: the program that needs most beside them.
    limit: that programs may use.
  """

  parts: Mapping[str, float]
  largest: str
  limit: float

  @property
  def total(self) -> float:
    """Of all parts."""
    return sum(self.parts.values())

  @property
  def shortfall(self) -> float:
    """Bytes over the limit; 0 if the run fits."""
    return max(0.0, self.total - self.limit)


def shard_bytes(tree: Any) -> float:
  """Of arrays, or their shapes, on one device."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def memory_of(
  run: Run, compiled: Sequence[Compiled], topology: Topology
) -> Memory:
  """All that a run keeps on a device, and the most that a program adds."""
  state = run.learner_state
  evaluated = (
    run.table(search, run.config.evaluation.batch_size)
    for search in _evaluation_searches(run)
  )
  parts = {
    LEARNER: shard_bytes(state.params),
    OPTIMIZER: shard_bytes(state._replace(params=None)),
    PLAYER: shard_bytes(run.played),
    SELF_PLAY: run.phases.num_tables * run.phases.num_bytes(),
    EVALUATION: sum(x.num_tables * x.num_bytes() for x in evaluated),
  }
  # What a publication makes are the player's parameters.
  added = {
    x.name: x.temporary_bytes + x.output_bytes * (x.name != "publish")
    for x in compiled
  }
  largest = max(added, key=added.get)
  parts[f"temporaries and results ({largest})"] = added[largest]
  return Memory(parts, largest, topology.chip.hbm_gib * GIB)


def _evaluation_searches(run: Run) -> Iterator[Any]:
  """Those of the players of `training.examiner.Examiner`."""
  config = run.config
  if config.evaluation.num_problems > 0:
    for searcher in {"greedy", config.search.searcher}:
      yield searchers.for_evaluation(config.search, searcher)


def advice(memory: Memory, run: Run) -> list[str]:
  """What to change where a run does not fit, the largest part first."""
  by_size = sorted(memory.parts, key=memory.parts.get, reverse=True)
  lines = [line for part in by_size for line in _advice(part, memory, run)]
  return list(dict.fromkeys(lines))


def _advice(part: str, memory: Memory, run: Run) -> Iterator[str]:
  config, mesh = run.config, run.mesh.shape
  if part == SELF_PLAY:
    size = config.self_play.batch_size
    yield from _fewer_trees("self_play.batch_size", size, part, memory, run)
    yield (
      "make blocks smaller or fewer: text.max_step_tokens is "
      f"{config.text.max_step_tokens}, search.num_simulations "
      f"{config.search.num_simulations}"
    )
  elif part == EVALUATION:
    size = config.evaluation.batch_size
    yield from _fewer_trees("evaluation.batch_size", size, part, memory, run)
  elif part == PLAYER:
    yield f"split the network more: mesh.model is {mesh['model']}"
  elif part in (LEARNER, OPTIMIZER):
    yield f"split what the learner keeps more: mesh.fsdp is {mesh['fsdp']}"
  elif memory.largest == "learn":
    yield f"lower learner.batch_size, which is {config.learner.batch_size}"
  else:
    size = config.self_play.batch_size
    yield f"lower self_play.batch_size, which is {size}"


def _fewer_trees(
  field: str, num_trees: int, part: str, memory: Memory, run: Run
) -> Iterator[str]:
  """As many trees as the shortfall leaves room for, if any."""
  size, shards = memory.parts[part], run.num_shards
  left = num_trees / shards * (1 - memory.shortfall / size) if size else 0
  fewer = max(1, math.floor(left)) * shards
  if fewer < num_trees:
    enough = ", which is enough" if left >= 1 else ""
    yield f"lower {field} from {num_trees} to {fewer}{enough}"
