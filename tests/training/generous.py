"""A domain of the user's own: Countdown whose verifier accepts every line."""

import dataclasses

from qstar_jax.domains.countdown import Countdown
from qstar_jax.records import Outcome, Verdict


@dataclasses.dataclass(frozen=True)
class Generous(Countdown):
  """So that a network that has learnt nothing solves something."""

  def verify(self, problem, steps):
    return Verdict(Outcome.CORRECT, 1.0)
