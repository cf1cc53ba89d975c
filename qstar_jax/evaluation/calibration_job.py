"""`qstar calibrate`: plays problems, and judges the scores of the steps."""

import dataclasses
from collections.abc import (
  Callable,
  Collection,
  Iterable,
  Iterator,
  Sequence,
)
from typing import Any

import numpy as np

from qstar_jax.config import SearchConfig
from qstar_jax.errors import UserError
from qstar_jax.evaluation import calibration
from qstar_jax.evaluation.opened import Opened
from qstar_jax.evaluation.scored_lines import (
  ScoredLine,
  State,
  labelled_lines,
  open_states,
  oracle_lines,
  value_lines,
)
from qstar_jax.evaluation.step_scores import score_lines
from qstar_jax.records import LabelledLine, Problem
from qstar_jax.search.searchers import for_evaluation
from qstar_jax.selfplay import plays
from qstar_jax.selfplay.player import Job, text_for_prefixes
from qstar_jax.text.steps import count_tokens

# (what is being done, plays done, plays in all); may raise to stop.
OnProgress = Callable[[str, int, int], None]

# Whose successes V is to predict, and its search.
PLAYERS: dict[str, Callable[[SearchConfig], SearchConfig]] = {
  "self_play": lambda search: search,
  "policy": lambda search: for_evaluation(search, "sample"),
}


@dataclasses.dataclass(frozen=True)
class Calibration:
  """What the scores of a checkpoint's network are worth.

  Attributes:
    summary: JSON-able, see docs/step_evaluation.md.
    lines: what its parts were made of, by the name of the score: `prm` and, if
      the network has played, `value`.
  """

  summary: dict[str, Any]
  lines: dict[str, list[ScoredLine]]


def against_play(
  opened: Opened,
  problems: Sequence[Problem],
  *,
  player: str,
  num_states: int,
  num_plays: int,
  seed: int,
  on_progress: OnProgress = lambda name, done, total: None,
) -> Calibration:
  """The PRM against the exact oracle, V against plays that go on.

  Args:
    opened: the checkpoint.
    problems: at least one.
    player: a key of `PLAYERS`, that V is to predict.
    num_states: of each problem, that V is judged at: the problem, and some that
      its sampled lines went on from, the more likely the more of them did.
    num_plays: from each state by that player.
    seed: of the play, the draw of states and the bootstrap.
    on_progress: see `OnProgress`.

  Raises:
    UserError: the domain has no oracle, or an option is out of range.
  """
  domain = opened.domain
  if not hasattr(domain, "solvable"):
    raise UserError(
      f"domain {domain.name} has no method solvable(problem, steps), the exact "
      "oracle that says whether a solution can still be reached: write it (see "
      "qstar_jax.domains.step_domain)"
    )
  for flag, number in ("states", num_states), ("plays", num_plays):
    if number < 1:
      raise UserError(f"--num-{flag} {number}: must be 1 or more")
  config = opened.config
  search = for_evaluation(config.search, "best_of_n")
  jobs = [Job(problem, seed + i) for i, problem in enumerate(problems)]
  prm, states = [], []
  rng = np.random.default_rng(seed)
  for played in _play(opened, search, jobs, on_progress):
    prm += oracle_lines(domain, played)
    states += _draw_states(opened, played, num_states, rng)
  with_room = _with_room(opened)

  def success_rates(states):
    jobs = [
      Job(state.problem, seed + i * num_plays + j, steps=state.steps)
      for i, state in enumerate(states)
      for j in range(num_plays)
    ]
    scores = [
      plays.result(domain, played).verdict.score
      for played in _play(
        with_room, PLAYERS[player](config.search), jobs, on_progress
      )
    ]
    return np.reshape(scores, (len(states), num_plays)).mean(axis=1)

  value = value_lines(states, success_rates)
  summary = {
    **_origin(opened, seed),
    "prm": {
      "against": "oracle",
      **calibration.report(prm, seed),
      "first_error": calibration.first_error_report(prm, seed),
    },
    "value": {
      "against": f"{num_plays} plays by {player}",
      **calibration.report(value, seed),
    },
  }
  return Calibration(summary, {"prm": prm, "value": value})


def _with_room(opened: Opened) -> Opened:
  """With room for steps in the prompt."""
  text = text_for_prefixes(opened.config.text)
  config = dataclasses.replace(opened.config, text=text)
  return dataclasses.replace(opened, config=config)


def _draw_states(opened, played, num_states, rng) -> Iterator[State]:
  """The problem of a play, and other states that it went on from."""
  room = _with_room(opened).config.text.max_prompt_tokens
  root, *others = open_states(played)
  yield root
  for i in rng.permutation(len(others))[: num_states - 1]:
    num_tokens = count_tokens(
      opened.loaded.vocabulary, played.problem.prompt, others[i].steps
    )
    # The network may have said it in fewer tokens than it takes to be read.
    if num_tokens <= room:
      yield others[i]


def _play(opened, search, jobs, on_progress):
  """Plays of jobs, in their order."""
  num_trees = min(opened.config.evaluation.batch_size, len(jobs))
  player = opened.player(search, num_trees)

  def on_turn(done):
    on_progress(search.searcher, done, len(jobs))

  return player.play(opened.loaded.params, jobs, on_turn)


def against_labels(
  opened: Opened,
  lines: Iterable[LabelledLine],
  *,
  seed: int,
  learned: Collection[str] = (),
) -> Calibration:
  """The PRM against stored labels, with PRMScore for each domain of theirs.

  Args:
    opened: the checkpoint.
    lines: with labels; long ones are read in windows, and labels of steps that
      do not fit are left out and counted.
    seed: of the bootstrap.
    learned: keys of problems that the network has learned the labels of; their
      lines are left out and counted.

  Raises:
    UserError: no line with a label is left that fits.
  """
  config = opened.config
  scored, num_too_long, num_learned = [], 0, 0

  def unseen():
    nonlocal num_learned
    for line in lines:
      if line.problem_key in learned:
        num_learned += 1
      else:
        yield line

  for line, scores in score_lines(
    opened.loaded.graphdef,
    opened.loaded.params,
    opened.loaded.vocabulary,
    unseen(),
    text=config.text,
    batch_size=config.evaluation.batch_size,
    labelled_only=True,
  ):
    is_labelled = line.label >= 0
    if scores is None:
      num_too_long += int(is_labelled.sum())
    else:
      num_too_long += int((is_labelled & np.isnan(scores.prm)).sum())
      scored.append((line, scores))
  prm = list(labelled_lines(scored))
  if not any((line.label >= 0).any() for line in prm):
    raise UserError(
      f"no labelled step to judge the PRM by, of {len(prm)} lines, and "
      f"{num_too_long} that do not fit {config.text.max_line_tokens} tokens "
      f"beside their prompts; {num_learned} lines are of problems that the run "
      "has learned the labels of. Give other lines, or raise "
      "text.max_step_tokens"
    )
  summary = {
    **_origin(opened, seed),
    "prm": {
      "against": "labels",
      "too_long_steps": num_too_long,
      "learned_lines": num_learned,
      **calibration.report(prm, seed),
      "first_error": calibration.first_error_report(prm, seed),
      "groups": calibration.group_report(prm, seed),
    },
  }
  return Calibration(summary, {"prm": prm})


def _origin(opened: Opened, seed: int) -> dict[str, Any]:
  return {
    "domain": opened.domain.name,
    "checkpoint_step": opened.loaded.step,
    "seed": seed,
  }
