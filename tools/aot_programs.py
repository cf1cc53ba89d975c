"""The programs of a run, compiled for a TPU topology from shapes alone.

Nothing is allocated and no TPU is needed: libtpu holds the compiler, and says
what devices a topology has. Parameters, trees and batches are described by
`jax.ShapeDtypeStruct`s that lie on those devices.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from qstar_jax.config import ExperimentConfig, SearchConfig
from qstar_jax.distributed import hlo_program, rules
from qstar_jax.distributed.chips import Topology
from qstar_jax.distributed.mesh import make_mesh
from qstar_jax.errors import UserError
from qstar_jax.learner import objective, train_step
from qstar_jax.model import partitioning
from qstar_jax.model.transformer import abstract_model
from qstar_jax.records import TrainBatch
from qstar_jax.search import expand as expand_lib
from qstar_jax.search import searchers
from qstar_jax.selfplay.network_expand import make_expand_fn
from qstar_jax.selfplay.phases import Phases
from qstar_jax.selfplay.player import group_size
from qstar_jax.text.vocabulary import ByteVocabulary

INSTALL = 'python -m pip install "jax[tpu]"'
# Fields of a batch that hold whole numbers.
_INTEGERS = frozenset(("tokens", "position", "previous", "last", "rival"))
# Fields of `TrainBatch` that come with one that a loss reads.
_WITH_FIELD = {
  "reward": ("reward", "discount", "action_weight"),
  "rival": ("rival", "rival_weight"),
}
_ALWAYS = (
  *("tokens", "position", "previous", "last", "policy_weight"),
  *("value_target", "value_weight", "prm_target", "prm_weight"),
)
# How the compiler says that a program is too large: "Used 20.1G of 15.75G hbm",
# or "memory required for HLO temporaries (20.1G)".
_NEEDED = re.compile(r"(?:Used |required [^(]*\()([\d.]+)([KMGT])")
_UNITS = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}


class Compiled(NamedTuple):
  """A program that was compiled, or is too large to be.

  Attributes:
    name: of the program.
    text: in HLO; empty if it is too large.
    temporary_bytes: on one device, beside arguments and results; of a program
      that is too large, what the compiler asks for.
    output_bytes: of results on one device that take no argument's place.
  """

  name: str
  text: str
  temporary_bytes: float = 0.0
  output_bytes: float = 0.0

  @property
  def program(self) -> hlo_program.Program:
    """The text, read."""
    return hlo_program.parse(self.text)


def topology_devices(topology: Topology) -> Sequence[jax.Device]:
  """The devices of a topology, which need not be there.

  To be called before anything computes.

  Raises:
    UserError: libtpu is not installed, or knows no such topology.
  """
  # The machine's own devices compute nothing here, and no metadata server tells
  # it what TPU it is.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  jax.config.update("jax_platforms", "cpu")
  from jax.experimental import topologies

  chip = topology.chip
  # A host has four chips, or all of a smaller slice.
  per_host = [min(2, size) for size in topology.shape[:2]]
  shape = (*topology.shape, 1, 1)[:3]
  try:
    return topologies.get_topology_desc(
      topology_name=topology.name,
      platform="tpu",
      chips_per_host_bounds=(*per_host, 1),
      wrap=tuple(size % chip.wrap_multiple == 0 for size in shape),
      **dict(chip.libtpu_options),
    ).devices
  except RuntimeError as error:
    if "TPU support not installed" in str(error):
      raise UserError(
        f"the TPU compiler is not installed; it needs no TPU: {INSTALL}"
      ) from error
    reason = str(error).splitlines()[0]
    if "lockfile" in reason:
      raise UserError(
        "libtpu is in use: one process at a time may compile; wait for the "
        "other, or remove /tmp/libtpu_lockfile if there is none"
      ) from error
    raise UserError(
      f"topology {topology.name}: libtpu refuses it ({reason}); name a slice "
      "that there is, e.g. v5e:4x4"
    ) from error


class Run:
  """A run's parts as shapes on the devices of a topology.

  Attributes:
    config: of the run.
    mesh: of the topology's devices.
    num_parameters: of the network.
    learner_state: `TrainState` of shapes.
    played: parameters of shapes, in the actor's layout.
    phases: of a table of self-play.
  """

  def __init__(self, config: ExperimentConfig, devices: Sequence[jax.Device]):
    """Raises UserError if the config does not fit the devices."""
    self.config = config
    self.mesh: Mesh = make_mesh(config.mesh, devices)
    vocabulary_size = config.text.vocabulary_size
    if config.text.vocabulary == "bytes":
      vocabulary_size = ByteVocabulary().size
    self._ends_step = np.arange(vocabulary_size) < 2
    self._graphdef, params = abstract_model(config.model, vocabulary_size)
    sizes = [x.size for x in jax.tree.leaves(params)]
    self.num_parameters = sum(sizes)
    self._optimizer = train_step.make_optimizer(config.learner, total_steps=1)
    self.learner_state = train_step.abstract_state(
      params, self._optimizer, config.learner, self.mesh
    )
    self.played = partitioning.abstract_params(params, rules.ACTOR, self.mesh)
    self.phases = self.table(config.search, config.self_play.batch_size)

  def table(self, search: SearchConfig, num_trees: int) -> Phases:
    """The phases of a table of so many trees."""
    text = searchers.limits(search, self.config.text)
    expand_fn = make_expand_fn(
      self._graphdef,
      ends_step=self._ends_step | searchers.is_by_token(search),
      end_token=1,
      temperature=search.temperature,
      min_p=search.min_p,
      proposal=search.proposal,
      platform=self.mesh.devices.flat[0].platform,
    )
    return Phases(
      self._graphdef,
      expand_fn,
      model=self.config.model,
      text=text,
      search=search,
      num_trees=num_trees,
      mesh=self.mesh,
    )

  @property
  def num_shards(self) -> int:
    """Devices, or groups of them, with trees and lines of their own."""
    return rules.num_shards(self.mesh.shape)

  def programs(self) -> dict[str, Callable[[], Any]]:
    """What lowers each program, by its name."""
    lower = {"seat": self._seat}
    if self.config.search.terminal_value == "outcome":
      lower |= {"expand": self._expand, "insert": self._insert}
    else:
      lower["play"] = self._play
    return lower | {"learn": self._learn, "publish": self._publish}

  def compile(self, name: str) -> Compiled:
    """Compiles a program, and finds its memory on one device."""
    return compile_lowered(name, self.programs()[name]())

  def _seat(self) -> Any:
    shard_size = self.config.self_play.batch_size // self.num_shards
    rows = group_size(shard_size) * self.num_shards

    def of_rows(dtype, *shape):
      return jax.ShapeDtypeStruct(
        (rows, *shape), dtype, sharding=self.phases.by_tree
      )

    text = searchers.limits(self.config.search, self.config.text)
    return self.phases.seat.lower(
      self.played,
      self.phases.state,
      of_rows(jnp.int32),
      of_rows(jnp.int32, text.max_prompt_tokens),
      *(of_rows(jnp.int32),) * 2,
      of_rows(jnp.uint32),
      of_rows(jnp.int32),
    )

  def _expand(self) -> Any:
    return self.phases.expand.lower(self.played, self.phases.state)

  def _play(self) -> Any:
    num_done = jax.ShapeDtypeStruct((), jnp.int32)
    return self.phases.play.lower(self.played, self.phases.state, num_done)

  def _insert(self) -> Any:
    _, _, expansion = jax.eval_shape(
      self.phases.expand, self.played, self.phases.state
    )
    judgement = jax.eval_shape(expand_lib.unjudged, expansion)
    expansion, judgement = (
      jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
          x.shape, x.dtype, sharding=self.phases.by_tree
        ),
        record,
      )
      for record in (expansion, judgement)
    )
    return self.phases.insert.lower(self.phases.state, expansion, judgement)

  def _learn(self) -> Any:
    config = self.config
    steps = train_step.make_train_steps(
      self._graphdef, self._optimizer, config.learner, self.mesh
    )
    return steps.lower(self.learner_state, abstract_batches(config))

  def _publish(self) -> Any:
    publish = partitioning.make_publish(self.learner_state.played, self.mesh)
    return publish.lower(self.learner_state.played)


def abstract_batches(config: ExperimentConfig) -> TrainBatch:
  """What one call of the learner takes: [steps per call, B, T] of shapes."""
  learner = config.learner
  shape = (learner.steps_per_call, learner.batch_size, config.row_tokens)

  def names() -> Iterator[str]:
    yield from _ALWAYS
    for field, together in _WITH_FIELD.items():
      if objective.reads(learner, field):
        yield from together

  return TrainBatch(
    **{
      name: jax.ShapeDtypeStruct(
        shape, jnp.int32 if name in _INTEGERS else jnp.float32
      )
      for name in names()
    }
  )


def compile_lowered(name: str, lowered: Any) -> Compiled:
  """Compiles what was lowered; see `Run.compile`."""
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    needed = _NEEDED.search(str(error))
    if "RESOURCE_EXHAUSTED" not in str(error) or needed is None:
      raise
    return Compiled(name, "", float(needed.group(1)) * _UNITS[needed.group(2)])
  memory = compiled.memory_analysis()
  return Compiled(
    name,
    compiled.as_text(),
    temporary_bytes=memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes,
    output_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
  )
