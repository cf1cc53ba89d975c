"""The parts of a run, and the phases that the loop strings together."""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from etils import epath
from flax import nnx

from qstar_jax import checkpoint as checkpoint_lib
from qstar_jax import configuration
from qstar_jax.config import ExperimentConfig
from qstar_jax.distributed.mesh import make_mesh
from qstar_jax.domains import make_domain, splits
from qstar_jax.errors import UserError
from qstar_jax.evaluation import step_evaluation
from qstar_jax.learner import phase, priorities
from qstar_jax.learner import train_step as train_step_lib
from qstar_jax.model.transformer import init_model
from qstar_jax.records import TrainBatch
from qstar_jax.replay import ReplayReader, ReplayWindow, ReplayWriter
from qstar_jax.search import searchers
from qstar_jax.selfplay import actor
from qstar_jax.selfplay.curriculum import Curriculum
from qstar_jax.selfplay.player import Player
from qstar_jax.selfplay.proposer import Proposer
from qstar_jax.training import hindsight, inputs, lessons
from qstar_jax.training.drift_alarm import DriftAlarm
from qstar_jax.training.examiner import Examiner
from qstar_jax.training.labelled_data import open_labels
from qstar_jax.training.preemption import PreemptionFlag
from qstar_jax.training.progress import Progress
from qstar_jax.training.promotion import Promotion
from qstar_jax.training.reporting import Reporter

# Streams of random numbers that must not share any; others are `inputs`'s.
_WARM_START, _PROBLEMS, _LINES, _DRIFT, _PROPOSALS = range(1, 6)
_GATE = 7


class Trainer:
  """The parts of a run, and the phases that the loop strings together."""

  def __init__(
    self,
    config: ExperimentConfig,
    run_dir: epath.Path,
    reporter: Reporter,
    flag: PreemptionFlag,
  ):
    """Builds what the config describes; compiles nothing yet.

    Nothing is written but RUN/labels, of an outside file.
    """
    self.config = config
    self.reporter = reporter
    self.flag = flag
    self.replay_dir = run_dir / "replay"
    self.mesh = make_mesh(config.mesh)
    self.domain = make_domain(config.domain.name, config.domain.options)
    self.held_out = splits.held_out_by(config, self.domain)
    self.problems = splits.TrainingProblems.without(
      self.domain, itertools.chain(*self.held_out)
    )
    self.labelled = None
    if config.data.labels:
      self.labelled = open_labels(config, run_dir, self.problems, flag.check)
    self.vocabulary = inputs.make_vocabulary(
      config, self.problems, self.labelled
    )
    self.graphdef, params = init_model(
      config.model, self.vocabulary.size, config.seed
    )
    total_steps = (
      config.warm_start.steps
      + config.num_iterations * config.learner.steps_per_iteration
    )
    optimizer = train_step_lib.make_optimizer(config.learner, total_steps)
    self.train_steps = train_step_lib.make_train_steps(
      self.graphdef,
      optimizer,
      config.learner,
      self.mesh,
      reference_step=config.warm_start.steps,
    )
    self.state = train_step_lib.init_state(
      params, optimizer, config.learner, self.mesh
    )
    self.drift_alarm = DriftAlarm(self.graphdef, config, self.mesh, reporter)
    self.progress = Progress()
    self.window = ReplayWindow(
      config.replay,
      seed=config.seed,
      priority_fn=priorities.make_priority_fn(config),
    )
    self.curriculum = Curriculum(
      config.curriculum,
      config.domain.min_difficulty,
      config.domain.max_difficulty,
    )
    self.promotion: Promotion | None = None
    self._make_players()

  def _make_players(self) -> None:
    """Those that the config has use for."""
    config = self.config
    self.actor = self.proposer = None
    if self.plays:
      self.actor = self._player(config.search, config.self_play.batch_size)
    if self.plays and config.curriculum.proposer_problems > 0:
      sampler = self._player(
        searchers.for_evaluation(config.search, "sample"),
        config.self_play.batch_size,
      )
      played = self.state.played
      self.proposer = Proposer(sampler, played, config.curriculum)
    self.examiner = Examiner(
      config,
      self.domain,
      {
        searcher: self._player(
          searchers.for_evaluation(config.search, searcher),
          config.evaluation.batch_size,
        )
        for searcher in ("greedy", config.search.searcher)
        if self.plays or config.evaluation.num_problems > 0
      },
      self._climber(),
      self.held_out.evaluation,
      self._step_judge(),
      self.reporter,
      self.flag,
    )

  def _climber(self) -> Player | None:
    """Plays the ladder, if there is one."""
    config = self.config
    if not config.evaluation.ladder_budgets:
      return None
    search = searchers.sized_for_budget(
      searchers.for_evaluation(config.search, config.search.searcher),
      max(config.evaluation.ladder_budgets),
      config.text,
    )
    return self._player(search, config.evaluation.batch_size)

  def _step_judge(self) -> Callable[[nnx.State], dict[str, Any]] | None:
    """Judges a PRM by the labels that are held out, if there are any."""
    if self.labelled is None or not self.labelled.held_out:
      return None
    return functools.partial(
      step_evaluation.prm_figures,
      self.graphdef,
      vocabulary=self.vocabulary,
      lines=self.labelled.held_out,
      text=self.config.text,
      batch_size=self.config.evaluation.batch_size,
      seed=self.config.seed,
    )

  @property
  def plays(self) -> bool:
    """Whether the run makes trees of its own."""
    return self.config.self_play.problems_per_iteration > 0

  def finish_iteration(self) -> None:
    """Counts an iteration, and looks whether it was the last."""
    config, progress = self.config, self.progress
    progress.iteration += 1
    progress.is_over = (
      0 < config.max_minutes <= self.reporter.minutes
      or 0 < config.max_tokens <= progress.num_tokens
    )

  @property
  def played(self) -> nnx.State:
    """Params that play and are evaluated: the gate's, or the learner's."""
    return self.promotion.params if self.promotion else self.state.played

  @property
  def played_step(self) -> int:
    """Gradient step of `played`."""
    return self.promotion.step if self.promotion else int(self.state.step)

  def _player(self, search, num_trees: int) -> Player:
    return Player(
      self.graphdef,
      self.domain,
      self.vocabulary,
      model=self.config.model,
      text=self.config.text,
      search=search,
      num_trees=num_trees,
      mesh=self.mesh,
    )

  def _rng(self, stream: int, index: int) -> np.random.Generator:
    return np.random.default_rng([self.config.seed, stream, index])

  @property
  def earlier(self) -> nnx.State | None:
    """Params of the proposer's earlier player, if there is a proposer."""
    return self.proposer and self.proposer.earlier

  def meta(self, writer: ReplayWriter) -> dict[str, Any]:
    """What a checkpoint holds beside arrays."""
    return {
      "config": configuration.to_json(self.config),
      "vocabulary": checkpoint_lib.vocabulary_to_json(self.vocabulary),
      "progress": dataclasses.asdict(self.progress),
      "replay": dict(writer.cursor),
      "window": self.window.state_dict(),
      "curriculum": self.curriculum.state_dict(),
      "labels": self.labelled and self.labelled.cursors,
      "gate": self.promotion and self.promotion.state_dict(),
    }

  def restore(
    self, checkpointer: checkpoint_lib.Checkpointer, writer: ReplayWriter
  ) -> None:
    """Goes back to the newest checkpoint, and the replay store with it."""
    self.state, meta = checkpointer.restore(self.state, self.earlier)
    saved = checkpoint_lib.vocabulary_from_json(meta["vocabulary"])
    if saved.fingerprint != self.vocabulary.fingerprint:
      raise UserError(
        "the checkpoint's vocabulary is not the one that this program trains "
        "from the same config; go on with the version of qstar_jax that made "
        "it, or start a new run directory"
      )
    self.progress = Progress(**meta["progress"])
    writer.truncate(meta["replay"])
    trees = inputs.trees_dir(self.config) or self.replay_dir
    self.window.load_state_dict(meta["window"], ReplayReader(trees))
    self.curriculum.load_state_dict(meta["curriculum"])
    if saved := meta.get("gate"):
      # The player's params are in a checkpoint of their own.
      self._go_back_to(saved["step"], checkpointer)
      self.open_gate()
      self.promotion.load_state_dict(saved)
      self.state, _ = checkpointer.restore(self.state)

  def read_data(self) -> None:
    """Fills the window from stored trees, and tells what data there is."""
    found: dict[str, float] = {}
    if self.config.data.trees:
      trees = inputs.read_trees(self.config, self.problems, self.flag.check)
      found |= {"trees": sum(map(self.window.add, trees))}
    if self.labelled is not None:
      found |= self.labelled.counts
      if message := found.pop("message", ""):
        self.reporter.log({"kind": "warning", "step": 0, "message": message})
    if found:
      self.reporter.log({"kind": "data", "step": 0, **found})

  def warm_start(self) -> None:
    """Takes the next stretch of hindsight warm-start steps."""
    config = self.config
    start = time.monotonic()
    first = self.progress.warm_steps
    last = min(
      first + config.learner.steps_per_iteration, config.warm_start.steps
    )
    batches = (
      hindsight.make_batch(
        self.problems,
        self.vocabulary,
        self._rng(_WARM_START, step),
        config=config.warm_start,
        text=config.text,
        difficulties=inputs.difficulties(config),
        batch_size=config.learner.batch_size,
      )
      for step in range(first, last)
    )
    metrics = self._run_steps(
      batches, "warm_start", first, config.warm_start.steps
    )
    self.progress.warm_steps = last
    seconds = time.monotonic() - start
    self.reporter.log(
      {
        "kind": "warm_start",
        "step": int(self.state.step),
        **metrics,
        "steps_per_second": (last - first) / seconds,
      }
    )

  def play(self, writer: ReplayWriter) -> dict[str, float]:
    """Plays an iteration's trees into the store and the window."""
    config, progress = self.config, self.progress
    start = time.monotonic()
    proposed = self._propose()
    results = []
    played = actor.play_iteration(
      self.actor,
      self.played,
      self.problems,
      self.curriculum,
      self.window,
      self.vocabulary,
      self._rng(_PROBLEMS, progress.iteration),
      config=config,
      params_version=self.played_step,
      first_sequence=progress.num_trees,
      check_stop=self.flag.check,
    )
    for play in played:
      writer.append(play.record)
      self.window.add(play.record)
      results.append(play)
      self.reporter.progress(
        "self_play", len(results), config.self_play.problems_per_iteration
      )
    writer.flush()
    actor.update_curriculum(self.curriculum, results, config.curriculum)
    tokens = sum(play.result.tokens for play in results)
    tokens += proposed.get("proposer_tokens", 0)
    progress.num_trees += len(results)
    progress.num_tokens += tokens
    seconds = time.monotonic() - start
    drift = self.drift_alarm.measure(
      self.played,
      [play.record for play in results],
      self.window,
      self._rng(_DRIFT, progress.iteration),
      step=int(self.state.step),
    )
    return {
      **actor.summarise(results),
      **proposed,
      "table_problems": len(self.curriculum.table),
      "trees": progress.num_trees,
      "tokens": progress.num_tokens,
      "tokens_per_second": tokens / seconds,
      "seconds_play": seconds,
      **drift,
    }

  def _propose(self) -> dict[str, float]:
    """Lets the proposer look for problems, if it is time for it."""
    iteration = self.progress.iteration
    period = self.config.curriculum.proposer_every_iterations
    if self.proposer is None or iteration % period:
      return {}
    return self.proposer.propose(
      self.played,
      self.problems,
      self.curriculum,
      self._rng(_PROPOSALS, iteration),
      self.flag.check,
    )

  def _run_steps(
    self, batches: Iterator[TrainBatch], name: str, first: int, total: int
  ) -> dict[str, float]:
    """A gradient step per batch, from `first` on of a phase of `total`."""

    def on_call(done):
      self.flag.check()
      self.reporter.progress(name, first + done, total)

    self.state, metrics = phase.run_steps(
      self.train_steps,
      self.state,
      batches,
      self.mesh,
      steps_per_call=self.config.learner.steps_per_call,
      on_call=on_call,
    )
    return metrics

  def learn(self) -> dict[str, float]:
    """Takes an iteration's gradient steps on window and labelled lines."""
    start = time.monotonic()
    # All trees of the phase are drawn before it: what counts is the age that
    # they have at its last step.
    last_step = (
      int(self.state.step) + self.config.learner.steps_per_iteration - 1
    )
    self.window.expire(last_step)
    batches, drawn = lessons.make_batches(
      self.config,
      self.window,
      self.labelled,
      self.progress.num_labelled_lines,
      self.vocabulary,
      self._rng(_LINES, self.progress.iteration),
    )
    self.progress.num_labelled_lines = drawn.get("labelled_lines", 0)
    metrics = self._run_steps(
      batches, "learn", 0, self.config.learner.steps_per_iteration
    )
    if not metrics:
      # Checkpoints are numbered by step: this iteration could not be saved.
      raise UserError(
        f"iteration {self.progress.iteration + 1} has no line to learn from; "
        "raise self_play.problems_per_iteration, learner.steps_per_iteration, "
        "replay.max_reuse or replay.max_staleness"
      )
    replay = self.window.metrics(last_step)
    return {
      **metrics,
      **{
        f"replay_{name}": value
        for name, value in replay.items()
        # Another run's versions are no age.
        if self.plays or "staleness" not in name
      },
      **drawn,
      "seconds_learn": time.monotonic() - start,
    }

  def open_gate(self) -> None:
    """Makes the learner's params the first player of the gate, if there is one.

    Later calls change nothing.
    """
    config = self.config
    if config.gate.every_iterations and self.promotion is None:
      self.promotion = Promotion(
        config.gate,
        self.examiner.players[config.search.searcher],
        self.domain,
        self.held_out.gate,
        self.state.played,
        int(self.state.step),
      )

  def try_candidate(
    self, checkpointer: checkpoint_lib.Checkpointer
  ) -> tuple[bool, dict[str, float]]:
    """Lets the learner's params try to become the player.

    Returns:
      Whether they did, so that they must be saved; and what to log.
    """

    def on_progress(done):
      self.flag.check()
      self.reporter.progress("gate", done, self.config.gate.num_problems)

    start = time.monotonic()
    step = int(self.state.step)
    result = self.promotion.try_candidate(
      self.state.played,
      step,
      self._rng(_GATE, self.progress.iteration),
      on_progress,
    )
    self.reporter.log(
      {
        "kind": "trial",
        "iteration": self.progress.iteration,
        "step": step,
        **result.metrics,
      }
    )
    if result.goes_back:
      self._go_back_to(self.promotion.step, checkpointer)
    return result.is_accepted, {"seconds_gate": time.monotonic() - start}

  def _go_back_to(
    self, step: int, checkpointer: checkpoint_lib.Checkpointer
  ) -> None:
    """Makes the learner's state that of an earlier checkpoint.

    Its step stays: checkpoints are numbered by it.
    """
    newest = self.state.step
    state, _ = checkpointer.restore(self.state, step=step)
    self.state = state._replace(step=newest)

  def evaluate(self, name: str) -> float:
    """Evaluates the player; returns the seconds it took."""
    return self.examiner.examine(
      self.played,
      phase=name,
      iteration=self.progress.iteration,
      step=int(self.state.step),
    )
