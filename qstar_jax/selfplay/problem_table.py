"""Problems that are solved now and then, to be played again."""

import dataclasses
from typing import Any

import numpy as np

from qstar_jax.records import Problem


@dataclasses.dataclass
class _Row:
  """A problem with the discounted numbers of its plays and of those solved."""

  problem: Problem
  played: float
  solved: float

  @property
  def weight(self) -> float:
    """p (1 - p), the variance of an outcome at solve rate p."""
    rate = self.solved / self.played
    return rate * (1 - rate)


# Below it a problem would not be drawn before it is pushed out.
_LEAST_WEIGHT = 1e-6


class ProblemTable:
  """Problems that can be solved, by how often the player does: p (1 - p).

  A problem enters once some line has solved it: what was never solved does not
  come again from here, however many such problems there are. One that is
  always solved, or no longer, fades with every play as `decay` says.
  """

  def __init__(self, max_problems: int, decay: float):
    """Knows no problem.

    Args:
      max_problems: the one whose play is longest ago leaves when there are
        more, >= 1.
      decay: weight of a problem's past when it is played again, in [0, 1].
    """
    self._max_problems = max_problems
    self._decay = decay
    self._rows: dict[str, _Row] = {}  # By key, the last played last.

  def __len__(self) -> int:
    return len(self._rows)

  def weights(self) -> dict[str, float]:
    """p (1 - p) by problem key, each above 0."""
    return {key: row.weight for key, row in self._rows.items()}

  def update(
    self, problem: Problem, score: float, *, prior: float, is_solvable: bool
  ) -> None:
    """Takes in a play of a problem.

    Args:
      problem: that was played.
      score: of the play, in [0, 1].
      prior: solve rate to expect, in [0, 1]; of a problem that is not in the
        table it counts as a play before this one.
      is_solvable: some line of the play solved the problem; otherwise the table
        does not take it if it is new.
    """
    if problem.key not in self._rows and not is_solvable:
      return
    row = self._rows.pop(problem.key, _Row(problem, 1.0, prior))
    row.played = self._decay * row.played + 1
    row.solved = self._decay * row.solved + score
    if row.weight > _LEAST_WEIGHT:
      self._rows[problem.key] = row
    if len(self._rows) > self._max_problems:
      del self._rows[next(iter(self._rows))]

  def draw(self, num_problems: int, rng: np.random.Generator) -> list[Problem]:
    """Different problems, one after another by their weights.

    Args:
      num_problems: wanted, >= 0.
      rng: consumed.

    Returns:
      As many problems, or all that there are if they are fewer.
    """
    size = min(num_problems, len(self._rows))
    if size == 0:
      return []
    rows = list(self._rows.values())
    weights = np.array([row.weight for row in rows])
    chosen = rng.choice(
      len(rows), size, replace=False, p=weights / weights.sum()
    )
    return [rows[index].problem for index in chosen]

  def state_dict(self) -> list[dict[str, Any]]:
    """Every row; JSON-able."""
    return [dataclasses.asdict(row) for row in self._rows.values()]

  def load_state_dict(self, state: list[dict[str, Any]]) -> None:
    """Makes the table what it was at `state_dict`."""
    self._rows = {
      row["problem"]["key"]: _Row(
        Problem(**row["problem"]), row["played"], row["solved"]
      )
      for row in state
    }
