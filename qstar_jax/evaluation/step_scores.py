"""What a network says of the steps of given lines, in batched passes."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
from flax import nnx

from qstar_jax.records import LabelledLine
from qstar_jax.text.steps import encode_line
from qstar_jax.text.vocabulary import Vocabulary


class LineScores(NamedTuple):
  """Of one line of D steps.

  Attributes:
    problem_value: V of the problem alone, in [0, 1].
    value: float32 [D], V after each step, in [0, 1].
    prm: float32 [D], PRM score of each step, in [0, 1].
  """

  problem_value: float
  value: np.ndarray
  prm: np.ndarray


def score_lines(
  graphdef: nnx.GraphDef,
  params: Any,
  vocabulary: Vocabulary,
  lines: Iterable[LabelledLine],
  *,
  max_line_tokens: int,
  batch_size: int,
) -> Iterator[tuple[LabelledLine, LineScores | None]]:
  """Reads V and the PRM at the last token of every step.

  They are what a search reads that reaches the same steps by the same tokens.

  Args:
    graphdef: structure of the network.
    params: of the network.
    vocabulary: of the network.
    lines: drawn as they are needed.
    max_line_tokens: T; the rows of a batch have this length.
    batch_size: B.

  Yields:
    Every line in order, with its scores; None if it is longer than T.

  Raises:
    UserError: a prompt or step has a newline where it must not.
  """

  @jax.jit
  def heads(params, tokens_BT) -> tuple[chex.Array, chex.Array]:
    model = nnx.merge(graphdef, params)
    found = model.heads(model.forward(tokens_BT))
    return jax.nn.sigmoid(found.value_logit), jax.nn.sigmoid(found.prm_logit)

  while batch := list(itertools.islice(lines := iter(lines), batch_size)):
    tokens_BT = np.zeros((batch_size, max_line_tokens), np.int32)
    ends = []
    for row, line in enumerate(batch):
      prompt, steps = encode_line(
        vocabulary, line.prompt, line.steps, is_finished=line.is_finished
      )
      end = np.cumsum([len(prompt), *map(len, steps)])
      ends.append(end if end[-1] <= max_line_tokens else None)
      if ends[-1] is not None:
        tokens_BT[row, : end[-1]] = list(itertools.chain(prompt, *steps))
    value_BT, prm_BT = jax.device_get(heads(params, tokens_BT))
    for line, end, value_T, prm_T in zip(
      batch, ends, value_BT, prm_BT, strict=False
    ):
      if end is None:
        yield line, None
        continue
      value, prm = value_T[end - 1], prm_T[end[1:] - 1]
      yield line, LineScores(float(value[0]), value[1:], prm)
