"""What every job of a run starts from: rules, words, a network, a mesh."""

import dataclasses
import itertools
from collections.abc import Callable

import jax
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from qstar_jax import checkpoint as checkpoint_lib
from qstar_jax.config import ExperimentConfig, MeshConfig, SearchConfig
from qstar_jax.distributed import rules
from qstar_jax.distributed.mesh import actor_axes, make_mesh
from qstar_jax.domains import make_domain, splits
from qstar_jax.errors import UserError
from qstar_jax.model import partitioning
from qstar_jax.records import Domain
from qstar_jax.search import budget, searchers
from qstar_jax.selfplay.player import Player
from qstar_jax.text.vocabulary import Vocabulary
from qstar_jax.training import inputs
from qstar_jax.training.labelled_data import LabelledData, open_labels

# Streams of random numbers that must not share any. 0 is that of `inputs`, 6
# that of `labelled_data`.
WARM_START, PROBLEMS, LINES, DRIFT, PROPOSALS = range(1, 6)
GATE = 7


@dataclasses.dataclass(frozen=True)
class Setup:
  """What a config describes, before anything is learned.

  Attributes:
    config: of the run.
    domain: its rules.
    held_out: problems that nobody trains on.
    problems: all others.
    labelled: lines with labels to learn from; None if there are none.
    vocabulary: of the network.
    graphdef: structure of the network.
    mesh: that a job plays on: this host's part of it, if there are several.
  """

  config: ExperimentConfig
  domain: Domain
  held_out: splits.HeldOut
  problems: splits.TrainingProblems
  labelled: LabelledData | None
  vocabulary: Vocabulary
  graphdef: nnx.GraphDef
  mesh: Mesh

  def player(self, search: SearchConfig, num_trees: int) -> Player:
    """Plays with the network on the mesh; compiles nothing yet."""
    return Player(
      self.graphdef,
      self.domain,
      self.vocabulary,
      model=self.config.model,
      text=self.config.text,
      search=search,
      num_trees=num_trees,
      mesh=self.mesh,
    )

  def place(self, params: nnx.State) -> nnx.State:
    """Params in the actor's layout, copied if they lie on other devices."""
    return partitioning.params_in(rules.ACTOR, params, self.mesh)

  def rng(
    self, stream: int, index: int, actor_id: int = 0
  ) -> np.random.Generator:
    """Random numbers that nobody else draws.

    Args:
      stream: of this module.
      index: of the step, iteration or round.
      actor_id: who draws.
    """
    return np.random.default_rng([self.config.seed, stream, index, actor_id])


def make_meshes(config: MeshConfig) -> tuple[Mesh, Mesh]:
  """The learner's mesh, and self-play's: another one if it has devices.

  Raises:
    UserError: the axes do not fit the devices.
  """
  num_devices = config.actor_devices
  if num_devices == 0:
    mesh = make_mesh(config)
    return mesh, mesh
  devices = jax.devices()
  return (
    make_mesh(config, devices[num_devices:]),
    make_mesh(actor_axes(config), devices[:num_devices]),
  )


def begin(
  config: ExperimentConfig,
  run_dir: epath.Path,
  mesh: Mesh,
  check_stop: Callable[[], None],
) -> tuple[Setup, nnx.State]:
  """The setup of a run that nothing is known of, and random parameters.

  The parameters are in the learner's layout. Nothing is written but RUN/labels,
  of an outside file.

  Args:
    config: of the run.
    run_dir: of the run.
    mesh: to compute on.
    check_stop: called now and then; may raise.

  Raises:
    UserError: what the config names is not there, or cannot be used.
  """
  _check_budgets(config)
  fields = _rules(config)
  _check_mistakes(config, fields["domain"])
  labelled = None
  if config.data.labels:
    labelled = open_labels(config, run_dir, fields["problems"], check_stop)
  vocabulary = inputs.make_vocabulary(config, fields["problems"], labelled)
  graphdef, params = partitioning.init_params(
    config.model, vocabulary.size, config.seed, rules.LEARNER, mesh
  )
  return Setup(
    **fields,
    labelled=labelled,
    vocabulary=vocabulary,
    graphdef=graphdef,
    mesh=mesh,
  ), params


def _check_budgets(config: ExperimentConfig) -> None:
  """Raises UserError if plays that come late in the run could not begin."""
  text = searchers.limits(config.search, config.text)
  least = budget.least_tokens(
    text.max_prompt_tokens,
    text.max_steps,
    text.max_step_tokens,
    config.search.num_candidates,
  )
  for name, budgets in (
    ("gate.token_budget", [config.gate.token_budget or least]),
    ("evaluation.ladder_budgets", config.evaluation.ladder_budgets),
  ):
    if min(budgets, default=least) < least:
      raise UserError(
        f"{name} has {min(budgets)}: a line may take {least} tokens; give "
        f"{least} or more"
      )


def _check_mistakes(config: ExperimentConfig, domain: Domain) -> None:
  """Raises UserError if the domain cannot make the mistakes of random play."""
  warm_start = config.warm_start
  is_drawn = warm_start.steps > 0 or warm_start.later_share > 0
  if not is_drawn or warm_start.corrupt_share == 0:
    return
  for method in "corrupt", "legal_steps":
    if not hasattr(domain, method):
      raise UserError(
        f"warm_start.corrupt_share is {warm_start.corrupt_share:g}: domain "
        f"{domain.name} has no method {method}; write it (see "
        "qstar_jax.records.Domain) or set corrupt_share to 0"
      )


def of_checkpoint(
  config: ExperimentConfig, loaded: checkpoint_lib.Loaded, mesh: Mesh
) -> Setup:
  """The setup of a job that plays what a learner has saved."""
  return Setup(
    **_rules(config),
    labelled=None,
    vocabulary=loaded.vocabulary,
    graphdef=loaded.graphdef,
    mesh=mesh,
  )


def _rules(config: ExperimentConfig) -> dict:
  """Fields of `Setup` that the config alone determines."""
  domain = make_domain(config.domain.name, config.domain.options)
  held_out = splits.held_out_by(config, domain)
  return {
    "config": config,
    "domain": domain,
    "held_out": held_out,
    "problems": splits.TrainingProblems.without(
      domain, itertools.chain(*held_out)
    ),
  }
