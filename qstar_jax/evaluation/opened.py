"""A checkpoint opened for playing: what `qstar evaluate` and `solve` share."""

import dataclasses

from etils import epath

from qstar_jax.config import ExperimentConfig
from qstar_jax.distributed.mesh import make_mesh
from qstar_jax.domains import make_domain
from qstar_jax.records import Domain, Problem, TreeRecord
from qstar_jax.search.searchers import for_evaluation
from qstar_jax.selfplay import plays
from qstar_jax.selfplay.player import Batch, Player
from qstar_jax.training import checkpoint


@dataclasses.dataclass(frozen=True)
class Opened:
  """A network, the rules it plays by, and how it searches.

  Attributes:
    loaded: the checkpoint.
    config: of its run, with the command's changes.
    domain: to play.
  """

  loaded: checkpoint.Loaded
  config: ExperimentConfig
  domain: Domain

  def player(
    self, searcher: str, terminal_value: str, num_trees: int
  ) -> Player:
    """A player for evaluation, see `for_evaluation`.

    Trees are rounded up to a multiple of the mesh's data axis.
    """
    mesh = make_mesh(self.config.mesh)
    num_shards = mesh.shape["data"]
    return Player(
      self.loaded.graphdef,
      self.domain,
      self.loaded.vocabulary,
      model=self.config.model,
      text=self.config.text,
      search=for_evaluation(
        self.config.search, searcher, terminal_value=terminal_value
      ),
      num_trees=-(-num_trees // num_shards) * num_shards,
      mesh=mesh,
    )

  def solve(
    self, player: Player, problem: Problem, seed: int
  ) -> tuple[plays.PlayResult, TreeRecord]:
    """Plays one problem: how it went, and the tree."""
    batch = Batch([problem], [seed])
    (played,) = player.play_batches(self.loaded.params, [batch])
    record = plays.to_record(
      self.domain,
      played,
      0,
      actor_id=0,
      sequence=0,
      params_version=self.loaded.step,
      terminal_value=self.config.search.terminal_value,
      temperature=self.config.search.temperature,
      prompt_tokens=self.loaded.vocabulary.encode_prompt(problem.prompt),
    )
    return plays.result(self.domain, played, 0), record


def open_checkpoint(
  path: epath.PathLike, config: ExperimentConfig, *, domain: str | None = None
) -> Opened:
  """Opens the newest checkpoint of a run, or one of them by its directory.

  Args:
    path: of the run or the checkpoint.
    config: of the run, with the command's changes.
    domain: to play another domain than the run's own.

  Returns:
    What is needed to play.

  Raises:
    UserError: no readable checkpoint there, or unknown domain.
  """
  if domain in (None, config.domain.name):
    rules = make_domain(config.domain.name, config.domain.options)
  else:
    rules = make_domain(domain)
  return Opened(checkpoint.load(path), config, rules)
