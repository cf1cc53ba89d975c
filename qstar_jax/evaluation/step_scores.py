"""What a network says of the steps of given lines, in batched passes."""

import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, Sharding

from qstar_jax.config import TextConfig
from qstar_jax.distributed import rules
from qstar_jax.records import LabelledLine
from qstar_jax.text.vocabulary import Vocabulary
from qstar_jax.text.windows import excerpts


class LineScores(NamedTuple):
  """Of one line of D steps; NaN of a step that does not fit beside its prompt.

  Attributes:
    problem_value: V of the problem alone, in [0, 1].
    value: float32 [D], V after each step, in [0, 1].
    prm: float32 [D], PRM score of each step, in [0, 1].
  """

  problem_value: float
  value: np.ndarray
  prm: np.ndarray


@functools.partial(jax.jit, static_argnames="graphdef")
def _heads(
  graphdef: nnx.GraphDef, params: Any, tokens_BT: chex.Array
) -> tuple[chex.Array, chex.Array]:
  model = nnx.merge(graphdef, params)
  found = model.heads(model.forward(tokens_BT))
  return jax.nn.sigmoid(found.value_logit), jax.nn.sigmoid(found.prm_logit)


def _split_rows(params: Any, batch_size: int) -> tuple[Sharding, int]:
  """How rows lie on the devices of the params, and how many fill them evenly.

  Without it each device would read them all.
  """
  sharding = jax.tree.leaves(params)[0].sharding
  if not isinstance(sharding, NamedSharding):
    return sharding, batch_size
  num_shards = rules.num_shards(sharding.mesh.shape)
  num_rows = -(-batch_size // num_shards) * num_shards
  by_row = rules.sharding(("lines",), rules.ACTOR, sharding.mesh)
  return by_row, num_rows


def score_lines(
  graphdef: nnx.GraphDef,
  params: Any,
  vocabulary: Vocabulary,
  lines: Iterable[LabelledLine],
  *,
  text: TextConfig,
  batch_size: int,
  labelled_only: bool = False,
) -> Iterator[tuple[LabelledLine, LineScores | None]]:
  """Reads V and the PRM at the last token of every step.

  They are what a search reads that reaches the same steps by the same tokens.
  A long line is read in windows, as in training: see `text.windows`.

  Args:
    graphdef: structure of the network.
    params: of the network.
    vocabulary: of the network.
    lines: drawn as they are needed.
    text: bounds the windows of long lines; the rows of a batch have T tokens.
    batch_size: B.
    labelled_only: read no window without a label; NaN stands for its steps.

  Yields:
    Every line in order, with its scores; None if no window of it was read.

  Raises:
    UserError: a prompt or step has a newline where it must not.
  """
  by_row, num_rows = _split_rows(params, batch_size)
  while group := list(itertools.islice(lines := iter(lines), batch_size)):
    # Of every row its line, window, and the parts that are read one by one.
    rows, scores = [], []
    for number, line in enumerate(group):
      scores.append(np.full((2, 1 + len(line.steps)), np.nan, np.float32))
      for window, prompt, note, steps in excerpts(
        vocabulary,
        line.prompt,
        line.steps,
        text,
        is_finished=line.is_finished,
      ):
        if labelled_only and (line.label[window.begin : window.end] < 0).all():
          continue
        rows.append((number, window, [prompt, note, *steps]))
    for start in range(0, len(rows), batch_size):
      batch = rows[start : start + batch_size]
      tokens_BT = np.zeros((num_rows, text.max_line_tokens), np.int32)
      for tokens_T, (_, _, parts) in zip(tokens_BT, batch, strict=False):
        flat = list(itertools.chain.from_iterable(parts))
        tokens_T[: len(flat)] = flat
      tokens_BT = jax.device_put(tokens_BT, by_row)
      heads_BT = np.array(jax.device_get(_heads(graphdef, params, tokens_BT)))
      for row, (number, window, parts) in enumerate(batch):
        last = np.cumsum([*map(len, parts)]) - 1
        found = heads_BT[:, row, last]
        scores[number][:, 0] = found[:, 0]
        own = slice(1 + window.begin, 1 + window.end)
        scores[number][:, own] = found[:, 2 + window.begin - window.first :]
    for line, (value, prm) in zip(group, scores, strict=True):
      is_read = not np.isnan(value[0])
      found = LineScores(float(value[0]), value[1:], prm[1:])
      yield line, found if is_read else None
