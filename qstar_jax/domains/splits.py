"""Held-out problems, and training problems that are never among them."""

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

import numpy as np

from qstar_jax.config import ExperimentConfig
from qstar_jax.domains.readers import find_file, read_problems
from qstar_jax.domains.step_domain import MAX_DRAWS
from qstar_jax.errors import UserError
from qstar_jax.records import Domain, Problem


class HeldOut(NamedTuple):
  """The problems that a run never trains on; no split key is in two lists.

  Attributes:
    evaluation: generated, for evaluation while it trains.
    gate: generated, for trials of candidates.
    file: of `domain.held_out_file`, in its order, duplicates included.
  """

  evaluation: list[Problem]
  gate: list[Problem]
  file: list[Problem]


def held_out_by(config: ExperimentConfig, domain: Domain) -> HeldOut:
  """What the run of a config holds out of its domain.

  Raises:
    UserError: the file cannot be read, or the domain has too few problems.
  """
  of_file: list[Problem] = []
  if config.domain.held_out_file:
    path = find_file(config.domain.held_out_file)
    of_file = read_problems(domain, path, config.domain.held_out_rows or None)
  num_gate = config.gate.pool_problems if config.gate.every_iterations else 0
  num_evaluation = config.domain.held_out_problems
  # Those of evaluation first: they are the same with and without a gate.
  generated = held_out(
    domain,
    min_difficulty=config.domain.min_difficulty,
    max_difficulty=config.domain.max_difficulty,
    num_problems=num_evaluation + num_gate,
    seed=config.seed,
    excluded=frozenset(map(domain.split_key, of_file)),
  )
  return HeldOut(
    generated[:num_evaluation], generated[num_evaluation:], of_file
  )


def held_out(
  domain: Domain,
  *,
  min_difficulty: int,
  max_difficulty: int,
  num_problems: int,
  seed: int,
  excluded: Collection[str] = (),
) -> list[Problem]:
  """Problems to keep out of training, drawn as the domain samples them.

  A fair coin thrown by each problem's split key says whether it may be held
  out, so about half of the problems of every difficulty stay for training
  however few there are.

  Args:
    domain: the domain.
    min_difficulty: easiest, >= 1.
    max_difficulty: hardest; difficulties are equally frequent while they last.
    num_problems: how many.
    seed: of the draws and the coins.
    excluded: split keys of problems that are not wanted.

  Returns:
    `num_problems` problems with distinct split keys; the same for the same
    arguments.

  Raises:
    UserError: the domain has not that many.
  """
  rng = np.random.default_rng(seed)
  found: dict[str, Problem] = {}
  num_misses = 0
  while len(found) < num_problems:
    difficulty = int(
      rng.integers(min_difficulty, max_difficulty, endpoint=True)
    )
    problem = domain.sample(rng, difficulty)
    key = domain.split_key(problem)
    if key not in found and key not in excluded and _coin(key, seed):
      found[key] = problem
      num_misses = 0
    num_misses += 1
    # Were even a hundredth of what we have still to be found, we would have.
    if num_misses > 20 * (100 + len(found)):
      raise UserError(
        f"{num_problems} problems are to be held out, domain.held_out_problems "
        f"and those of a gate: {domain.name} has only about {len(found)} of "
        f"difficulty {min_difficulty} to {max_difficulty} (half of each "
        f"difficulty stays for training); ask for {len(found)} or widen the "
        "domain"
      )
  return list(found.values())


def _coin(key: str, seed: int) -> bool:
  """A fair coin that depends on nothing but the key and the seed."""
  return hashlib.sha256(f"{seed} {key}".encode()).digest()[0] % 2 == 0


@dataclasses.dataclass(frozen=True)
class TrainingProblems:
  """A domain's generators without the problems that are held out.

  Attributes:
    domain: the domain.
    held_out_keys: split keys of the problems that never appear.
  """

  domain: Domain
  held_out_keys: frozenset[str]

  @classmethod
  def without(
    cls, domain: Domain, problems: Iterable[Problem]
  ) -> "TrainingProblems":
    """The training problems of `domain` when `problems` are held out."""
    return cls(domain, frozenset(map(domain.split_key, problems)))

  def is_held_out(self, problem: Problem) -> bool:
    """Whether `problem` must not be trained on."""
    return self.domain.split_key(problem) in self.held_out_keys

  def sample(self, rng: np.random.Generator, difficulty: int) -> Problem:
    """As the domain's; UserError if every problem found is held out."""
    return self._draw(lambda: (self.domain.sample(rng, difficulty), ()))[0]

  def sample_related(
    self, rng: np.random.Generator, difficulty: int
  ) -> Problem:
    """As the domain's; one that has no such method asks for random play's.

    UserError if every problem found is held out.
    """
    sample = getattr(self.domain, "sample_related", None)
    if sample is None:
      return self.random_play(rng, difficulty)[0]
    return self._draw(lambda: (sample(rng, difficulty), ()))[0]

  def random_play(
    self, rng: np.random.Generator, difficulty: int
  ) -> tuple[Problem, tuple[str, ...]]:
    """As the domain's; UserError if every problem found is held out."""
    return self._draw(lambda: self.domain.random_play(rng, difficulty))

  def _draw(
    self, draw: Callable[[], tuple[Problem, tuple[str, ...]]]
  ) -> tuple[Problem, tuple[str, ...]]:
    """The first result of `draw` whose problem is not held out."""
    for _ in range(MAX_DRAWS):
      problem, steps = draw()
      if not self.is_held_out(problem):
        return problem, steps
    raise UserError(
      f"{self.domain.name}: all of {MAX_DRAWS} problems drawn at difficulty "
      f"{problem.difficulty} are held out; lower domain.held_out_problems"
    )
