"""Evaluates a run while it goes on: every checkpoint once, reading alone."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from qstar_jax.errors import UserError
from qstar_jax.evaluation.opened import Opened
from qstar_jax.store import files
from qstar_jax.training.preemption import PreemptionFlag
from qstar_jax.training.waiting import Waiter
from qstar_jax.training.watch import RunWatch

_OPTIONS_FILE = "follow.json"

Row = dict[str, Any]


def follow(
  run_dir: epath.Path,
  out: epath.Path,
  flag: PreemptionFlag,
  *,
  options: Mapping[str, Any],
  open_step: Callable[[epath.Path], Opened],
  evaluate: Callable[[Opened, epath.Path], list[Row]],
  show: Callable[[int, list[Row]], None],
) -> None:
  """Evaluates checkpoints as they come, until the run is done.

  A step is done when OUT/step_NUMBER.json is there, which appears whole or not
  at all; so this goes on where it was stopped. Steps that vanish before their
  turn are passed over.

  Args:
    run_dir: of the run; nothing outside `out` is written.
    out: for the results of each step; made if missing.
    flag: asks to stop.
    options: of the evaluation, JSON-able; those that began in `out` must be
      kept to, or its results could not be compared.
    open_step: opens RUN/checkpoints/STEP.
    evaluate: writes files to a folder, and returns summaries.
    show: is given a step and its summaries.

  Raises:
    Preempted: the flag was set.
    UserError: another process writes to `out`, or did so with other options; or
      the evaluation is at fault.
  """
  files.make_folder(out)
  with files.lock(out):
    _check_options(out, options)
    waiter = Waiter(run_dir, flag)
    watch = RunWatch(run_dir, waiter)
    while True:
      # Before the steps are listed: after the last status no step comes.
      status = watch.status()
      for step in watch.steps():
        mark = out / f"step_{step:08d}.json"
        if files.exists(mark):
          continue
        path = run_dir / "checkpoints" / str(step)
        opened = watch.read(step, lambda path=path: open_step(path))
        if opened is None:
          continue
        rows = evaluate(opened, out / f"step_{step:08d}")
        content = json.dumps({"step": step, "results": rows}, indent=1)
        files.publish_text(mark, content + "\n")
        show(step, rows)
      if status is not None and status.is_done:
        return
      waiter.until(
        lambda status=status: watch.status() != status or None,
        f"a checkpoint newer than {status.step} in {run_dir}"
        if status
        else f"checkpoints in {run_dir}",
      )


def _check_options(out: epath.Path, options: Mapping[str, Any]) -> None:
  """Notes the options, or refuses others than those noted before."""
  path = out / _OPTIONS_FILE
  text = json.dumps(dict(options), indent=1) + "\n"
  if not files.exists(path):
    files.publish_text(path, text)
    return
  content = files.read_bytes(path)
  try:
    before = json.loads(content)
    changes = [
      f"{name} is {value!r}, was {before.get(name)!r}"
      for name, value in json.loads(text).items()
      if before.get(name) != value
    ]
  except (ValueError, AttributeError) as error:
    raise UserError(
      f"{path} cannot be read ({error}): remove it with the results beside it, "
      "or name another directory with --out"
    ) from error
  if changes:
    raise UserError(
      f"{out} holds evaluations with other options ({'; '.join(changes)}): "
      "name another directory with --out"
    )
