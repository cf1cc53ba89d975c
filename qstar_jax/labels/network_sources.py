"""The sources that ask a network: by its play, or in words."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from qstar_jax.config import ExperimentConfig
from qstar_jax.labels import binary_search, judge, rollouts
from qstar_jax.labels.lines import Line
from qstar_jax.records import Domain, LabelledLine
from qstar_jax.text.vocabulary import Vocabulary

NETWORK_SOURCES = ("rollouts_soft", "rollouts_hard", "binary_search", "judge")

# Lines in, the same labelled out; binary search adds those that it bisected.
LabelFn = Callable[[Iterable[Line]], Iterator[LabelledLine]]


def network_source(
  name: str,
  graphdef: nnx.GraphDef,
  params: Any,
  domain: Domain,
  vocabulary: Vocabulary,
  *,
  config: ExperimentConfig,
  mesh: Mesh,
  seed: int,
  params_version: int,
) -> LabelFn:
  """What labels lines. Binary search gives hard labels, the judge soft ones.

  Args:
    name: one of `NETWORK_SOURCES`.
    graphdef: structure of the network.
    params: of the network.
    domain: verifies what is played.
    vocabulary: of the network.
    config: of its run: `labels`, the network's shapes, and how many are played
      or judged at a time.
    mesh: plays are split over its axes data and fsdp.
    seed: of the play; with a line's index it determines the labels.
    params_version: of `params`.
  """
  batch_size = config.evaluation.batch_size
  if name == "judge":
    return functools.partial(
      judge.label_lines,
      graphdef,
      params,
      questions=judge.Questions(config.labels.judge, vocabulary, config.text),
      batch_size=batch_size,
      params_version=params_version,
    )
  rollout_fn = rollouts.make_rollout_fn(
    graphdef,
    params,
    domain,
    vocabulary,
    model=config.model,
    text=config.text,
    num_rollouts=config.labels.num_rollouts,
    num_trees=batch_size,
    mesh=mesh,
  )
  if name == "binary_search":
    return functools.partial(
      binary_search.label_lines,
      rollout_fn,
      config=config.labels,
      kind="hard",
      max_steps=config.text.max_steps,
      batch_size=batch_size,
      seed=seed,
      params_version=params_version,
    )
  return functools.partial(
    rollouts.label_lines,
    rollout_fn,
    kind=name.removeprefix("rollouts_"),
    seed=seed,
    params_version=params_version,
  )
