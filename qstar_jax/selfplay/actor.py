"""The actor: plays an iteration's problems and hands on their records."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from qstar_jax.config import CurriculumConfig, ExperimentConfig
from qstar_jax.domains.splits import TrainingProblems
from qstar_jax.records import Problem, TreeRecord
from qstar_jax.replay import ReplayWindow
from qstar_jax.selfplay import plays
from qstar_jax.selfplay.curriculum import Curriculum
from qstar_jax.selfplay.player import Job, Player
from qstar_jax.text.vocabulary import Vocabulary

# Where a problem comes from: the generator, replay, or the curriculum's table.
Origin = Literal["new", "reanalysed", "repeated"]


class RecordedPlay(NamedTuple):
  """One play, for replay and for the statistics.

  Attributes:
    record: for replay.
    result: how it went.
    problem: that was played.
    origin: of the problem.
  """

  record: TreeRecord
  result: plays.PlayResult
  problem: Problem
  origin: Origin


def play_iteration(
  player: Player,
  params: Any,
  problems: TrainingProblems,
  curriculum: Curriculum,
  window: ReplayWindow,
  vocabulary: Vocabulary,
  rng: np.random.Generator,
  *,
  config: ExperimentConfig,
  params_version: int,
  first_sequence: int,
  num_plays: int,
  actor_id: int = 0,
  on_turn: Callable[[int], None] = lambda done: None,
) -> Iterator[RecordedPlay]:
  """Plays an iteration's problems.

  A share of them, `replay.reanalyse_share`, are those of stored trees, searched
  again by a player that has learned since (MuZero Reanalyse, Schrittwieser et
  al. 2020, arXiv:1911.08265; whole plays here, since the states of a line are
  the player's own). Another share, `curriculum.replay_share`, are drawn from
  the curriculum's table. The others are new problems. All trees are new.

  Args:
    player: of the network.
    params: of the network.
    problems: to draw from, held-out ones excluded.
    curriculum: draws problems and difficulties; not updated here.
    window: whose problems are searched again; not changed here.
    vocabulary: of the network.
    rng: draws problems; consumed.
    config: of the experiment.
    params_version: of `params`.
    first_sequence: number of the first tree; tree i is played with a seed made
      of the experiment's seed and its number, so a play can be repeated.
    num_plays: problems, >= 1.
    actor_id: who plays.
    on_turn: see `Player.play`.

  Yields:
    The plays, numbered on from `first_sequence`.
  """
  num_stored = int(config.replay.reanalyse_share * num_plays)
  num_repeated = int(config.curriculum.replay_share * num_plays)
  stored = _parse(window.draw_prompts(num_stored, rng), problems)
  repeated = curriculum.table.draw(num_repeated, rng)
  old = stored + repeated
  origins = ["reanalysed"] * len(stored) + ["repeated"] * len(repeated)
  origins += ["new"] * (num_plays - len(old))

  def jobs() -> Iterator[Job]:
    for index in range(num_plays):
      sequence = first_sequence + index
      if index < len(old):
        problem = old[index]
      else:
        problem = _new_problem(problems, curriculum, config.curriculum, rng)
      # A hash: no two runs with different seeds share a tree's numbers.
      entropy = np.random.SeedSequence([config.seed, actor_id, sequence])
      yield Job(problem, int(entropy.generate_state(1)[0]))

  for index, played in enumerate(player.play(params, jobs(), on_turn)):
    record = plays.to_record(
      problems.domain,
      played,
      actor_id=actor_id,
      sequence=first_sequence + index,
      params_version=params_version,
      search=config.search,
      prompt_tokens=vocabulary.encode_prompt(played.problem.prompt),
    )
    result = plays.result(problems.domain, played)
    yield RecordedPlay(record, result, played.problem, origins[index])


def _new_problem(
  problems: TrainingProblems,
  curriculum: Curriculum,
  config: CurriculumConfig,
  rng: np.random.Generator,
) -> Problem:
  """One of the domain's, or of those that are related to them."""
  difficulty = curriculum.draw(rng)
  share = config.related_share
  if share > 0 and rng.random() < share:
    return problems.sample_related(rng, difficulty)
  return problems.sample(rng, difficulty)


def _parse(prompts: Sequence[str], problems: TrainingProblems) -> list[Problem]:
  """The problems of prompts, without those that are held out."""
  parsed = map(problems.domain.parse, prompts)
  return [problem for problem in parsed if not problems.is_held_out(problem)]


def update_curriculum(
  curriculum: Curriculum,
  recorded: Sequence[RecordedPlay],
  config: CurriculumConfig,
) -> None:
  """Tells the curriculum how an iteration's plays went.

  Difficulties learn from the problems that they drew, the table from all; a
  table that nothing is drawn from stays empty.
  """
  curriculum.update(
    (play.problem.difficulty, play.result.verdict.score)
    for play in recorded
    if play.origin == "new"
  )
  if config.replay_share > 0:
    for play in recorded:
      curriculum.table.update(
        play.problem,
        play.result.verdict.score,
        prior=float(play.record.node_value[0]),
        is_solvable=play.result.any_score > 0,
      )


def summarise(recorded: Sequence[RecordedPlay]) -> dict[str, float]:
  """What to log of an iteration's plays.

  Returns:
    solve_rate: mean score of the committed lines; any_score, mean_score: see
    `PlayResult`. All in [0, 1], and over new problems alone: those that come
    again were chosen, and learned from. Of these, reanalysed and repeated, how
    many, and their solve rates. No rate is there without a play.
  """
  metrics: dict[str, float] = {}
  new = [play.result for play in recorded if play.origin == "new"]
  if new:
    metrics["solve_rate"] = _mean([result.verdict.score for result in new])
    metrics["any_score"] = _mean([result.any_score for result in new])
    metrics["mean_score"] = _mean([result.mean_score for result in new])
  for origin in ("reanalysed", "repeated"):
    old = [play.result for play in recorded if play.origin == origin]
    metrics[origin] = len(old)
    if old:
      rate = _mean([result.verdict.score for result in old])
      metrics[f"{origin}_solve_rate"] = rate
  return metrics


def _mean(values: list[float]) -> float:
  return float(np.mean(values))
