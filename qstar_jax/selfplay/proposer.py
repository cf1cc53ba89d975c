"""The proposer: new problems that the player has come to solve sometimes.

Self-play against a slightly older version of oneself: a problem is worth
playing if the player solves it now and then, and an earlier player did so less
often. Harder problems come up as the player grows; those that it never solves,
unsolvable ones among them, are never kept, however many there are.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qstar_jax.config import CurriculumConfig
from qstar_jax.domains.splits import TrainingProblems
from qstar_jax.records import Problem
from qstar_jax.selfplay import plays
from qstar_jax.selfplay.curriculum import Curriculum
from qstar_jax.selfplay.player import Job, Player


class Proposer:
  """Fills the curriculum's table with problems of the domain's generator.

  Attributes:
    earlier: params of the earlier player: those of the last proposal.
  """

  def __init__(self, player: Player, params: Any, config: CurriculumConfig):
    """Before the first proposal.

    Args:
      player: plays single lines by the policy alone, which is cheap.
      params: of the first earlier player; copied.
      config: how many problems, and tries of each.
    """
    self._player = player
    self._config = config
    self.earlier = _copy(params)

  def propose(
    self,
    params: Any,
    problems: TrainingProblems,
    curriculum: Curriculum,
    rng: np.random.Generator,
    check_stop: Callable[[], None] = lambda: None,
  ) -> dict[str, float]:
    """Tries new problems, and keeps some of them in the curriculum's table.

    Afterwards the player is the earlier one of the next time.

    Args:
      params: of the player; copied.
      problems: to draw from, held-out ones excluded.
      curriculum: draws difficulties; its table takes what is kept.
      rng: draws problems and plays; consumed.
      check_stop: called now and then; may raise to stop, and nothing has
        changed.

    Returns:
      proposed: problems kept; proposer_solve_rate: of all that were tried, in
      [0, 1]; proposer_tokens: generated and prefilled, by both players.
    """
    config = self._config
    candidates = {
      problem.key: problem
      for problem in (
        problems.sample(rng, curriculum.draw(rng))
        for _ in range(config.proposer_problems)
      )
    }
    tried = list(candidates.values())
    # Both players with the same random numbers: what differs is the params.
    seeds = rng.integers(2**32, size=(len(tried), config.proposer_tries))

    def rates_of(player_params, indices):
      return solve_rates(
        self._player,
        player_params,
        problems,
        [tried[i] for i in indices],
        seeds[indices],
        check_stop,
      )

    rates, tokens = rates_of(params, np.arange(len(tried)))
    partly = np.flatnonzero((rates > 0) & (rates < 1))
    earlier_rates, earlier_tokens = rates_of(self.earlier, partly)
    kept = partly[earlier_rates < rates[partly]]
    for index in kept:
      rate = float(rates[index])
      curriculum.table.update(tried[index], rate, prior=rate, is_solvable=True)
    self.earlier = _copy(params)
    return {
      "proposed": len(kept),
      "proposer_solve_rate": float(rates.mean()),
      "proposer_tokens": tokens + earlier_tokens,
    }


def solve_rates(
  player: Player,
  params: Any,
  problems: TrainingProblems,
  tried: Sequence[Problem],
  seeds: np.ndarray,
  check_stop: Callable[[], None],
) -> tuple[np.ndarray, int]:
  """How often a player solves problems.

  Args:
    player: of the network.
    params: of the network.
    problems: whose domain verifies.
    tried: n problems.
    seeds: int [n, k], of the k plays of each.
    check_stop: called now and then; may raise to stop.

  Returns:
    float [n], the mean score of each problem's plays, and all their tokens.
  """

  jobs = (
    Job(problem, int(seed))
    for problem, of_problem in zip(tried, seeds, strict=True)
    for seed in of_problem
  )
  results = [
    plays.result(problems.domain, played)
    for played in player.play(params, jobs, lambda done: check_stop())
  ]
  scores = np.array([result.verdict.score for result in results])
  tokens = sum(result.tokens for result in results)
  return scores.reshape(seeds.shape).mean(axis=1), tokens


def _copy(params: Any) -> Any:
  """A container of its own: restoring a checkpoint overwrites it."""
  return jax.tree.map(jnp.copy, params)
