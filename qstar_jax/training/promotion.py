"""Which params play: those that won their trial last."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qstar_jax.config import GateConfig
from qstar_jax.evaluation import gate
from qstar_jax.records import Domain, Problem
from qstar_jax.selfplay.player import Player


class Result(NamedTuple):
  """What came of a trial.

  Attributes:
    is_accepted: the candidate plays from now on.
    goes_back: the learner is to go on from the player's own params.
    metrics: to log.
  """

  is_accepted: bool
  goes_back: bool
  metrics: dict[str, Any]


class Promotion:
  """The player behind a gate, its rating, and the trials against it.

  Attributes:
    params: of the player; those of the learner's checkpoint `step`.
    step: gradient steps of them.
    rating: Elo, 0 for the first player.
    refusals: in a row, up to now.
  """

  def __init__(
    self,
    config: GateConfig,
    player: Player,
    domain: Domain,
    pool: Sequence[Problem],
    params: nnx.State,
    step: int,
  ):
    """The first player.

    Args:
      config: of the gate.
      player: of the search that trials are played with.
      domain: scores the lines.
      pool: problems of trials alone.
      params: of the first player; copied.
      step: of them.
    """
    self._config = config
    self._player = player
    self._domain = domain
    self._pool = pool
    self.rating = 0.0
    self.refusals = 0
    self._accept(params, step)

  def _accept(self, params: nnx.State, step: int) -> None:
    # Kept for as long as it plays, whatever becomes of the ones given.
    self.params, self.step = jax.tree.map(jnp.copy, params), step
    self.refusals = 0

  def try_candidate(
    self,
    candidate: nnx.State,
    step: int,
    rng: np.random.Generator,
    on_progress: Callable[[int], None],
  ) -> Result:
    """Lets a candidate try to take the player's place.

    Args:
      candidate: params; copied if they are accepted.
      step: of them.
      rng: consumed.
      on_progress: see `gate.try_candidate`.
    """
    trial = gate.try_candidate(
      self._player,
      candidate,
      self.params,
      self._domain,
      self._pool,
      rng,
      self._config,
      on_progress,
    )
    incumbent = self.step
    is_accepted = trial.decision is gate.Decision.ACCEPTED
    if is_accepted:
      self.rating += trial.elo_difference
      self._accept(candidate, step)
    else:
      self.refusals += 1
    goes_back = 0 < self._config.max_refusals == self.refusals
    if goes_back:
      self.refusals = 0
    return Result(
      is_accepted,
      goes_back,
      {
        "decision": trial.decision.value,
        "player": incumbent,
        "wins": trial.wins,
        "losses": trial.losses,
        "ties": trial.ties,
        "log_ratio": trial.log_ratio,
        "elo_difference": trial.elo_difference,
        "rating": self.rating,
        "goes_back": int(goes_back),
      },
    )

  def state_dict(self) -> dict[str, Any]:
    """For a checkpoint's meta; the params are in the checkpoint `step`."""
    return {
      "step": self.step,
      "rating": self.rating,
      "refusals": self.refusals,
    }

  def load_state_dict(self, saved: dict[str, Any]) -> None:
    """Back to what `state_dict` gave, of a player with the same params."""
    self.step = saved["step"]
    self.rating, self.refusals = saved["rating"], saved["refusals"]
