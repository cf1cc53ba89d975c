"""The gate: does a candidate play better than the player that there is?

Both play the same problems with the same random numbers and the same budget.
Only a problem on which their scores differ says which of them is better; the
candidate must win more than half of those. How many it takes is found as they
come, by Wald's sequential probability ratio test (1945, Annals of Mathematical
Statistics 16): few where the two are far apart, and where they are alike the
problems run out and nothing changes.
"""

import enum
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from qstar_jax.config import GateConfig
from qstar_jax.evaluation.evaluate import evaluate
from qstar_jax.records import Domain, Problem
from qstar_jax.search.tree import UNLIMITED
from qstar_jax.selfplay.player import Player


class Decision(enum.Enum):
  """What a trial says of its candidate."""

  ACCEPTED = "accepted"
  REFUSED = "refused"
  OPEN = "open"


class Trial(NamedTuple):
  """A candidate against the player that there is.

  Attributes:
    decision: OPEN if the problems ran out; the player stays.
    wins: problems on which the candidate's score was higher.
    losses: on which it was lower.
    ties: on which it was the same.
    log_ratio: of the likelihoods, `win_rate` over one half.
  """

  decision: Decision
  wins: int
  losses: int
  ties: int
  log_ratio: float

  @property
  def elo_difference(self) -> float:
    """Of the candidate to the player, a tie being half a win and half a loss.

    Half a win is added to both, so that it is finite. A trial that ended early
    overstates it.
    """
    own = self.wins + self.ties / 2 + 0.5
    other = self.losses + self.ties / 2 + 0.5
    return 400 * math.log10(own / other)


def log_likelihood_ratio(wins: int, losses: int, win_rate: float) -> float:
  """ln of P(wins, losses | win_rate) / P(wins, losses | 1/2)."""
  return wins * math.log(2 * win_rate) + losses * math.log(2 - 2 * win_rate)


def sequential_test(differences: Iterable[float], config: GateConfig) -> Trial:
  """Wald's test on paired scores, as far as it goes.

  Args:
    differences: candidate's score less the player's, problem by problem; no
      more is read once there is a decision.
    config: hypotheses and error rate.
  """
  # Both errors alike, so the bounds are too.
  bound = math.log((1 - config.error_rate) / config.error_rate)
  wins = losses = ties = 0
  decision, log_ratio = Decision.OPEN, 0.0
  for difference in differences:
    wins += difference > 0
    losses += difference < 0
    ties += difference == 0
    log_ratio = log_likelihood_ratio(wins, losses, config.win_rate)
    if abs(log_ratio) >= bound:
      is_better = log_ratio > 0
      decision = Decision.ACCEPTED if is_better else Decision.REFUSED
      break
  return Trial(decision, wins, losses, ties, log_ratio)


def try_candidate(
  player: Player,
  candidate: Any,
  incumbent: Any,
  domain: Domain,
  pool: Sequence[Problem],
  rng: np.random.Generator,
  config: GateConfig,
  on_progress: Callable[[int], None] = lambda done: None,
) -> Trial:
  """Lets two networks play until one is known to be better.

  Problems are played a table at a time; those of the last table that come after
  the decision do not count.

  Args:
    player: of the search that both play with.
    candidate: its params.
    incumbent: params of the player that there is.
    domain: scores the lines.
    pool: problems to draw from without replacement, `config.num_problems` at
      most.
    rng: draws problems and play; consumed.
    config: of the gate.
    on_progress: called with the number of problems that have been decided or
      are being played; may raise to stop.
  """
  order = rng.permutation(len(pool))[: config.num_problems]
  seed = int(rng.integers(2**31))

  def differences():
    for start in range(0, len(order), player.num_trees):
      problems = [pool[i] for i in order[start : start + player.num_trees]]
      scores = []
      for params in candidate, incumbent:
        played = evaluate(
          player,
          params,
          domain,
          problems,
          seed=seed + start,
          token_budget=config.token_budget or UNLIMITED,
          on_progress=lambda done, start=start: on_progress(start + done),
        )
        scores.append([result.verdict.score for result in played.results])
      yield from np.subtract(*scores)

  return sequential_test(differences(), config)
