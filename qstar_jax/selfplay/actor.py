"""The actor: plays an iteration's problems and hands on their records."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from qstar_jax.config import ExperimentConfig
from qstar_jax.domains.splits import TrainingProblems
from qstar_jax.records import TreeRecord
from qstar_jax.selfplay import plays
from qstar_jax.selfplay.curriculum import Curriculum
from qstar_jax.selfplay.player import Job, Player
from qstar_jax.text.vocabulary import Vocabulary


class RecordedPlay(NamedTuple):
  """One play, for replay and for the statistics.

  Attributes:
    record: for replay.
    result: how it went.
    difficulty: of the problem.
  """

  record: TreeRecord
  result: plays.PlayResult
  difficulty: int


def play_iteration(
  player: Player,
  params: Any,
  problems: TrainingProblems,
  curriculum: Curriculum,
  vocabulary: Vocabulary,
  rng: np.random.Generator,
  *,
  config: ExperimentConfig,
  params_version: int,
  first_sequence: int,
  actor_id: int = 0,
  check_stop: Callable[[], None] = lambda: None,
) -> Iterator[RecordedPlay]:
  """Plays `self_play.problems_per_iteration` problems.

  Args:
    player: of the network.
    params: of the network.
    problems: to draw from, held-out ones excluded.
    curriculum: draws difficulties; not updated here.
    vocabulary: of the network.
    rng: draws problems; consumed.
    config: of the experiment.
    params_version: of `params`.
    first_sequence: number of the first tree; tree i is played with a seed made
      of the experiment's seed and its number, so a play can be repeated.
    actor_id: who plays.
    check_stop: called before each play; may raise to stop.

  Yields:
    The plays, numbered on from `first_sequence`.
  """

  def jobs() -> Iterator[Job]:
    for sequence in range(
      first_sequence, first_sequence + config.self_play.problems_per_iteration
    ):
      check_stop()
      problem = problems.sample(rng, curriculum.draw(rng))
      # A hash: no two runs with different seeds share a tree's numbers.
      entropy = np.random.SeedSequence([config.seed, actor_id, sequence])
      yield Job(problem, int(entropy.generate_state(1)[0]))

  for sequence, played in enumerate(
    player.play(params, jobs()), start=first_sequence
  ):
    record = plays.to_record(
      problems.domain,
      played,
      actor_id=actor_id,
      sequence=sequence,
      params_version=params_version,
      search=config.search,
      prompt_tokens=vocabulary.encode_prompt(played.problem.prompt),
    )
    result = plays.result(problems.domain, played)
    yield RecordedPlay(record, result, played.problem.difficulty)
