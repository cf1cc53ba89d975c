"""The actor: plays an iteration's problems and hands on their records."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from qstar_jax.config import ExperimentConfig
from qstar_jax.domains.splits import TrainingProblems
from qstar_jax.records import TreeRecord
from qstar_jax.selfplay import plays
from qstar_jax.selfplay.curriculum import Curriculum
from qstar_jax.selfplay.player import Batch, Player
from qstar_jax.text.vocabulary import Vocabulary


class Played(NamedTuple):
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
) -> Iterator[Played]:
  """Plays `self_play.problems_per_iteration` problems.

  Args:
    player: of `self_play.batch_size` trees.
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
    check_stop: called before each batch; may raise to stop.

  Yields:
    The plays, numbered on from `first_sequence`.
  """
  settings = config.self_play
  sequence = first_sequence

  def draw_batch(first: int) -> Batch:
    check_stop()
    drawn = [
      problems.sample(rng, curriculum.draw(rng))
      for _ in range(settings.batch_size)
    ]
    # A hash, so that no two runs with different seeds share a tree's numbers.
    seeds = [
      int(
        np.random.SeedSequence([config.seed, actor_id, i]).generate_state(1)[0]
      )
      for i in range(first, first + len(drawn))
    ]
    return Batch(drawn, seeds)

  batches = (
    draw_batch(first_sequence + done)
    for done in range(0, settings.problems_per_iteration, settings.batch_size)
  )
  for played in player.play_batches(params, batches):
    for row, problem in enumerate(played.problems):
      record = plays.to_record(
        problems.domain,
        played,
        row,
        actor_id=actor_id,
        sequence=sequence,
        params_version=params_version,
        terminal_value=config.search.terminal_value,
        temperature=config.search.temperature,
        prompt_tokens=vocabulary.encode_prompt(problem.prompt),
      )
      result = plays.result(problems.domain, played, row)
      yield Played(record, result, problem.difficulty)
      sequence += 1
