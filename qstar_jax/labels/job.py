"""A labelling job: items in, a dataset of labelled lines out.

Several processes write side by side, process i of n the lines of the items i,
i + n, ... to a folder of its own. How many items a process has done is stored
in one with their lines, so that one that was killed goes on where its lines
end, and the dataset is the same bit for bit.
"""

import collections
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from etils import epath

from qstar_jax.errors import UserError
from qstar_jax.labels.codec import LINES
from qstar_jax.records import LabelledLine
from qstar_jax.store import files
from qstar_jax.store import manifest as manifest_lib
from qstar_jax.store.writer import StoreWriter

JOB_FILE = "job.json"
COUNTS_FILE = "counts.json"

# Lines of the item with this number, always the same ones. An item is whatever
# the source works on at once: a tree, a problem, a batch of lines.
Source = Callable[[int], Iterable[LabelledLine]]

# What a process counts, and stores as its progress.
_COUNTS = (
  "items",
  "lines",
  "labelled_steps",
  "labels_0",
  "labels_1",
  "labels_between",
  "tokens",
)


def claim(
  out: epath.Path, job: Mapping[str, Any], inputs: Mapping[str, Any]
) -> dict[str, Any]:
  """Makes `out` the directory of a job, or checks that it is.

  Args:
    out: made with its parents if missing.
    job: JSON object, what the dataset depends on and every process is told.
    inputs: JSON object, what it depends on and this process has found.

  Returns:
    The inputs that the first process of the job found. Others that come later
    may find more, and are to take these.

  Raises:
    UserError: the directory is another job's or no job's, or cannot be written.
  """
  files.make_folder(out)
  path = out / JOB_FILE
  with files.lock(out, wait=True):
    if not path.exists():
      names = {child.name for child in out.iterdir()}
      if strangers := {n for n in names if not files.is_own_litter(n)}:
        raise UserError(
          f"{out} holds {min(strangers)} but no {JOB_FILE}: use an empty "
          "directory"
        )
      content = {"job": job, "inputs": inputs}
      files.publish_text(path, json.dumps(content, indent=2) + "\n")
  try:
    stored = json.loads(path.read_text())
    old, found = stored["job"], dict(stored["inputs"])
    changes = [
      f"{name} is {job.get(name)!r}, was {old.get(name)!r}"
      for name in dict.fromkeys([*old, *job])
      if old.get(name) != job.get(name)
    ]
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f"{path} is damaged ({error}): use another directory"
    ) from error
  if changes:
    raise UserError(
      f"{out} holds labels of another job ({'; '.join(changes)}): use another "
      "directory"
    )
  return found


def run(
  source: Source,
  out: epath.Path,
  *,
  num_items: int,
  process: int = 0,
  num_processes: int = 1,
  shard_lines: int,
  on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> bool:
  """Labels what is left of the items of one process.

  An exception, also of `on_progress`, ends it at once: what is stored is whole,
  and the same call goes on from there.

  Args:
    source: of the lines.
    out: directory of the job, see `claim`.
    num_items: of all processes together.
    process: which one this is.
    num_processes: how many there are.
    shard_lines: lines that make a shard, at least; an item's lines are not
      parted. What is lost in a kill.
    on_progress: called with the items done and to do, of this process, when it
      starts and after every item.

  Returns:
    False if there was nothing left to do.

  Raises:
    UserError: the folder cannot be written or is another's, or what `source`
      raises.
  """
  items = range(process, num_items, num_processes)
  with StoreWriter(out, LINES, process, shard_records=shard_lines) as writer:
    counts = _read_counts(writer.folder, writer.progress)
    left = items[counts["items"] :]
    on_progress(counts["items"], len(items))
    for item in left:
      lines = list(source(item))
      counts["items"] += 1
      for line in lines:
        counts.update(_count(line))
      writer.extend(lines, progress=counts)
      on_progress(counts["items"], len(items))
  _write_counts(out)
  return len(left) > 0


def read_counts(out: epath.Path) -> dict[str, int]:
  """What the processes of a job have stored so far, summed.

  Returns:
    items: done, tokens: spent to label them, lines: stored, labelled_steps: in
    them, of which labels_0, labels_1 and labels_between have that value.
  """
  total = collections.Counter(dict.fromkeys(_COUNTS, 0))
  for folder, manifest in manifest_lib.read_all(out, LINES).items():
    total.update(_read_counts(folder, manifest.progress))
  return dict(total)


def _count(line: LabelledLine) -> dict[str, int]:
  zeros, ones = int((line.label == 0).sum()), int((line.label == 1).sum())
  labelled = int((line.label >= 0).sum())
  return {
    "lines": 1,
    "labelled_steps": labelled,
    "labels_0": zeros,
    "labels_1": ones,
    "labels_between": labelled - zeros - ones,
    "tokens": line.tokens,
  }


def _read_counts(
  folder: epath.Path, progress: Mapping[str, Any]
) -> collections.Counter[str]:
  """The counts that a process stored; zeros if it has not begun."""
  counts = dict.fromkeys(_COUNTS, 0) | progress
  if set(counts) != set(_COUNTS) or not all(
    type(value) is int and value >= 0 for value in counts.values()
  ):
    raise UserError(
      f"{folder / manifest_lib.FILE} has the progress {dict(progress)}, which "
      "is none of a labelling job: use another directory"
    )
  return collections.Counter(counts)


def _write_counts(out: epath.Path) -> None:
  # Of processes that end at once, the last to come here has seen them all.
  with files.lock(out, wait=True):
    text = json.dumps(read_counts(out), indent=2) + "\n"
    files.publish_text(out / COUNTS_FILE, text)
