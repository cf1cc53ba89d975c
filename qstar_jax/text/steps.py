"""Lines: a prompt and its steps, as texts and as tokens."""

from collections.abc import Iterable, Sequence

import numpy as np

from qstar_jax.text.vocabulary import DELIMITER, Vocabulary


def split_steps(
  tokens: Iterable[int], ends_step: np.ndarray
) -> list[list[int]]:
  """Cuts tokens after each one that ends a step.

  With the byte vocabulary, `4 9\\n` + `4+9` + end are the tokens
  `[55, 35, 60, 13, 55, 46, 60, 1]` and become
  `[[55, 35, 60, 13], [55, 46, 60, 1]]`.

  Args:
    tokens: in 0..V-1; of a line, its prompt included or not, without padding.
    ends_step: bool [V], `Vocabulary.ends_step`.

  Returns:
    The steps (the prompt counts as one), each with its last token. What follows
    the last that is finished stands as one more.
  """
  steps, step = [], []
  for token in tokens:
    step.append(int(token))
    if ends_step[token]:
      steps.append(step)
      step = []
  return [*steps, step] if step else steps


def encode_line(
  vocabulary: Vocabulary,
  prompt: str,
  steps: Sequence[str],
  *,
  is_finished: bool = True,
) -> tuple[list[int], list[list[int]]]:
  """Tokens of a line: of its prompt, and of each of its steps.

  Args:
    vocabulary: to encode with.
    prompt: ends in a newline and holds no other.
    steps: texts without delimiter.
    is_finished: the last step gets the end token, not the delimiter.

  Raises:
    UserError: the prompt or a step has a newline where it must not.
  """
  last = len(steps) - 1 if is_finished else None
  return vocabulary.encode_prompt(prompt), [
    vocabulary.encode_step(step, is_last=i == last)
    for i, step in enumerate(steps)
  ]


def count_tokens(
  vocabulary: Vocabulary, prompt: str, steps: Sequence[str]
) -> int:
  """Tokens of a line that is to go on; see `encode_line`."""
  prompt_tokens, of_steps = encode_line(
    vocabulary, prompt, steps, is_finished=False
  )
  return len(prompt_tokens) + sum(map(len, of_steps))


def decode_line(
  vocabulary: Vocabulary, tokens: Iterable[int]
) -> tuple[str, tuple[str, ...], bool]:
  """The texts of a line: the inverse of `encode_line`, and total.

  Args:
    vocabulary: to decode with.
    tokens: in 0..V-1; prompt and steps; what follows an end token is ignored.

  Returns:
    The prompt with its newline, the texts of the steps without delimiters, and
    whether the line is finished, that is, has an end token.
  """
  pieces = split_steps(tokens, vocabulary.ends_step)
  texts, ended = [], False
  for piece in pieces:
    text, ended = vocabulary.decode_step(piece)
    texts.append(text)
    if ended:
      break
  if not texts:
    return "", (), False
  return texts[0] + DELIMITER, tuple(texts[1:]), ended
