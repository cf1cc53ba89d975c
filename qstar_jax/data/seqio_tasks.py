"""This project's lines as seqio tasks. Importing this module loads TensorFlow.

The examples are those of `data.examples`; `LineConverter` makes rows with the
field names of `records.TrainBatch` of them. Tasks are registered when asked
for, and one of the same name is replaced. A line that does not fit the
`sequence_length` asked for is left out whole: without its end, or its prompt,
its labels would speak of something else.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
from etils import epath

from qstar_jax import step_metrics
from qstar_jax.config import TextConfig
from qstar_jax.data import prm800k, splits
from qstar_jax.data.examples import (
  PROMPT,
  WEIGHTS,
  Example,
  from_labels,
  from_play,
  from_tree,
)
from qstar_jax.data.reading import Report
from qstar_jax.domains.hindsight import draw_line
from qstar_jax.domains.splits import TrainingProblems
from qstar_jax.errors import UserError
from qstar_jax.records import NO_LABEL, Domain, Outcome
from qstar_jax.replay import ReplayReader
from qstar_jax.text import vocabulary as vocabulary_lib
from qstar_jax.text.steps import split_steps

# TensorFlow would take the accelerator from JAX.
for _kind in ("GPU", "TPU"):
  tf.config.set_visible_devices([], _kind)

_SIGNATURE = {
  PROMPT: tf.TensorSpec((), tf.string),
  "inputs": tf.TensorSpec((None,), tf.int32),
  "targets": tf.TensorSpec((None,), tf.int32),
  **{name: tf.TensorSpec((None,), tf.float32) for name in WEIGHTS},
}

# From (shard, number of shards) to the examples of that shard, in order.
ExamplesFn = Callable[[int, int], Iterator[Example]]


class Vocabulary(seqio.Vocabulary):
  """One of `text.vocabulary` as seqio's; each line of a text for itself."""

  def __init__(self, vocabulary: vocabulary_lib.Vocabulary):
    super().__init__()
    self._vocabulary = vocabulary

  @property
  def eos_id(self) -> int:
    return self._vocabulary.eos_id

  @property
  def unk_id(self) -> int:
    return vocabulary_lib.UNK_ID

  @property
  def _base_vocab_size(self) -> int:
    return self._vocabulary.size

  def __eq__(self, other: object) -> bool:
    return (
      isinstance(other, Vocabulary)
      and self._vocabulary.fingerprint == other._vocabulary.fingerprint
    )

  def __hash__(self) -> int:
    return hash(self._vocabulary.fingerprint)

  def _encode(self, s: str) -> list[int]:
    lines = s.split(vocabulary_lib.DELIMITER)
    texts = [line + vocabulary_lib.DELIMITER for line in lines[:-1]]
    return [
      token
      for text in [*texts, lines[-1]]
      if text
      for token in self._vocabulary.encode(text)
    ]

  def _decode(self, ids: Iterable[int]) -> str:
    # seqio pads what follows the end token, or cuts it off.
    ids = itertools.takewhile(lambda token: token != self.eos_id, ids)
    steps = split_steps(ids, self._vocabulary.ends_step)
    return "".join(map(self._vocabulary.decode, steps))

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    tokens = tf.py_function(
      lambda text: np.array(self._encode(text.numpy().decode()), np.int32),
      [s],
      tf.int32,
    )
    return tf.ensure_shape(tokens, (None,))

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    if ids.shape.rank > 1:
      return tf.map_fn(self._decode_tf, ids, fn_output_signature=tf.string)
    text = tf.py_function(
      lambda tokens: self._decode(tokens.numpy().tolist()), [ids], tf.string
    )
    return tf.ensure_shape(text, ())


class _LineSource(seqio.DataSource):
  """Examples that Python makes; a shard makes its own and no others."""

  def __init__(self, examples: Mapping[str, ExamplesFn]):
    super().__init__(splits=examples.keys())
    self._examples = examples

  @property
  def supports_arbitrary_sharding(self) -> bool:
    return True

  def list_shards(self, split: str) -> Sequence[str]:
    return [split]

  def get_dataset(
    self,
    split: str = "train",
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    **unused: Any,
  ) -> tf.data.Dataset:
    """The examples of a shard in order; the task shuffles."""
    shard = shard_info or seqio.ShardInfo(0, 1)
    return tf.data.Dataset.from_generator(
      lambda: self._examples[split](shard.index, shard.num_shards),
      output_signature=_SIGNATURE,
    )


def _fitting(
  dataset: tf.data.Dataset, sequence_length: Mapping[str, int] | None
) -> tf.data.Dataset:
  """The examples of which every feature fits."""
  lengths = dict(sequence_length or {})
  return dataset.filter(
    lambda example: tf.reduce_all(
      [True, *(tf.size(example[name]) <= lengths[name] for name in lengths)]
    )
  )


def _register(
  name: str,
  vocabulary: vocabulary_lib.Vocabulary,
  examples: Mapping[str, ExamplesFn],
  metric_fn: Callable[..., dict[str, float]],
  target_of: Callable[[Example], Any],
) -> seqio.Task:
  text = seqio.Feature(Vocabulary(vocabulary), add_eos=False)
  weight = seqio.Feature(
    seqio.PassThroughVocabulary(0), add_eos=False, dtype=tf.float32
  )
  seqio.TaskRegistry.remove(name)
  return seqio.TaskRegistry.add(
    name,
    _LineSource(examples),
    output_features={
      "inputs": text,
      "targets": text,
      **dict.fromkeys(WEIGHTS, weight),
    },
    preprocessors=[_fitting],
    # What a metric is given: what it asks of a target, else what was said.
    postprocess_fn=lambda text, *, example, is_target: (
      target_of(example) if is_target else text
    ),
    metric_fns=[metric_fn],
  )


def _prompt(example: Example) -> str:
  return example[PROMPT].decode()


def _labels(example: Example) -> tuple[np.ndarray, np.ndarray]:
  return example["prm_target"], example["prm_weight"]


def add_warmup(
  problems: TrainingProblems,
  vocabulary: vocabulary_lib.Vocabulary,
  *,
  difficulties: Sequence[int],
  num_lines: int,
  corrupt_share: float = 0.5,
  seed: int = 0,
) -> seqio.Task:
  """Registers `qstar_<domain>_warmup`: random legal play in hindsight.

  Targets are those of `examples.from_play`.

  Args:
    problems: a domain's, without those held out.
    vocabulary: to encode with.
    difficulties: drawn from uniformly.
    num_lines: of the split `train`. Line i depends on the seed and on i alone.
    corrupt_share: of the lines that are made wrong.
    seed: of the lines.
  """

  def example(index: int) -> Example:
    rng = np.random.default_rng([seed, index])
    line = draw_line(problems, rng, difficulties, corrupt_share)
    return from_play(line, vocabulary)

  return _register(
    f"qstar_{problems.domain.name}_warmup",
    vocabulary,
    {"train": lambda i, n: map(example, range(i, num_lines, n))},
    solve_rate_fn(problems.domain),
    _prompt,
  )


def add_trajectories(
  domain: Domain,
  store: epath.PathLike,
  vocabulary: vocabulary_lib.Vocabulary,
  *,
  solved_only: bool = False,
) -> seqio.Task:
  """Registers `qstar_<domain>_trajectories`: what self-play committed to.

  Targets are those of `examples.from_tree`.

  Args:
    domain: the one that the trees are of.
    store: directory of a replay store; what it holds now is the split `train`.
    vocabulary: the one that the trees were made with.
    solved_only: leave out the lines that do not solve their problem.

  Raises:
    UserError: no such store; later, where a tree is of another domain or
      vocabulary (TensorFlow passes it on as an error of its own).
  """
  num_trees = len(ReplayReader(store))

  def examples(index: int, num_shards: int) -> Iterator[Example]:
    # One reader for each iterator: they may run side by side.
    reader = ReplayReader(store)
    for tree in reader.read(range(index, num_trees, num_shards)):
      if tree.domain != domain.name:
        raise UserError(
          f"{store} has a tree of {tree.domain}, not {domain.name}; name its"
          " domain"
        )
      if tree.final_outcome == Outcome.CORRECT or not solved_only:
        yield from_tree(tree, vocabulary)

  return _register(
    f"qstar_{domain.name}_trajectories",
    vocabulary,
    {"train": examples},
    solve_rate_fn(domain),
    _prompt,
  )


def add_prm800k(
  data_dir: epath.PathLike,
  vocabulary: vocabulary_lib.Vocabulary,
  *,
  neutral: float = 1.0,
) -> seqio.Task:
  """Registers `qstar_prm800k`: steps rated by people, phase 1.

  The split `train` holds no problem that is tested on (`data.splits`). Lines
  without a label are left out. Targets are those of `examples.from_labels`.

  Args:
    data_dir: the data folder, laid out as docs/data.md says.
    vocabulary: to encode with.
    neutral: label of rating 0; see `prm800k.read`.

  Raises:
    UserError: the test problems are not there; later, where a file cannot be
      read (TensorFlow passes it on as an error of its own).
  """
  keys = splits.held_out_keys(data_dir)

  def examples_fn(split: str) -> ExamplesFn:
    path = epath.Path(data_dir) / f"prm800k/phase1_{split}_steps.jsonl.gz"

    def examples(index: int, num_shards: int) -> Iterator[Example]:
      lines = prm800k.read(path, Report(), neutral=neutral)
      if split == "train":
        lines = splits.without(lines, keys)
      for line in itertools.islice(lines, index, None, num_shards):
        if (line.label != NO_LABEL).any():
          yield from_labels(line, vocabulary)

    return examples

  return _register(
    "qstar_prm800k",
    vocabulary,
    {split: examples_fn(split) for split in ("train", "test")},
    step_figures,
    _labels,
  )


def add_mixture(name: str, rates: Mapping[str, float]) -> seqio.Mixture:
  """Registers a mixture of tasks that are registered already.

  Args:
    name: of the mixture, such as `qstar_warmup`.
    rates: of each task, by name; > 0.
  """
  seqio.MixtureRegistry.remove(name)
  return seqio.MixtureRegistry.add(name, list(rates.items()))


def solve_rate_fn(
  domain: Domain,
) -> Callable[[list[str], list[str]], dict[str, float]]:
  """A metric: what the domain's verifier says of predicted lines.

  It is given prompts as targets, and texts whose lines are steps as
  predictions: `solve_rate` is the share found correct, `score` the mean score,
  both in [0, 1]. A text that ends in a delimiter is not finished, and wrong.
  seqio decodes tokens to text, so one that was cut inside a step looks
  finished to it.
  """

  def solve_rate(
    targets: list[str], predictions: list[str]
  ) -> dict[str, float]:
    verdicts = [
      domain.verify(
        domain.parse(prompt), tuple(text.split(vocabulary_lib.DELIMITER))
      )
      for prompt, text in zip(targets, predictions, strict=True)
    ]
    is_correct = [verdict.outcome == Outcome.CORRECT for verdict in verdicts]
    return {
      "solve_rate": float(np.mean(is_correct)),
      "score": float(np.mean([verdict.score for verdict in verdicts])),
    }

  return solve_rate


def step_figures(
  targets: Sequence[tuple[np.ndarray, np.ndarray]],
  scores: Sequence[np.ndarray],
) -> dict[str, float]:
  """A metric: what a PRM's scores of labelled steps are worth.

  Args:
    targets: of each line, the labels and weights of its target tokens: a step
      with a label has weight at its last token, and all else has none.
    scores: of each line, P(right) of its target tokens, in [0, 1].

  Returns:
    auroc, brier and ece over all steps with a label; see `step_metrics`.
  """
  labels, weights = (
    np.concatenate(column) for column in zip(*targets, strict=True)
  )
  scored = np.concatenate([np.asarray(line) for line in scores])
  if len(scored) != len(labels):
    raise ValueError(
      f"{len(scored)} scores of {len(labels)} target tokens: give one of each."
    )
  is_step = weights > 0
  columns = scored[is_step], labels[is_step], weights[is_step]
  return {
    "auroc": step_metrics.auroc(*columns),
    "brier": step_metrics.brier(*columns),
    "ece": step_metrics.ece(*columns),
  }


def feature_lengths(text: TextConfig) -> dict[str, int]:
  """The `sequence_length` that gives rows of `text.max_line_tokens` tokens."""
  targets = text.max_steps * text.max_step_tokens
  return {
    "inputs": text.max_prompt_tokens,
    **dict.fromkeys(("targets", *WEIGHTS), targets),
  }


_Spec = seqio.FeatureConverter.FeatureSpec
_WEIGHT_SPECS = dict.fromkeys(WEIGHTS, _Spec(tf.float32))
_TASK_FEATURES = {
  **dict.fromkeys(("inputs", "targets"), _Spec(tf.int32)),
  **_WEIGHT_SPECS,
}
_MODEL_FEATURES = {
  "tokens": _Spec(tf.int32),
  "length": _Spec(tf.int32, rank=0),
  **_WEIGHT_SPECS,
}


class LineConverter(seqio.FeatureConverter):
  """From examples to rows with the field names of `records.TrainBatch`.

  And `length`, the tokens in use.

  T is the sum of the lengths of `inputs` and `targets`; prompt and steps stand
  together, followed by padding.
  """

  TASK_FEATURES = _TASK_FEATURES
  MODEL_FEATURES = _MODEL_FEATURES
  PACKING_FEATURE_DTYPES = None

  def __init__(self):
    super().__init__(pack=False)

  def get_model_feature_lengths(
    self, task_feature_lengths: Mapping[str, int]
  ) -> dict[str, int]:
    length = task_feature_lengths["inputs"] + task_feature_lengths["targets"]
    return dict.fromkeys(self.MODEL_FEATURES, length)

  def _convert_features(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    lengths = self.get_model_feature_lengths(task_feature_lengths)
    del lengths["length"]

    def convert(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
      prompt = example["inputs"]
      before = tf.zeros(tf.shape(prompt), tf.float32)
      tokens = tf.concat([prompt, example["targets"]], 0)
      return {
        "tokens": tokens,
        "length": tf.size(tokens),
        **{n: tf.concat([before, example[n]], 0) for n in WEIGHTS},
      }

    return self._pack_or_pad(ds.map(convert), lengths)
