"""Labels by a judge: the network itself is asked about a step, in words.

Behind a line comes a question, such as `step ok?`, as if it were a step, and a
verdict behind it, `yes` or `no`, as if it were the last. The label is
p(yes) / (p(yes) + p(no)), each the probability of all of the verdict's tokens,
averaged over the wordings of the question (Kadavath et al. 2022,
arXiv:2207.05221, "P(True)"; Zhang et al. 2024, arXiv:2408.15240).

Networks too small to follow instructions learn what a verdict is from a few
checked labels: `verdict_rows` makes the learner's rows of them. The judge is
taught by those alone; the labels that it gives are its own.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from qstar_jax.config import JudgeConfig, TextConfig
from qstar_jax.labels.lines import Line, labelled
from qstar_jax.records import NO_LABEL, LabelledLine, TrainBatch
from qstar_jax.text.steps import encode_line
from qstar_jax.text.vocabulary import Vocabulary

# Tokens of a line and its question, and of a verdict.
_Row = tuple[list[int], list[int]]


@dataclasses.dataclass(frozen=True)
class Questions:
  """How questions about steps are written.

  Attributes:
    config: their texts.
    vocabulary: of the network.
    text: limits of the lines; what does not fit is not asked about.
  """

  config: JudgeConfig
  vocabulary: Vocabulary
  text: TextConfig

  def verdict(self, text: str) -> list[int]:
    """Tokens of a verdict, the end token included."""
    return self.vocabulary.encode_step(text, is_last=True)

  @property
  def max_verdict_tokens(self) -> int:
    """Tokens of the longer verdict."""
    return max(
      len(self.verdict(text)) for text in (self.config.right, self.config.wrong)
    )

  @property
  def max_row_tokens(self) -> int:
    """T: tokens of the longest line, question and verdict."""
    questions = [
      self.vocabulary.encode_step(text, is_last=False)
      for text in self.config.prompts
    ]
    longest = max(map(len, questions))
    return self.text.max_line_tokens + longest + self.max_verdict_tokens

  def about(self, prompt: str, steps: Sequence[str]) -> list[list[int]]:
    """Tokens up to the verdict on the last of `steps`, for every wording.

    None at all if a line of as many tokens does not fit.
    """
    line, of_steps = encode_line(
      self.vocabulary, prompt, steps, is_finished=False
    )
    line = [*line, *itertools.chain(*of_steps)]
    if len(line) > self.text.max_line_tokens:
      return []
    return [
      [*line, *self.vocabulary.encode_step(text, is_last=False)]
      for text in self.config.prompts
    ]


def verdict_rows(
  lines: Iterable[LabelledLine], questions: Questions
) -> TrainBatch:
  """Rows that teach the policy its verdicts, and nothing else.

  Every labelled step has a row for each wording and each verdict: the policy
  weight of the verdict's tokens is the label, or 1 minus it, and that of all
  other tokens is 0. Rows without weight are left out, as are those that do not
  fit. Lines are distilled as before, with these rows among them.

  Args:
    lines: labelled by someone else, by the rules for instance.
    questions: to be asked.

  Returns:
    The rows, without targets of value and PRM.
  """
  config = questions.config
  rows, weights = [], []
  for line in lines:
    for i in np.flatnonzero(line.label != NO_LABEL):
      asked = questions.about(line.prompt, line.steps[: i + 1])
      for text, weight in (
        (config.right, line.label[i]),
        (config.wrong, 1 - line.label[i]),
      ):
        if weight > 0:
          rows += [(tokens, questions.verdict(text)) for tokens in asked]
          weights += [weight] * len(asked)
  tokens, start, length = _padded(rows, len(rows), questions)
  position = np.arange(tokens.shape[1])
  is_verdict = (position >= start[:, None]) & (
    position < (start + length)[:, None]
  )
  policy_weight = is_verdict * np.array(weights, np.float32)[:, None]
  nothing = np.zeros(tokens.shape, np.float32)
  return TrainBatch(
    tokens=tokens,
    policy_weight=policy_weight.astype(np.float32),
    value_target=nothing,
    value_weight=nothing,
    prm_target=nothing,
    prm_weight=nothing,
  )


def _padded(
  rows: Sequence[_Row], num_rows: int, questions: Questions
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Tokens [B, T], where verdicts begin [B], and their tokens [B], int32."""
  tokens = np.zeros((num_rows, questions.max_row_tokens), np.int32)
  start, length = np.ones((2, num_rows), np.int32)
  for i, (line, verdict) in enumerate(rows):
    start[i], length[i] = len(line), len(verdict)
    tokens[i, : len(line) + len(verdict)] = [*line, *verdict]
  return tokens, start, length


@functools.partial(jax.jit, static_argnums=(0, 2))
def _log_prob_verdicts(
  graphdef: nnx.GraphDef,
  params: Any,
  max_verdict_tokens: int,
  tokens_BT: chex.Array,
  start_B: chex.Array,
  length_B: chex.Array,
) -> chex.Array:
  """log p of the verdict that each row has at its end, [B]."""
  model = nnx.merge(graphdef, params)
  hidden_BTM = model.forward(tokens_BT)
  at_BR = start_B[:, None] + jnp.arange(max_verdict_tokens)[None]
  # Position t - 1 speaks of token t; the others need no logits.
  before_BRM = jnp.take_along_axis(hidden_BTM, at_BR[..., None] - 1, axis=1)
  log_prob_BR = -optax.softmax_cross_entropy_with_integer_labels(
    model.logits(before_BRM), jnp.take_along_axis(tokens_BT, at_BR, axis=1)
  )
  is_verdict_BR = at_BR < (start_B + length_B)[:, None]
  return jnp.sum(jnp.where(is_verdict_BR, log_prob_BR, 0), axis=1)


def label_lines(
  graphdef: nnx.GraphDef,
  params: Any,
  lines: Iterable[Line],
  *,
  questions: Questions,
  batch_size: int,
  params_version: int,
) -> Iterator[LabelledLine]:
  """Asks the network about the steps of every line, from `begin` on; soft.

  Args:
    graphdef: structure of the network.
    params: of the network.
    lines: of one step or more; drawn as they are needed.
    questions: to be asked.
    batch_size: rows of a forward pass; there are two for each wording.
    params_version: of `params`.

  Yields:
    The lines, in order. A step at which the line does not fit has no label.
  """
  config = questions.config
  verdicts = questions.verdict(config.right), questions.verdict(config.wrong)

  def rows_of_steps(line: Line) -> list[list[_Row]]:
    return [
      list(
        itertools.product(
          questions.about(line.problem.prompt, line.steps[: i + 1]), verdicts
        )
      )
      for i in range(line.begin, len(line.steps))
    ]

  asked, ahead = itertools.tee((line, rows_of_steps(line)) for line in lines)
  log_probs = _score_rows(
    functools.partial(
      _log_prob_verdicts, graphdef, params, questions.max_verdict_tokens
    ),
    (row for _, of_line in ahead for rows in of_line for row in rows),
    questions,
    batch_size,
  )
  for line, of_line in asked:
    label = [NO_LABEL] * line.begin
    for rows in of_line:
      yes, no = np.reshape([next(log_probs) for _ in rows], (-1, 2)).T
      p_yes = np.exp(-np.logaddexp(0, no - yes))
      label.append(np.mean(p_yes) if rows else NO_LABEL)
    yield labelled(
      line,
      label,
      kind="soft",
      source="judge",
      params_version=params_version,
      tokens=sum(
        len(tokens) + len(verdict)
        for rows in of_line
        for tokens, verdict in rows
      ),
    )


def _score_rows(
  score_fn: Callable[..., chex.Array],
  rows: Iterable[_Row],
  questions: Questions,
  batch_size: int,
) -> Iterator[float]:
  """log p of every row's verdict, in batches of one shape."""
  rows = iter(rows)
  while batch := list(itertools.islice(rows, batch_size)):
    scores = score_fn(*_padded(batch, batch_size, questions))
    yield from np.asarray(scores)[: len(batch)].tolist()
