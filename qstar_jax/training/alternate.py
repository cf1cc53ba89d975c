"""The loop on one mesh: play, learn, evaluate, save, and again.

Everything random is a function of the seed and of counters, and everything
else is in the checkpoint: killed at any instant and run again, it ends with the
same parameters, bit for bit, as if it had not been.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
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
from qstar_jax.evaluation.evaluate import evaluate
from qstar_jax.learner import phase, priorities
from qstar_jax.learner import train_step as train_step_lib
from qstar_jax.model.transformer import init_model
from qstar_jax.records import Domain, Problem, TrainBatch
from qstar_jax.replay import (
  EMPTY_CURSOR,
  ReplayReader,
  ReplayWindow,
  ReplayWriter,
)
from qstar_jax.search.searchers import for_evaluation
from qstar_jax.selfplay import actor
from qstar_jax.selfplay.curriculum import Curriculum
from qstar_jax.selfplay.player import Player
from qstar_jax.selfplay.proposer import Proposer
from qstar_jax.text.training import train_sentencepiece
from qstar_jax.text.vocabulary import ByteVocabulary, Vocabulary
from qstar_jax.training import hindsight
from qstar_jax.training.drift_alarm import DriftAlarm
from qstar_jax.training.preemption import PreemptionFlag
from qstar_jax.training.reporting import Reporter

# Streams of random numbers that must not share any.
_VOCABULARY, _WARM_START, _PROBLEMS, _LINES, _DRIFT, _PROPOSALS = range(6)
_VOCABULARY_LINES = 5000


@dataclasses.dataclass
class Progress:
  """Where the loop stands; saved with every checkpoint.

  Attributes:
    warm_steps: gradient steps of the warm start that are done.
    iteration: iterations that are done.
    num_trees: trees played, and the number of the next one.
    num_tokens: generated and prefilled by self-play.
  """

  warm_steps: int = 0
  iteration: int = 0
  num_trees: int = 0
  num_tokens: int = 0

  def is_done(self, config: ExperimentConfig) -> bool:
    """Whether nothing that the config asks for is left to do."""
    return (
      self.warm_steps >= config.warm_start.steps
      and self.iteration >= config.num_iterations
    )


def is_done(config: ExperimentConfig, run_dir: epath.PathLike) -> bool:
  """Whether the run in a directory came to its end.

  Raises:
    UserError: its newest checkpoint cannot be read.
  """
  meta = checkpoint_lib.latest_meta(run_dir)
  return meta is not None and Progress(**meta["progress"]).is_done(config)


def make_vocabulary(
  config: ExperimentConfig, problems: splits.TrainingProblems
) -> Vocabulary:
  """The vocabulary that a config asks for, trained on random legal play."""
  if config.text.vocabulary == "bytes":
    return ByteVocabulary()
  corpus = hindsight.random_lines(
    problems,
    np.random.default_rng([config.seed, _VOCABULARY]),
    difficulties(config),
    _VOCABULARY_LINES,
  )
  return train_sentencepiece(corpus, config.text.vocabulary_size)


def difficulties(config: ExperimentConfig) -> range:
  """The difficulties that the run trains on."""
  return range(config.domain.min_difficulty, config.domain.max_difficulty + 1)


def held_out_problems(
  config: ExperimentConfig, domain: Domain
) -> list[Problem]:
  """The problems that the run never trains on."""
  return splits.held_out(
    domain,
    min_difficulty=config.domain.min_difficulty,
    max_difficulty=config.domain.max_difficulty,
    num_problems=config.domain.held_out_problems,
    seed=config.seed,
  )


class Trainer:
  """The parts of a run, and the phases that the loop strings together."""

  def __init__(
    self,
    config: ExperimentConfig,
    run_dir: epath.Path,
    reporter: Reporter,
    flag: PreemptionFlag,
  ):
    """Builds what the config describes; compiles and writes nothing yet."""
    self.config = config
    self.reporter = reporter
    self.flag = flag
    self.replay_dir = run_dir / "replay"
    self.mesh = make_mesh(config.mesh)
    self.domain = make_domain(config.domain.name, config.domain.options)
    self.held_out = held_out_problems(config, self.domain)
    self.problems = splits.TrainingProblems.without(self.domain, self.held_out)
    self.vocabulary = make_vocabulary(config, self.problems)
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
    self.actor = self._player(config.search, config.self_play.batch_size)
    self.proposer = None
    if config.curriculum.proposer_problems > 0:
      sampler = self._player(
        for_evaluation(config.search, "sample"), config.self_play.batch_size
      )
      played = self.state.played
      self.proposer = Proposer(sampler, played, config.curriculum)
    self.evaluators = {
      searcher: self._player(
        for_evaluation(config.search, searcher), config.evaluation.batch_size
      )
      for searcher in ("greedy", config.search.searcher)
    }

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
    self.window.load_state_dict(meta["window"], ReplayReader(self.replay_dir))
    self.curriculum.load_state_dict(meta["curriculum"])

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
        difficulties=difficulties(config),
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
      self.state.played,
      self.problems,
      self.curriculum,
      self.window,
      self.vocabulary,
      self._rng(_PROBLEMS, progress.iteration),
      config=config,
      params_version=int(self.state.step),
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
      self.state.played,
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
      self.state.played,
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
    """Takes an iteration's gradient steps on the replay window."""
    start = time.monotonic()
    self.window.expire(int(self.state.step))
    batches = phase.sample_batches(
      self.window, self._rng(_LINES, self.progress.iteration), self.config
    )
    metrics = self._run_steps(
      batches, "learn", 0, self.config.learner.steps_per_iteration
    )
    if not metrics:
      # Checkpoints are numbered by step: this iteration could not be saved.
      raise UserError(
        f"iteration {self.progress.iteration + 1} has no line to learn from; "
        "raise self_play.problems_per_iteration or learner.steps_per_iteration"
      )
    replay = self.window.metrics(int(self.state.step))
    return {
      **metrics,
      **{f"replay_{name}": value for name, value in replay.items()},
      "seconds_learn": time.monotonic() - start,
    }

  def evaluate(self, name: str) -> float:
    """Evaluates on held-out problems; returns the seconds it took."""
    start = time.monotonic()
    settings = self.config.evaluation
    problems = self.held_out[: settings.num_problems]
    for searcher, player in self.evaluators.items():

      def on_progress(done, searcher=searcher):
        self.flag.check()
        self.reporter.progress(f"evaluate {searcher}", done, len(problems))

      result = evaluate(
        player,
        self.state.played,
        self.domain,
        problems,
        seed=self.config.seed,
        on_progress=on_progress,
      )
      self.reporter.log(
        {
          "kind": "evaluation",
          "iteration": self.progress.iteration,
          "step": int(self.state.step),
          "phase": name,
          "searcher": searcher,
          "problems": result.problems,
          "top1": result.top1,
          "any": result.any,
          "mean": result.mean,
          "ci95": list(result.ci95),
          "tokens_per_problem": result.tokens_per_problem,
          "terminal_value": "value",
        }
      )
    return time.monotonic() - start


def train(
  config: ExperimentConfig,
  run_dir: epath.PathLike,
  reporter: Reporter,
  flag: PreemptionFlag,
) -> None:
  """Runs the loop from where the run directory stands to the end.

  Args:
    config: validated, also for the devices.
    run_dir: holds everything the run writes; may be that of a cut run of the
      same config, see `configuration.claim_run_dir`.
    reporter: shows and stores metrics.
    flag: asks to stop.

  Raises:
    Preempted: the flag was set; the newest checkpoint is complete.
    UserError: config, data or disk are at fault.
  """
  run_dir = epath.Path(run_dir)
  trainer = Trainer(config, run_dir, reporter, flag)

  with contextlib.ExitStack() as stack:
    # The writer first: it refuses a directory that another process runs in.
    writer = stack.enter_context(
      ReplayWriter(trainer.replay_dir, shard_trees=config.replay.shard_trees)
    )
    checkpointer = stack.enter_context(
      checkpoint_lib.Checkpointer(run_dir, config.checkpoint)
    )

    def save() -> float:
      start = time.monotonic()
      checkpointer.save(trainer.state, trainer.meta(writer), trainer.earlier)
      return time.monotonic() - start

    def is_due(every_iterations: int) -> bool:
      is_last = progress.iteration == config.num_iterations
      return is_last or progress.iteration % every_iterations == 0

    # Start, or go on from the newest checkpoint.
    if checkpointer.latest_step() is not None:
      trainer.restore(checkpointer, writer)
      reporter.truncate(int(trainer.state.step))
    else:
      writer.truncate(EMPTY_CURSOR)
      reporter.truncate(-1)
      trainer.evaluate("random")
      save()
    progress = trainer.progress

    # Warm start, in stretches that are saved one by one.
    while progress.warm_steps < config.warm_start.steps:
      trainer.warm_start()
      if progress.warm_steps == config.warm_start.steps:
        trainer.evaluate("warm_start")
      save()

    # Self-play and learning take turns.
    seconds_save = 0.0
    while progress.iteration < config.num_iterations:
      metrics = trainer.play(writer)
      metrics |= trainer.learn()
      progress.iteration += 1
      if is_due(config.evaluation.every_iterations):
        metrics["seconds_evaluate"] = trainer.evaluate("self_play")
      # Logged before it is saved: a cut in between repeats both, loses neither.
      reporter.log(
        {
          "kind": "iteration",
          "iteration": progress.iteration,
          "step": int(trainer.state.step),
          **metrics,
          "seconds_save": seconds_save,
        }
      )
      if is_due(config.checkpoint.every_iterations):
        seconds_save = save()
    checkpointer.wait()
