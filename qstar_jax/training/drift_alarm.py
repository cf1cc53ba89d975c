"""Measures once an iteration whether the actor plays what it should."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from qstar_jax.config import ExperimentConfig
from qstar_jax.errors import UserError
from qstar_jax.learner.drift import DriftMeter
from qstar_jax.records import TreeRecord
from qstar_jax.replay import ReplayWindow
from qstar_jax.training.reporting import Reporter


class DriftAlarm:
  """Reports drift over `learner.max_drift`, or ends the run."""

  def __init__(
    self,
    graphdef: nnx.GraphDef,
    config: ExperimentConfig,
    mesh: Mesh,
    reporter: Reporter,
  ):
    """Compiles nothing yet."""
    self._meter = DriftMeter(graphdef, config, mesh)
    self._config = config.learner
    self._reporter = reporter

  def measure(
    self,
    params: Any,
    new: Sequence[TreeRecord],
    window: ReplayWindow,
    rng: np.random.Generator,
    *,
    step: int,
  ) -> dict[str, float]:
    """What to log of new trees, and of those that the learner samples.

    Args:
      params: that should play.
      new: the trees that have just come.
      window: of all trees; not changed.
      rng: consumed.
      step: of the params.

    Returns:
      Of new trees, see `learner.drift.statistics`; drift_alarm: 1 if they
      drifted too far, else 0; replay_logprob_drift: of the window's trees.

    Raises:
      UserError: they drifted too far, and `learner.on_drift` is `stop`.
    """
    start = time.monotonic()
    old = window.peek(self._config.lines_per_batch, rng)
    of_new, of_old = (
      self._meter.measure(params, trees, rng) for trees in (new, old)
    )
    is_alarm = self._is_alarm(of_new["logprob_drift"])
    if is_alarm:
      self._raise_alarm(of_new["logprob_drift"], step)
    return {
      **of_new,
      "drift_alarm": int(is_alarm),
      "replay_logprob_drift": of_old["logprob_drift"],
      "seconds_drift": time.monotonic() - start,
    }

  def _is_alarm(self, drift: float) -> bool:
    limit = self._config.max_drift
    # One that is no number is one.
    return limit > 0 and not drift <= limit

  def _raise_alarm(self, drift: float, step: int) -> None:
    message = (
      f"logprob_drift is {drift:.3g} nats per step, above learner.max_drift = "
      f"{self._config.max_drift:.3g}: the trees that have just come were "
      "sampled by another policy than the one that should play; give the actor "
      "newer params, or raise learner.max_drift"
    )
    if self._config.on_drift == "stop":
      raise UserError(message)
    self._reporter.log({"kind": "warning", "step": step, "message": message})
