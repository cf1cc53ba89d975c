"""Hindsight warm start: random legal play, read as solving what it reached.

Rules only: no solution comes from outside, and no held-out problem is played.
"""

from collections.abc import Sequence

import numpy as np

from qstar_jax.config import TextConfig, WarmStartConfig
from qstar_jax.domains.hindsight import draw_line
from qstar_jax.domains.splits import TrainingProblems
from qstar_jax.learner import lines
from qstar_jax.records import TrainBatch
from qstar_jax.text.steps import encode_line
from qstar_jax.text.vocabulary import Vocabulary


def random_lines(
  problems: TrainingProblems,
  rng: np.random.Generator,
  difficulties: Sequence[int],
  num_lines: int,
) -> list[str]:
  """Prompts and steps of random play, as a corpus for a vocabulary.

  A fifth as many sampled problems stand among them: play seldom reaches some of
  the targets that problems ask for.
  """
  corpus = []
  for i in range(num_lines):
    difficulty = int(rng.choice(difficulties))
    problem, steps = problems.random_play(rng, difficulty)
    corpus += [problem.prompt, *steps]
    if i % 5 == 0:
      corpus.append(problems.sample(rng, difficulty).prompt)
  return corpus


def _cut_long_step(
  step_tokens: list[list[int]], bad_step: int | None, max_step_tokens: int
) -> int | None:
  """Cuts the first step that is too long, as a search would: it is wrong then.

  Returns:
    The index of the first bad step, if any.
  """
  for i, tokens in enumerate(step_tokens):
    if len(tokens) > max_step_tokens:
      step_tokens[i] = tokens[:max_step_tokens]
      return i if bad_step is None else min(i, bad_step)
  return bad_step


def make_batch(
  problems: TrainingProblems,
  vocabulary: Vocabulary,
  rng: np.random.Generator,
  *,
  config: WarmStartConfig,
  text: TextConfig,
  difficulties: Sequence[int],
  batch_size: int,
) -> TrainBatch:
  """A batch of hindsight lines, a share of them made wrong.

  Args:
    problems: to play.
    vocabulary: to encode with.
    rng: consumed.
    config: says how many are made wrong.
    text: limits of the batch.
    difficulties: drawn from uniformly.
    batch_size: B.

  Returns:
    The batch, B rows.
  """
  plays = []
  for _ in range(batch_size):
    line = draw_line(problems, rng, difficulties, config.corrupt_share)
    prompt_tokens, step_tokens = encode_line(
      vocabulary,
      line.problem.prompt,
      line.steps,
      is_finished=line.is_finished,
    )
    bad_step = line.bad_step
    if line.is_corrupted:
      bad_step = _cut_long_step(step_tokens, bad_step, text.max_step_tokens)
    plays.append(
      lines.Play(prompt_tokens, step_tokens, bad_step, line.is_aimless)
    )
  return lines.plays_to_lines(plays, text.max_line_tokens)
