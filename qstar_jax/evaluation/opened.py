"""A checkpoint opened for playing: what `qstar evaluate` and `solve` share."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from qstar_jax import checkpoint
from qstar_jax.config import ExperimentConfig, SearchConfig
from qstar_jax.distributed import rules
from qstar_jax.distributed.mesh import make_mesh
from qstar_jax.domains import make_domain
from qstar_jax.errors import UserError
from qstar_jax.records import Domain, Problem, TreeRecord
from qstar_jax.search.searchers import for_evaluation
from qstar_jax.selfplay import plays
from qstar_jax.selfplay.player import Job, Player


class Solved(NamedTuple):
  """How a problem was played.

  Attributes:
    result: how it went.
    record: the tree.
    priority: float [n, A], f of the record's candidates if the searcher has
      one.
  """

  result: plays.PlayResult
  record: TreeRecord
  priority: np.ndarray | None


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

  def player(self, search: SearchConfig, num_trees: int) -> Player:
    """A player of the checkpoint's network.

    Trees are rounded up to a multiple of the mesh's data * fsdp.
    """
    mesh = make_mesh(self.config.mesh)
    num_shards = rules.num_shards(mesh.shape)
    return Player(
      self.loaded.graphdef,
      self.domain,
      self.loaded.vocabulary,
      model=self.config.model,
      text=self.config.text,
      search=search,
      num_trees=-(-num_trees // num_shards) * num_shards,
      mesh=mesh,
    )

  def solve(
    self, problems: Sequence[Problem], searcher: str, seed: int
  ) -> Iterator[Solved]:
    """Plays problems without the verifier inside the search.

    Args:
      problems: at least one; problem i is played with seed + i.
      searcher: name of a searcher.
      seed: of the play.

    Yields:
      For every problem how it went.

    Raises:
      UserError: unknown searcher, or a prompt is too long.
    """
    search = for_evaluation(self.config.search, searcher)
    player = self.player(search, len(problems))
    jobs = [Job(problem, seed + i) for i, problem in enumerate(problems)]
    played_jobs = player.play(self.loaded.params, jobs)
    for i, played in enumerate(played_jobs):
      record = plays.to_record(
        self.domain,
        played,
        actor_id=0,
        sequence=i,
        params_version=self.loaded.step,
        search=search,
        prompt_tokens=self.loaded.vocabulary.encode_prompt(
          played.problem.prompt
        ),
      )
      yield Solved(
        plays.result(self.domain, played),
        record,
        plays.priorities(played, search),
      )


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
    UserError: no readable checkpoint there, unknown domain, or the config
      changes the network or has a mesh that does not fit.
  """
  if domain in (None, config.domain.name):
    to_play = make_domain(config.domain.name, config.domain.options)
  else:
    to_play = make_domain(domain)
  loaded = checkpoint.load(path, make_mesh(config.mesh))
  for field, made in dataclasses.asdict(loaded.config.model).items():
    if (value := getattr(config.model, field)) != made:
      raise UserError(
        f"model.{field} is {value!r}: the checkpoint's network has {made!r}, "
        "which is fixed; leave it out"
      )
  return Opened(loaded, config, to_play)
