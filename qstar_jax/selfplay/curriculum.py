"""Which problems come more often: those solved about half of the time."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from qstar_jax.config import CurriculumConfig
from qstar_jax.replay.sampling import mixed_with_uniform
from qstar_jax.selfplay.problem_table import ProblemTable

# Solve rate taken for granted where nothing has been played yet.
_UNKNOWN_RATE = 0.5


class Curriculum:
  """Draws difficulties by their running solve rates.

  A share is uniform, so that no difficulty is forgotten; the rest goes to each
  difficulty in proportion to p (1 - p), the variance of its outcome: nothing is
  learned where every problem is solved, or none.

  Attributes:
    table: the same for single problems.
  """

  def __init__(
    self, config: CurriculumConfig, min_difficulty: int, max_difficulty: int
  ):
    """Knows nothing yet.

    Args:
      config: of the curriculum.
      min_difficulty: easiest.
      max_difficulty: hardest, >= min_difficulty.
    """
    self._config = config
    self.table = ProblemTable(config.table_problems, config.decay)
    self._difficulties = np.arange(min_difficulty, max_difficulty + 1)
    # Discounted numbers of plays, and of those solved.
    self._played = np.zeros(self._difficulties.size)
    self._solved = np.zeros(self._difficulties.size)

  def solve_rates(self) -> dict[int, float]:
    """Running solve rate of every difficulty, in [0, 1]."""
    rates = np.where(
      self._played > 0,
      self._solved / np.maximum(self._played, 1e-9),
      _UNKNOWN_RATE,
    )
    return dict(zip(self._difficulties.tolist(), rates.tolist(), strict=True))

  def probabilities(self) -> np.ndarray:
    """Of every difficulty, easiest first; they sum to 1."""
    rates = np.array(list(self.solve_rates().values()))
    return mixed_with_uniform(rates * (1 - rates), self._config.uniform_share)

  def draw(self, rng: np.random.Generator) -> int:
    """The difficulty of the next problem."""
    return int(rng.choice(self._difficulties, p=self.probabilities()))

  def update(self, results: Iterable[tuple[int, float]]) -> None:
    """Takes in an iteration's (difficulty, score in [0, 1]) pairs."""
    self._played *= self._config.decay
    self._solved *= self._config.decay
    for difficulty, score in results:
      index = difficulty - self._difficulties[0]
      self._played[index] += 1
      self._solved[index] += score

  def state_dict(self) -> dict[str, Any]:
    """Everything that was learned; JSON-able."""
    return {
      "played": self._played.tolist(),
      "solved": self._solved.tolist(),
      "table": self.table.state_dict(),
    }

  def load_state_dict(self, state: dict[str, Any]) -> None:
    """Makes the curriculum what it was at `state_dict`."""
    self._played = np.array(state["played"])
    self._solved = np.array(state["solved"])
    # A run that was begun before there were tables has none.
    self.table.load_state_dict(state.get("table", []))
