"""The learner's side of a run: its state, and the phases of the loop."""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath
from flax import nnx

from qstar_jax import checkpoint as checkpoint_lib
from qstar_jax import configuration
from qstar_jax.config import ExperimentConfig
from qstar_jax.distributed import hosts, publication
from qstar_jax.distributed.mesh import own_part
from qstar_jax.distributed.publication import Publisher
from qstar_jax.errors import UserError
from qstar_jax.evaluation import step_evaluation
from qstar_jax.learner import phase, priorities
from qstar_jax.learner import train_step as train_step_lib
from qstar_jax.model import partitioning
from qstar_jax.records import TrainBatch
from qstar_jax.replay import ReplayReader, ReplayWindow
from qstar_jax.search import searchers
from qstar_jax.selfplay.player import Player
from qstar_jax.training import hindsight, inputs, lessons
from qstar_jax.training import setup as setup_lib
from qstar_jax.training.examiner import Examiner
from qstar_jax.training.preemption import PreemptionFlag
from qstar_jax.training.progress import Progress
from qstar_jax.training.promotion import Promotion
from qstar_jax.training.reporting import Reporter
from qstar_jax.training.tree_source import TreeSource


class Trainer:
  """Learns, evaluates and says who plays.

  Attributes:
    setup: of the run, to play on the learner's mesh, or this host's part of it.
    actor_setup: the same on self-play's, which may be another.
    config: likewise.
    mesh: of the learner, over all hosts.
    replay_dir: store of the run's trees.
    train_steps: see `train_step.make_train_steps`.
    state: of the learner.
    window: trees that it samples.
    progress: how far the run has come.
    promotion: the player behind the gate; None before the gate is open.
    examiner: evaluates.
    reporter: hears of everything.
    flag: may stop everything.
  """

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
    mesh, actor_mesh = setup_lib.make_meshes(config.mesh)
    self.mesh = mesh
    setup, params = setup_lib.begin(config, run_dir, mesh, flag.check)
    self.setup = dataclasses.replace(setup, mesh=own_part(mesh))
    self.actor_setup = dataclasses.replace(setup, mesh=own_part(actor_mesh))
    total_steps = (
      config.warm_start.steps
      + config.num_iterations * config.learner.steps_per_iteration
    )
    optimizer = train_step_lib.make_optimizer(config.learner, total_steps)
    self.train_steps = train_step_lib.make_train_steps(
      self.setup.graphdef,
      optimizer,
      config.learner,
      mesh,
      reference_step=config.warm_start.steps,
    )
    self.state = train_step_lib.init_state(
      params, optimizer, config.learner, mesh
    )
    publish = partitioning.make_publish(self.state.played, mesh)
    self._publish = Publisher(
      lambda params: publication.seen_on(publish(params), self.setup.mesh)
    )
    self.progress = Progress()
    self.window = ReplayWindow(
      config.replay,
      seed=config.seed,
      priority_fn=priorities.make_priority_fn(config),
    )
    self.promotion: Promotion | None = None
    self.examiner = self._examiner()

  def _examiner(self) -> Examiner:
    """Plays with the searchers that the config has use for."""
    config = self.config
    return Examiner(
      config,
      self.setup.domain,
      {
        searcher: self.setup.player(
          searchers.for_evaluation(config.search, searcher),
          config.evaluation.batch_size,
        )
        for searcher in ("greedy", config.search.searcher)
        if self.plays or config.evaluation.num_problems > 0
      },
      self._climber(),
      self.setup.held_out.evaluation,
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
    return self.setup.player(search, config.evaluation.batch_size)

  def _step_judge(self) -> Callable[[nnx.State], dict[str, Any]] | None:
    """Judges a PRM by the labels that are held out, if there are any."""
    labelled = self.setup.labelled
    if labelled is None or not labelled.held_out:
      return None
    return functools.partial(
      step_evaluation.prm_figures,
      self.setup.graphdef,
      vocabulary=self.setup.vocabulary,
      lines=labelled.held_out,
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
    hosts.check_alike("the window", self.window.state_dict)
    minutes = hosts.on_first(lambda: self.reporter.minutes)
    progress.is_over = (
      0 < config.max_minutes <= minutes
      or 0 < config.max_tokens <= progress.num_tokens
    )

  @property
  def published(self) -> nnx.State:
    """The learner's newest params that could play, in the actor's layout."""
    return self._publish(self.state.played)

  @property
  def played(self) -> nnx.State:
    """Params that play and are evaluated: the gate's, or the learner's."""
    return self.promotion.params if self.promotion else self.published

  @property
  def played_step(self) -> int:
    """Gradient step of `played`."""
    return self.promotion.step if self.promotion else int(self.state.step)

  def meta(self, source: TreeSource) -> dict[str, Any]:
    """What a checkpoint holds beside arrays."""
    labelled = self.setup.labelled
    vocabulary = self.setup.vocabulary
    return {
      "config": configuration.to_json(self.config),
      "vocabulary": checkpoint_lib.vocabulary_to_json(vocabulary),
      "progress": dataclasses.asdict(self.progress),
      "window": self.window.state_dict(),
      "labels": labelled and labelled.cursors,
      "gate": self.promotion and self.promotion.state_dict(),
      **source.state_dict(),
    }

  def restore(
    self, checkpointer: checkpoint_lib.Checkpointer, source: TreeSource
  ) -> None:
    """Goes back to the newest checkpoint, and the source with it."""
    earlier = source.earlier
    self.state, meta = checkpointer.restore(self.state, earlier)
    source.earlier = earlier
    saved = checkpoint_lib.vocabulary_from_json(meta["vocabulary"])
    if saved.fingerprint != self.setup.vocabulary.fingerprint:
      raise UserError(
        "the checkpoint's vocabulary is not the one that this program trains "
        "from the same config; go on with the version of qstar_jax that made "
        "it, or start a new run directory"
      )
    self.progress = Progress(**meta["progress"])
    source.load_state_dict(meta)
    trees = inputs.trees_dir(self.config) or self.replay_dir
    # Actors of other machines come and go; a store of one's own does not.
    is_shared = self.config.run_mode == "files"
    self.window.load_state_dict(
      meta["window"], ReplayReader(trees, skip_damaged=is_shared)
    )
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
      trees = inputs.read_trees(
        self.config, self.setup.problems, self.flag.check
      )
      found |= {"trees": sum(map(self.window.add, trees))}
    if self.setup.labelled is not None:
      found |= self.setup.labelled.counts
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
    batches = itertools.islice(
      self._random_play(config.learner.batch_size, has_player=False),
      last - first,
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

  def _random_play(
    self, num_rows: int, *, has_player: bool
  ) -> Iterator[TrainBatch]:
    """Batches of hindsight lines for the steps from the next one on."""
    config = self.config
    for step in itertools.count(int(self.state.step)):
      yield hindsight.make_batch(
        self.setup.problems,
        self.setup.vocabulary,
        self.setup.rng(setup_lib.WARM_START, step),
        config=config.warm_start,
        text=config.text,
        difficulties=inputs.difficulties(config),
        num_rows=num_rows,
        lines_per_row=config.learner.lines_per_row,
        has_player=has_player,
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
      self.setup.labelled,
      self.progress.num_labelled_lines,
      self.setup.vocabulary,
      self.setup.rng(setup_lib.LINES, self.progress.iteration),
      functools.partial(self._random_play, has_player=True),
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
        self.setup.domain,
        self.setup.held_out.gate,
        self.published,
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
      self.published,
      step,
      self.setup.rng(setup_lib.GATE, self.progress.iteration),
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
