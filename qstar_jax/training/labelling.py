"""A job of `qstar label`: what is labelled, by whom, and in which items."""

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from qstar_jax import checkpoint
from qstar_jax.config import ExperimentConfig
from qstar_jax.distributed.mesh import make_mesh
from qstar_jax.domains import make_domain
from qstar_jax.domains.splits import TrainingProblems, held_out_by
from qstar_jax.errors import UserError
from qstar_jax.evaluation import job as evaluation_job
from qstar_jax.evaluation.opened import Opened, open_checkpoint
from qstar_jax.labels import job
from qstar_jax.labels.codec import LINES
from qstar_jax.labels.consensus import Agreement
from qstar_jax.labels.lines import Line
from qstar_jax.labels.network_sources import NETWORK_SOURCES, network_source
from qstar_jax.labels.tree_lines import SampleFn, make_sample_fn, tree_lines
from qstar_jax.labels.tree_sources import TREE_SOURCES, tree_source
from qstar_jax.records import LabelledLine, Problem
from qstar_jax.replay import ReplayReader
from qstar_jax.store.reader import StoreReader
from qstar_jax.training import judge_lessons
from qstar_jax.training.inputs import difficulties

CONSENSUS = "consensus"
# Sets of problems that have a name and no file.
HELD_OUT, TRAIN = "held_out", "train"
# Draws training problems apart from those of self-play.
_STREAM = int.from_bytes(b"problems", "big")


@dataclasses.dataclass(frozen=True)
class Request:
  """What a job is asked for.

  Attributes:
    run_dir: of the run.
    step: of the checkpoint that is asked; None takes the newest.
    source: of the labels.
    lines: of each tree, `committed` or `all`; None is all of samples, and the
      committed one of a search.
    problems: `held_out`, `train` or a file, whose samples are to be labelled;
      None labels the stored trees.
    rows: of the file.
    limit: trees or problems, at most.
    seed: of problems and play.
    of: two datasets, whose consensus is asked for.
  """

  run_dir: epath.Path
  source: str
  step: int | None = None
  lines: str | None = None
  problems: str | None = None
  rows: str | None = None
  limit: int | None = None
  seed: int = 0
  of: tuple[str, str] | None = None


class Labelling(NamedTuple):
  """A job that is ready to run.

  Attributes:
    source: of the lines of an item.
    num_items: of all processes.
    unit: what the items are.
  """

  source: job.Source
  num_items: int
  unit: str


def prepare(
  request: Request,
  config: ExperimentConfig,
  out: epath.Path,
  told: dict[str, Any],
) -> Labelling:
  """Opens what the job needs, and claims its directory.

  The sources that read trees take them one by one. Those that ask a network
  take `evaluation.batch_size` trees or problems at a time, so that many lines
  share the tables.

  Args:
    request: what is asked for.
    config: of the run, with the command's changes.
    out: directory of the dataset.
    told: what makes two jobs different ones, see `labels.job.claim`.

  Raises:
    UserError: that cannot be done, or the directory is another job's.
  """
  if (request.of is not None) != (request.source == CONSENSUS):
    raise UserError(
      f"--of names the two datasets of --source {CONSENSUS}: give both or none"
    )
  if request.source in NETWORK_SOURCES:
    return _by_network(request, config, out, told)
  if request.source not in (*TREE_SOURCES, CONSENSUS):
    known = ", ".join((*TREE_SOURCES, *NETWORK_SOURCES, CONSENSUS))
    raise UserError(f"--source {request.source!r}: must be one of {known}")
  for flag in ("problems", "lines"):
    if (value := getattr(request, flag)) is not None:
      raise UserError(
        f"--{flag} {value}: --source {request.source} has its own; leave it "
        "out, or use one of "
        f"{', '.join(NETWORK_SOURCES)}"
      )
  if request.source == CONSENSUS:
    return _by_consensus(request, config, out, told)
  return _by_trees(request, config, out, told)


def _by_consensus(request, config, out, told) -> Labelling:
  """Labels that two datasets agree on."""
  cursors = [StoreReader(path, LINES).cursors for path in request.of]
  found = job.claim(out, told, {"of": cursors})
  lines, others = (
    StoreReader(path, LINES, cursors=cursor)
    for path, cursor in zip(request.of, found["of"], strict=True)
  )
  source = Agreement(lines, others, config.labels.tolerance)
  num_items = min(len(lines), request.limit or len(lines))
  return Labelling(source, num_items, "lines")


def _by_trees(request, config, out, told) -> Labelling:
  """Labels of what has been played, without a network."""
  meta = checkpoint.latest_meta(request.run_dir)
  trees = _trees(request)
  if meta is None:
    raise _no_trees(request)
  label = tree_source(
    request.source,
    checkpoint.vocabulary_from_json(meta["vocabulary"]),
    make_domain(config.domain.name, config.domain.options),
    config.search,
  )
  found = job.claim(out, told, {"trees": trees.cursors})
  trees = _trees(request, found["trees"])
  num_items = min(len(trees), request.limit or len(trees))
  return Labelling(lambda item: label(trees[item]), num_items, "trees")


def _trees(request: Request, cursors: Any = None) -> ReplayReader:
  """The stored trees, or those that there were at the cursors."""
  trees = ReplayReader(request.run_dir / "replay", cursors=cursors)
  if not len(trees):
    raise _no_trees(request)
  return trees


def _no_trees(request: Request) -> UserError:
  return UserError(
    f"{request.run_dir} has no trees yet: go on with `qstar train`"
  )


def _by_network(request, config, out, told) -> Labelling:
  """Labels of a network that is asked about many lines at once."""
  opened = _open(request, config, request.step)
  problems = _problems(request, opened)
  judge = config.labels.judge
  is_taught = request.source == "judge" and judge.teach_steps > 0
  inputs: dict[str, Any] = {"checkpoint": opened.loaded.step}
  if problems is None or is_taught:
    inputs["trees"] = _trees(request).cursors
  found = job.claim(out, told | {"problem_keys": _digest(problems)}, inputs)
  opened = _open(request, config, found["checkpoint"])
  trees = _trees(request, found["trees"]) if "trees" in found else ()
  num_trees = min(len(trees), request.limit or len(trees))
  params = opened.loaded.params
  if is_taught:
    stored = _stored(request, opened, trees)
    lessons = judge_lessons.lessons(
      opened, trees, num_trees, lambda index: stored(range(index, index + 1))
    )
    params = judge_lessons.stored(out / "judge", opened, lessons)
  label = network_source(
    request.source,
    opened.loaded.graphdef,
    params,
    opened.domain,
    opened.loaded.vocabulary,
    config=config,
    mesh=make_mesh(config.mesh),
    seed=request.seed,
    params_version=opened.loaded.step,
  )
  if problems is None:
    lines, num_all, what = _stored(request, opened, trees), num_trees, "trees"
  else:
    lines = _sampled(request, opened, problems)
    num_all, what = len(problems), "problems"
  batch_size = config.evaluation.batch_size

  def source(item: int) -> Iterator[LabelledLine]:
    first = item * batch_size
    return label(lines(range(first, min(first + batch_size, num_all))))

  num_items = math.ceil(num_all / batch_size)
  return Labelling(source, num_items, f"batches of {batch_size} {what}")


def _open(
  request: Request, config: ExperimentConfig, step: int | None
) -> Opened:
  path = request.run_dir
  if step is not None:
    path = path / "checkpoints" / str(step)
  return open_checkpoint(path, config)


class _TrainProblems(Sequence[Problem]):
  """Training problems, each drawn when it is asked for."""

  def __init__(self, opened: Opened, size: int, seed: int):
    held_out = held_out_by(opened.config, opened.domain)
    self._problems = TrainingProblems.without(
      opened.domain, itertools.chain(*held_out)
    )
    self._difficulties = difficulties(opened.config)
    self._size, self._seed = size, seed

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> Problem:
    rng = np.random.default_rng([self._seed, _STREAM, index])
    return self._problems.sample(rng, int(rng.choice(self._difficulties)))


def _problems(request: Request, opened: Opened) -> Sequence[Problem] | None:
  """What is to be sampled; None if stored trees are labelled."""
  name = request.problems
  if name == TRAIN:
    if request.limit is None:
      raise UserError(f"--problems {TRAIN}: how many? give --limit")
    return _TrainProblems(opened, request.limit, request.seed)
  if name is None and request.rows is None:
    return None
  path = None if name == HELD_OUT else name
  problems = evaluation_job.select_problems(opened, path, request.rows)
  return problems[: request.limit]


def _digest(problems: Sequence[Problem] | None) -> str | None:
  """Of the problems that a file or the run has given."""
  if problems is None or isinstance(problems, _TrainProblems):
    return None
  keys = "\n".join(problem.key for problem in problems)
  return hashlib.sha256(keys.encode()).hexdigest()[:16]


# The lines of the trees or problems of these numbers.
_Lines = Callable[[range], Iterator[Line]]


def _stored(request: Request, opened: Opened, trees: ReplayReader) -> _Lines:
  def lines(numbers: range) -> Iterator[Line]:
    for number in numbers:
      yield from tree_lines(
        trees[number],
        opened.loaded.vocabulary,
        opened.domain,
        which=request.lines or "committed",
        number=number,
      )

  return lines


def sample_fn(opened: Opened, seed: int) -> SampleFn:
  """What samples lines by a checkpoint's policy; see `make_sample_fn`."""
  config, loaded = opened.config, opened.loaded
  return make_sample_fn(
    loaded.graphdef,
    loaded.params,
    opened.domain,
    loaded.vocabulary,
    model=config.model,
    text=config.text,
    search=config.search,
    num_trees=config.evaluation.batch_size,
    mesh=make_mesh(config.mesh),
    seed=seed,
    params_version=loaded.step,
  )


def _sampled(
  request: Request, opened: Opened, problems: Sequence[Problem]
) -> _Lines:
  sample = sample_fn(opened, request.seed)

  def lines(numbers: range) -> Iterator[Line]:
    records = sample((problems[number] for number in numbers), numbers.start)
    for number, record in zip(numbers, records, strict=True):
      for line in tree_lines(
        record,
        opened.loaded.vocabulary,
        opened.domain,
        which=request.lines or "all",
        number=number,
      ):
        yield line._replace(origin=f"{request.problems}, problem {number}")

  return lines
