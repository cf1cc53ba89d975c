"""Hindsight warm start: random legal play, read as solving what it reached.

Rules only: no solution comes from outside, and no held-out problem is played.
"""

from collections.abc import Sequence

import numpy as np

from qstar_jax.config import TextConfig, WarmStartConfig
from qstar_jax.domains.hindsight import HindsightLine, draw_line
from qstar_jax.domains.splits import TrainingProblems
from qstar_jax.errors import UserError
from qstar_jax.learner import plays
from qstar_jax.records import TrainBatch
from qstar_jax.text.steps import encode_line
from qstar_jax.text.vocabulary import Vocabulary

# Lines of random play per row of a batch, among which those that fit are found.
_MAX_DRAWS = 100


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


def _as_play(
  line: HindsightLine, vocabulary: Vocabulary, text: TextConfig
) -> plays.Play | None:
  """The line in tokens; None if no search could write it."""
  prompt, steps = encode_line(
    vocabulary, line.problem.prompt, line.steps, is_finished=line.is_finished
  )
  if len(prompt) > text.max_prompt_tokens:
    return None
  for i, tokens in enumerate(steps):
    if len(tokens) > text.max_step_tokens:
      if not line.is_corrupted or line.is_aimless:
        return None
      # A search would cut it here; nothing after a bad step is learned.
      steps[i] = tokens[: text.max_step_tokens]
      bad_step = i if line.bad_step is None else min(i, line.bad_step)
      return plays.Play(prompt, steps[: i + 1], bad_step)
  return plays.Play(prompt, steps, line.bad_step, line.is_aimless)


def make_batch(
  problems: TrainingProblems,
  vocabulary: Vocabulary,
  rng: np.random.Generator,
  *,
  config: WarmStartConfig,
  text: TextConfig,
  difficulties: Sequence[int],
  num_rows: int,
  lines_per_row: int = 1,
  has_player: bool = False,
) -> TrainBatch:
  """A batch of hindsight lines, a share of them made wrong.

  A line that no search could write, for a step or a prompt that is too long, is
  left out; one that breaks a rule is cut there, as a search would, and goes
  wrong there.

  Args:
    problems: to play.
    vocabulary: to encode with.
    rng: consumed.
    config: says how many are made wrong.
    text: limits of the batch.
    difficulties: drawn from uniformly.
    num_rows: B.
    lines_per_row: see `plays.plays_to_rows`.
    has_player: see there.

  Returns:
    The batch, B rows.

  Raises:
    UserError: hardly any line is short enough.
  """
  found: list[plays.Play] = []
  num_lines = num_rows * lines_per_row
  for _ in range(_MAX_DRAWS * num_lines):
    line = draw_line(problems, rng, difficulties, config.corrupt_share)
    if (play := _as_play(line, vocabulary, text)) is not None:
      found.append(play)
    if len(found) == num_lines:
      return plays.plays_to_rows(
        found,
        text.max_line_tokens,
        lines_per_row=lines_per_row,
        has_player=has_player,
      )
  raise UserError(
    f"{len(found)} of {_MAX_DRAWS * num_lines} lines of random play fit "
    f"text.max_prompt_tokens {text.max_prompt_tokens} and "
    f"text.max_step_tokens {text.max_step_tokens}; raise them"
  )
