"""Hindsight warm start: random legal play, read as solving what it reached.

Rules only: no solution comes from outside, and no held-out problem is played.
"""

from collections.abc import Sequence

import numpy as np

from qstar_jax.config import TextConfig, WarmStartConfig
from qstar_jax.domains.splits import TrainingProblems
from qstar_jax.learner import lines
from qstar_jax.records import Outcome, Problem, TrainBatch
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


def _aimless_play(
  problems: TrainingProblems, rng: np.random.Generator, problem: Problem
) -> tuple[tuple[str, ...], int | None]:
  """Random legal steps to the end of a line, and the index of the bad one.

  The last step is bad unless the line happens to solve the problem.
  """
  domain = problems.domain
  steps: tuple[str, ...] = ()
  while legal := domain.legal_steps(problem, steps):
    steps = (*steps, legal[int(rng.integers(len(legal)))])
  is_correct = domain.verify(problem, steps).outcome == Outcome.CORRECT
  return steps, None if is_correct else len(steps) - 1


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

  Half of the wrong ones break a rule at some step; the other half are legal to
  the end and miss the goal, so that value and PRM must read the problem and not
  the line alone.

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
    problem, steps = problems.random_play(rng, int(rng.choice(difficulties)))
    num_steps = len(steps)
    bad_step, is_aimless = None, False
    kind = rng.random()
    if kind < config.corrupt_share / 2:
      steps, bad_step = problems.domain.corrupt(rng, problem, steps)
    elif kind < config.corrupt_share:
      steps, bad_step = _aimless_play(problems, rng, problem)
      num_steps, is_aimless = len(steps), bad_step is not None
    prompt_tokens, step_tokens = encode_line(
      # A mistake in mid-line does not look like the line's end.
      vocabulary,
      problem.prompt,
      steps,
      is_finished=len(steps) == num_steps,
    )
    if kind < config.corrupt_share:
      bad_step = _cut_long_step(step_tokens, bad_step, text.max_step_tokens)
    plays.append(lines.Play(prompt_tokens, step_tokens, bad_step, is_aimless))
  return lines.plays_to_lines(plays, text.max_line_tokens)
