"""The loop of every mode: trees, learning, the gate, evaluation, a checkpoint.

What the modes differ in is where the trees come from: see `TreeSource`.
"""

import contextlib
import time

from etils import epath

from qstar_jax import checkpoint as checkpoint_lib
from qstar_jax.config import ExperimentConfig
from qstar_jax.training.alternate import Alternate
from qstar_jax.training.files_mode import StoredTrees
from qstar_jax.training.preemption import PreemptionFlag
from qstar_jax.training.progress import Progress
from qstar_jax.training.reporting import Reporter
from qstar_jax.training.split_mode import Split
from qstar_jax.training.trainer import Trainer

# Where the trees come from, by `run_mode`.
_SOURCES = {"alternate": Alternate, "split": Split, "files": StoredTrees}


def is_done(config: ExperimentConfig, run_dir: epath.PathLike) -> bool:
  """Whether the run in a directory came to its end.

  Raises:
    UserError: its newest checkpoint cannot be read.
  """
  meta = checkpoint_lib.latest_meta(run_dir)
  return meta is not None and Progress(**meta["progress"]).is_done(config)


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
    # The source first: it refuses a directory that another process runs in.
    source = stack.enter_context(_SOURCES[config.run_mode](trainer))
    checkpointer = stack.enter_context(
      checkpoint_lib.Checkpointer(run_dir, config.checkpoint)
    )

    def save() -> float:
      start = time.monotonic()
      checkpointer.save(trainer.state, trainer.meta(source), source.earlier)
      return time.monotonic() - start

    def is_due(every_iterations: int) -> bool:
      is_last = progress.is_done(config)
      return is_last or progress.iteration % every_iterations == 0

    # Start, or go on from the newest checkpoint.
    if checkpointer.latest_step() is not None:
      trainer.restore(checkpointer, source)
      reporter.truncate(int(trainer.state.step))
    else:
      source.start_anew()
      reporter.truncate(-1)
      trainer.read_data()
      trainer.evaluate("random")
      save()
    progress = trainer.progress

    # Warm start, in stretches that are saved one by one.
    while progress.warm_steps < config.warm_start.steps:
      trainer.warm_start()
      if progress.warm_steps == config.warm_start.steps:
        trainer.evaluate("warm_start")
      save()

    # Self-play, if there is any, and learning.
    trainer.open_gate()
    source.publish(lambda: trainer.played, trainer.played_step)
    seconds_save = 0.0
    while not progress.is_done(config):
      step = int(trainer.state.step)
      metrics = source.bring(progress, step) if trainer.plays else {}
      metrics |= trainer.learn()
      trainer.finish_iteration()
      is_accepted = False
      if config.gate.every_iterations and is_due(config.gate.every_iterations):
        is_accepted, of_gate = trainer.try_candidate(checkpointer)
        metrics |= of_gate
      source.publish(lambda: trainer.played, trainer.played_step)
      if is_due(config.evaluation.every_iterations):
        metrics["seconds_evaluate"] = trainer.evaluate(
          "self_play" if trainer.plays else "offline"
        )
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
      if is_accepted or is_due(config.checkpoint.every_iterations):
        seconds_save = save()
    checkpointer.wait()
