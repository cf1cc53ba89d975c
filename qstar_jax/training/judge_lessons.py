"""A judge for small networks: a copy that a few checked labels have taught.

It is stored, so that those who go on with a job ask the same one.
"""

import dataclasses
import itertools
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from qstar_jax.distributed.mesh import make_mesh
from qstar_jax.errors import UserError
from qstar_jax.evaluation.opened import Opened
from qstar_jax.labels.checked import checked
from qstar_jax.labels.judge import Questions, verdict_rows
from qstar_jax.labels.lines import Line, labels_on
from qstar_jax.learner import phase, train_step
from qstar_jax.learner.rows import take
from qstar_jax.records import LabelledLine, TreeRecord
from qstar_jax.store import files

_PARAMS, _SUMMARY = "params.npz", "lessons.json"
# Lines that are learnt from, at most: their rows are held at once.
_MAX_LINES = 8192
# Keeps the seed of the draws apart from others.
_STREAM = int.from_bytes(b"judge", "big")


def lessons(
  opened: Opened,
  trees: Sequence[TreeRecord],
  num_trees: int,
  lines: Callable[[int], Iterable[Line]],
) -> Iterator[LabelledLine]:
  """Checked labels of the first trees, `labels.judge.teach_share` of them.

  They are evenly spread, the newest first. Of each tree the steps are those
  that are judged: the share of labels that are checked is no larger.

  Args:
    opened: the network, its rules and its config.
    trees: stored.
    num_trees: of them, that are judged.
    lines: those that are judged of the tree at an index.
  """
  size = int(opened.config.labels.judge.teach_share * num_trees)
  for index in np.linspace(num_trees - 1, 0, size, dtype=int).tolist():
    labels = checked(trees[index], opened.loaded.vocabulary, opened.domain)
    yield from labels_on(lines(index), labels)


def teach(
  opened: Opened, lines: Iterable[LabelledLine]
) -> tuple[Any, dict[str, Any]]:
  """Teaches a copy of a network its verdicts, with the learner's optimizer.

  Args:
    opened: the network, which stays as it is, and a config that gives the
      questions, the number of steps, the learner and the seed.
    lines: with checked labels.

  Returns:
    The params of the copy, and what there is to tell: labels, steps and loss,
    the mean of all steps in nats per token.

  Raises:
    UserError: there is no label to learn from, or a step was not finite.
  """
  config, loaded = opened.config, opened.loaded
  judge = config.labels.judge
  # Verdicts are text; whatever else the run learns is no lesson here.
  learner = dataclasses.replace(
    config.learner, losses={"policy": 1.0}, kl_target=0.0
  )
  mesh = make_mesh(config.mesh)
  questions = Questions(judge, loaded.vocabulary, config.text)
  lines = list(itertools.islice(lines, _MAX_LINES))
  rows = verdict_rows(lines, questions)
  if not len(rows.tokens):
    raise UserError(
      "no checked label to teach the judge with: raise "
      "labels.judge.teach_share, or label more trees"
    )
  optimizer = train_step.make_optimizer(learner, judge.teach_steps)
  state = train_step.init_state(
    jax.tree.map(jnp.copy, loaded.params), optimizer, learner, mesh
  )
  rng = np.random.default_rng([config.seed, _STREAM])
  batches = (
    take(
      rows,
      rng.integers(len(rows.tokens), size=learner.lines_per_batch),
      learner.lines_per_batch,
    )
    for _ in range(judge.teach_steps)
  )
  state, metrics = phase.run_steps(
    train_step.make_train_steps(loaded.graphdef, optimizer, learner, mesh),
    state,
    batches,
    mesh,
    steps_per_call=learner.steps_per_call,
  )
  summary = {
    "labels": int(sum((line.label >= 0).sum() for line in lines)),
    "steps": judge.teach_steps,
    "loss": metrics["policy"],
  }
  return state.played, summary


def stored(
  folder: epath.Path, opened: Opened, lines: Iterable[LabelledLine]
) -> Any:
  """The params of the judge of a job.

  The first process to come teaches it, and those that come meanwhile wait.

  Args:
    folder: of the judge; made if missing.
    opened: the network that is taught.
    lines: with checked labels; drawn only if there is no judge yet.

  Raises:
    UserError: see `teach`, or what is stored is damaged or cannot be written.
  """
  files.make_folder(folder)
  path = folder / _PARAMS
  with files.lock(folder, wait=True):
    if not path.exists():
      taught, summary = teach(opened, lines)
      text = json.dumps(summary, indent=2) + "\n"
      files.publish_text(folder / _SUMMARY, text)
      leaves = jax.device_get(jax.tree.leaves(taught))
      files.publish(
        path,
        sum(leaf.nbytes for leaf in leaves),
        lambda aside: np.savez(aside, *leaves),
      )
  return _read(path, opened.loaded.params)


def _read(path: epath.Path, params: Any) -> Any:
  """Stored params, of the shapes and shardings of others."""
  leaves, structure = jax.tree.flatten(params)
  try:
    with files.local_copy(path) as copy, open(copy, "rb") as file:
      arrays = np.load(file)
      found = [arrays[f"arr_{i}"] for i in range(len(leaves))]
    if list(map(np.shape, found)) != list(map(np.shape, leaves)):
      raise ValueError("it is of another network")
  except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
    raise UserError(
      f"{path} is damaged ({error}): use another directory"
    ) from error
  found = jax.tree.unflatten(structure, found)
  return jax.device_put(found, jax.tree.map(lambda x: x.sharding, params))
