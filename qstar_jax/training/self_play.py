"""The actor's side of a run: problems, play, and what the play tells."""

import time
from typing import Any, NamedTuple

from flax import nnx

from qstar_jax.records import TreeRecord
from qstar_jax.replay import ReplayWindow
from qstar_jax.search import searchers
from qstar_jax.selfplay import actor
from qstar_jax.selfplay.curriculum import Curriculum
from qstar_jax.selfplay.proposer import Proposer
from qstar_jax.training import setup as setup_lib
from qstar_jax.training.drift_alarm import DriftAlarm
from qstar_jax.training.preemption import PreemptionFlag
from qstar_jax.training.reporting import Reporter
from qstar_jax.training.setup import Setup


class Round(NamedTuple):
  """What an actor played with the same params.

  Attributes:
    records: the trees, in order.
    tokens: generated and prefilled, the proposer's included.
    metrics: to log.
    curriculum: state of the curriculum afterwards, JSON-able.
  """

  records: list[TreeRecord]
  tokens: int
  metrics: dict[str, Any]
  curriculum: dict[str, Any]


class SelfPlay:
  """Plays one round of problems after another.

  Attributes:
    window: trees whose problems are searched again; takes every new tree.
    curriculum: which problems come more often.
    proposer: looks for problems; None if there is none.
    drift_alarm: compares the trees with what should have played.
  """

  def __init__(
    self,
    setup: Setup,
    params: nnx.State,
    window: ReplayWindow,
    reporter: Reporter,
    flag: PreemptionFlag,
    *,
    actor_id: int = 0,
  ):
    """Compiles nothing yet.

    Args:
      setup: of the run.
      params: of the proposer's first earlier player; copied.
      window: of trees played before.
      reporter: hears of progress and of drift.
      flag: may stop a round.
      actor_id: who plays.
    """
    config = setup.config
    self.window = window
    self.curriculum = Curriculum(
      config.curriculum,
      config.domain.min_difficulty,
      config.domain.max_difficulty,
    )
    self._setup = setup
    self._reporter = reporter
    self._flag = flag
    self._actor_id = actor_id
    num_trees = config.self_play.batch_size
    self._player = setup.player(config.search, num_trees)
    self.proposer: Proposer | None = None
    if config.curriculum.proposer_problems > 0:
      sampler = searchers.for_evaluation(config.search, "sample")
      self.proposer = Proposer(
        setup.player(sampler, num_trees), params, config.curriculum
      )
    self.drift_alarm = DriftAlarm(setup.graphdef, config, setup.mesh, reporter)

  def play(
    self,
    params: nnx.State,
    *,
    params_version: int,
    step: int,
    index: int,
    first_sequence: int,
    num_plays: int,
  ) -> Round:
    """Plays a round.

    Args:
      params: that play.
      params_version: gradient step of them.
      step: of the learner, for what is reported.
      index: of the round; with the seed it determines the problems.
      first_sequence: number of the first tree.
      num_plays: trees to play, >= 1.

    Raises:
      Preempted: the flag was set.
      UserError: another policy played than should have, see `DriftAlarm`.
    """
    config, setup = self._setup.config, self._setup

    def on_turn(done):
      self._flag.check()
      self._reporter.progress("self_play", done, num_plays)

    start = time.monotonic()
    proposed = self._propose(params, index)
    plays = []
    for play in actor.play_iteration(
      self._player,
      params,
      setup.problems,
      self.curriculum,
      self.window,
      setup.vocabulary,
      setup.rng(setup_lib.PROBLEMS, index, self._actor_id),
      config=config,
      params_version=params_version,
      first_sequence=first_sequence,
      num_plays=num_plays,
      actor_id=self._actor_id,
      on_turn=on_turn,
    ):
      self.window.add(play.record)
      plays.append(play)
    actor.update_curriculum(self.curriculum, plays, config.curriculum)
    tokens = sum(play.result.tokens for play in plays)
    tokens += proposed.get("proposer_tokens", 0)
    seconds = time.monotonic() - start
    records = [play.record for play in plays]
    drift = self.drift_alarm.measure(
      params,
      records,
      self.window,
      setup.rng(setup_lib.DRIFT, index, self._actor_id),
      step=step,
    )
    metrics = {
      **actor.summarise(plays),
      **proposed,
      "table_problems": len(self.curriculum.table),
      "tokens_per_second": tokens / seconds,
      "seconds_play": seconds,
      **drift,
    }
    return Round(records, tokens, metrics, self.curriculum.state_dict())

  def _propose(self, params: nnx.State, index: int) -> dict[str, float]:
    """Lets the proposer look for problems, if it is time for it."""
    period = self._setup.config.curriculum.proposer_every_iterations
    if self.proposer is None or index % period:
      return {}
    return self.proposer.propose(
      params,
      self._setup.problems,
      self.curriculum,
      self._setup.rng(setup_lib.PROPOSALS, index, self._actor_id),
      self._flag.check,
    )
