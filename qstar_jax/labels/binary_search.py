"""Labels by bisection: where lines go wrong, from few roll-outs.

OmegaPRM (Luo et al. 2024, arXiv:2406.06592). A state is a prefix of a line, MC
the share of its K roll-outs that are solved, and it is alive where MC > 0. What
is alive was alive before, so that of n steps the first wrong one is found by
asking for about log2(n) states. Wrong roll-outs of the states visited are lines
to be bisected in their turn: next comes roll-out r of state s of the largest

  alpha^(1 - MC(s)) beta^(len(r) / L) + c_puct sqrt(sum_s' N(s')) / (1 + N(s)),

where N counts how often a state was selected, and 0 < MC(s) < 1.

Only verdicts on whole lines are used, as by `rollouts`.

Deviations: the line that was given stands in place of the problem's own
roll-outs, unless it has no steps; len(r) are the steps after s, and L those of
the longest line; a state is rolled out once, whatever lines it lies on; a
roll-out without an end has no answer that could be wrong, and is not bisected.
"""

import collections
from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from typing import Literal

import numpy as np

from qstar_jax.config import LabelsConfig
from qstar_jax.labels.lines import Line, labelled, play_seed
from qstar_jax.labels.rollouts import Prefix, Rollout, RolloutFn, Rollouts
from qstar_jax.records import NO_LABEL, LabelledLine


def selection_scores(
  share: np.ndarray,
  length: np.ndarray,
  visits: np.ndarray,
  total_visits: int,
  config: LabelsConfig,
  max_steps: int,
) -> np.ndarray:
  """What the next roll-out is chosen by, the largest first.

  Args:
    share: float [R] in (0, 1), MC of the roll-outs' states.
    length: int [R] >= 1, steps of the roll-outs, those of their states left
      out.
    visits: int [R], N of the states.
    total_visits: the sum of N over all states.
    config: alpha, beta and c_puct.
    max_steps: L.

  Returns:
    float [R].
  """
  quality = config.alpha ** (1 - share) * config.beta ** (length / max_steps)
  return quality + config.c_puct * np.sqrt(total_visits) / (1 + visits)


class _Search:
  """The search that begins with one line."""

  def __init__(
    self,
    line: Line,
    *,
    config: LabelsConfig,
    kind: str,
    max_steps: int,
    seed: int,
    params_version: int,
  ):
    """See `label_lines`."""
    self._line, self._config, self._kind = line, config, kind
    self._max_steps, self._seed = max_steps, seed
    self._params_version = params_version
    self._states: dict[tuple[str, ...], Rollouts] = {}
    self._visits: collections.Counter[tuple[str, ...]] = collections.Counter()
    self._pool: list[tuple[tuple[str, ...], Rollout]] = []
    self._has_label: set[tuple[str, ...]] = set()
    self._num_asked = 0
    self._tokens = 0

  def run(self) -> Generator[Prefix, Rollouts, list[LabelledLine]]:
    """Asks for the roll-outs of one prefix after another; returns the lines."""
    line = self._line
    if not (yield from self._is_alive(line.steps, line.is_finished)):
      yield from self._bisect(0, line.steps)
    found = [self._labelled(line)] if line.steps else []
    while self._pool and self._num_asked < self._config.budget:
      state, rollout = self._select()
      # Its verdict is known.
      self._states.setdefault(rollout.steps, Rollouts((rollout,), 0))
      yield from self._bisect(len(state), rollout.steps)
      wrong = line._replace(steps=rollout.steps, is_finished=True)
      record = self._labelled(wrong)
      if (record.label != NO_LABEL).any():
        found.append(record)
    return found

  def _bisect(
    self, alive: int, steps: tuple[str, ...]
  ) -> Generator[Prefix, Rollouts, None]:
    """Closes in on the first wrong step, as long as the budget lasts.

    Args:
      alive: steps that are known to be right.
      steps: of a line that is wrong at its end.
    """
    wrong = len(steps)
    while wrong - alive > 1:
      middle = (alive + wrong) // 2
      state = steps[:middle]
      is_asked = state not in self._states
      if is_asked and self._num_asked == self._config.budget:
        return
      if (yield from self._is_alive(state)):
        alive = middle
      else:
        wrong = middle

  def _is_alive(
    self, steps: tuple[str, ...], is_finished: bool = False
  ) -> Generator[Prefix, Rollouts, bool]:
    """Whether a roll-out of a state is solved; asks unless that is known."""
    if steps not in self._states:
      self._num_asked += 1
      seed = play_seed(self._seed, self._line, self._num_asked)
      rollouts = yield Prefix(self._line.problem, steps, is_finished, seed)
      self._states[steps] = rollouts
      self._tokens += rollouts.tokens
      if rollouts.value("hard") == 1:
        self._pool += [
          (steps, sample)
          for sample in rollouts.samples
          if sample.is_finished and not sample.is_solved
        ]
    return self._states[steps].value("hard") == 1

  def _select(self) -> tuple[tuple[str, ...], Rollout]:
    """Takes the best roll-out, and its state, from the pool."""
    states = [state for state, _ in self._pool]
    scores = selection_scores(
      np.array([self._states[state].value("soft") for state in states]),
      np.array([len(r.steps) - len(state) for state, r in self._pool]),
      np.array([self._visits[state] for state in states]),
      self._visits.total(),
      self._config,
      self._max_steps,
    )
    selected = self._pool.pop(int(np.argmax(scores)))
    self._visits[selected[0]] += 1
    return selected

  def _labelled(self, line: Line) -> LabelledLine:
    """The record of a line, with what has been spent since the last one.

    A state that lies on several lines has its label on the first of them.
    """
    label = np.full(len(line.steps), NO_LABEL)
    for i in range(len(line.steps)):
      state = line.steps[: i + 1]
      if state in self._states:
        label[i] = self._states[state].value(self._kind)
        if self._kind == "hard" and label[i] == 1:
          label[: i + 1] = 1
    for i in range(len(line.steps)):
      state = line.steps[: i + 1]
      if state in self._has_label:
        label[i] = NO_LABEL
      elif label[i] != NO_LABEL:
        self._has_label.add(state)
    tokens, self._tokens = self._tokens, 0
    return labelled(
      line,
      label,
      kind=self._kind,
      source="binary_search",
      params_version=self._params_version,
      tokens=tokens,
    )


class _Running:
  """A search between two rounds.

  Attributes:
    asked: the prefix that it waits for; None when it is done.
    found: its lines, when it is done.
  """

  def __init__(self, search: _Search):
    self._run = search.run()
    self.found: list[LabelledLine] = []
    self.tell(None)

  def tell(self, rollouts: Rollouts | None) -> None:
    """Goes on with the answer to what was asked."""
    try:
      self.asked = self._run.send(rollouts)
    except StopIteration as stop:
      self.asked, self.found = None, stop.value


def label_lines(
  rollout_fn: RolloutFn,
  lines: Iterable[Line],
  *,
  config: LabelsConfig,
  kind: Literal["hard", "soft"],
  max_steps: int,
  batch_size: int,
  seed: int,
  params_version: int,
) -> Iterator[LabelledLine]:
  """Labels the states that bisection visits, `config.budget` for each line.

  A line that is wrong at its end is bisected before any roll-out is; with K
  roll-outs to a state that takes 1 + ceil(log2 n) states for n steps. Soft
  labels are MC of the states visited. Hard ones say which of them are alive,
  and that what stands before those is. The other steps have no label.

  Args:
    rollout_fn: plays on; called once a round, with a prefix of every line that
      is not done.
    lines: drawn as there is room; one without steps stands for its problem.
    config: budget, alpha, beta and c_puct.
    kind: of the labels.
    max_steps: of the longest line, L.
    batch_size: lines at a time.
    seed: of all roll-outs.
    params_version: of the network that plays on.

  Yields:
    For every line, in order, itself if it has steps, and then the roll-outs
    that were bisected and have steps of their own to tell of. A step has its
    label in one of them.
  """
  searches = (
    _Search(
      line,
      config=config,
      kind=kind,
      max_steps=max_steps,
      seed=seed,
      params_version=params_version,
    )
    for line in lines
  )
  queue: collections.deque[_Running] = collections.deque()
  while True:
    num_free = batch_size - sum(one.asked is not None for one in queue)
    queue.extend(map(_Running, islice(searches, num_free)))
    asking = [one for one in queue if one.asked is not None]
    if not asking:
      return
    answers = list(rollout_fn([one.asked for one in asking]))
    for one, rollouts in zip(asking, answers, strict=True):
      one.tell(rollouts)
    while queue and queue[0].asked is None:
      yield from queue.popleft().found
