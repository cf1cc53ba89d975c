"""What a run starts from: problems, a vocabulary, stored trees."""

from collections.abc import Callable, Iterator

import numpy as np
from etils import epath

from qstar_jax import checkpoint as checkpoint_lib
from qstar_jax.config import ExperimentConfig
from qstar_jax.domains import splits
from qstar_jax.errors import UserError
from qstar_jax.labels import step_tree
from qstar_jax.records import TreeRecord
from qstar_jax.replay import ReplayReader
from qstar_jax.text.training import train_sentencepiece
from qstar_jax.text.vocabulary import ByteVocabulary, Vocabulary
from qstar_jax.training import hindsight
from qstar_jax.training.labelled_data import LabelledData

# Stream of random numbers; see `trainer` for the others.
_VOCABULARY = 0
_VOCABULARY_LINES = 5000


def make_vocabulary(
  config: ExperimentConfig,
  problems: splits.TrainingProblems,
  lines: LabelledData | None = None,
) -> Vocabulary:
  """The vocabulary that a config asks for.

  Args:
    config: of the run.
    problems: of the domain; its random play is what a vocabulary is trained on
      if it has any.
    lines: to train it on otherwise.

  Raises:
    UserError: the run that made `data.trees` has none.
  """
  if config.data.trees:
    run_dir = trees_dir(config).parent
    meta = checkpoint_lib.latest_meta(run_dir)
    if meta is None:
      raise UserError(
        f"data.trees is {config.data.trees!r}: {run_dir} has no checkpoint "
        "with the vocabulary of its trees; name the run that made them"
      )
    return checkpoint_lib.vocabulary_from_json(meta["vocabulary"])
  if config.text.vocabulary == "bytes":
    return ByteVocabulary()
  if lines is not None and not getattr(problems.domain, "difficulties", True):
    corpus = lines.corpus(_VOCABULARY_LINES)
  else:
    corpus = hindsight.random_lines(
      problems,
      np.random.default_rng([config.seed, _VOCABULARY]),
      difficulties(config),
      _VOCABULARY_LINES,
    )
  return train_sentencepiece(
    corpus,
    config.text.vocabulary_size,
    split_digits=config.text.split_digits,
  )


def trees_dir(config: ExperimentConfig) -> epath.Path | None:
  """The store of `data.trees`, which is named itself or by its run."""
  if not config.data.trees:
    return None
  path = epath.Path(config.data.trees)
  return path if path.name == "replay" else path / "replay"


def read_trees(
  config: ExperimentConfig,
  problems: splits.TrainingProblems,
  check_stop: Callable[[], None],
) -> Iterator[TreeRecord]:
  """The newest trees of `data.trees`, as many as the window holds.

  Those of problems that this run holds out are left out: the run that made them
  may have held out others.

  Args:
    config: of the run.
    problems: of its domain.
    check_stop: called for every tree; may raise.

  Raises:
    UserError: there are none, they are damaged, or of another domain.
  """
  path = trees_dir(config)
  reader = ReplayReader(path)
  is_empty = True
  first = max(0, len(reader) - config.replay.window_trees)
  for record in reader.read(range(first, len(reader))):
    check_stop()
    problem = step_tree.read_problem(record, problems.domain)
    if not problems.is_held_out(problem):
      is_empty = False
      yield record
  if is_empty:
    raise UserError(
      f"{path} has no tree of a problem that may be trained on: name another "
      "store with data.trees"
    )


def difficulties(config: ExperimentConfig) -> range:
  """The difficulties that the run trains on."""
  return range(config.domain.min_difficulty, config.domain.max_difficulty + 1)
