"""Bisection against plain code, in worlds without a network."""

import hashlib
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from qstar_jax.config import LabelsConfig
from qstar_jax.labels import binary_search
from qstar_jax.labels.lines import Line
from qstar_jax.labels.rollouts import Rollout, Rollouts
from qstar_jax.records import NO_LABEL, Problem

PROBLEM = Problem("made_up", "?\n", "?", {}, 1)
K, MAX_STEPS = 4, 24


def unit(*parts):
  """A number in [0, 1) that belongs to `parts`."""
  digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
  return int.from_bytes(digest, "big") / 2**64


def label(rollout_fn, lines, *, kind="soft", batch_size=3, **config):
  return list(
    binary_search.label_lines(
      rollout_fn,
      lines,
      config=LabelsConfig(num_rollouts=K, **config),
      kind=kind,
      max_steps=MAX_STEPS,
      batch_size=batch_size,
      seed=0,
      params_version=2,
    )
  )


# Lines whose first wrong step is known.


class KnownMistake:
  """All roll-outs of what stands before the wrong step are solved."""

  def __init__(self, first_wrong):
    self.first_wrong = first_wrong
    self.asked = []

  def __call__(self, prefixes):
    for prefix in prefixes:
      self.asked.append(len(prefix.steps))
      is_solved = len(prefix.steps) <= self.first_wrong
      yield Rollouts((Rollout((*prefix.steps, "."), True, is_solved),) * K, 10)


@hypothesis.given(
  num_steps=st.integers(1, 70), place=st.floats(0, 1), kind=st.booleans()
)
def test_the_first_wrong_step_is_found_in_log2_of_the_steps(
  num_steps, place, kind
):
  # Index of the first wrong step; num_steps if there is none.
  first_wrong = round(place * num_steps)
  steps = tuple(f"step {i}" for i in range(num_steps))
  line = Line(0, PROBLEM, steps, is_finished=True, origin="here")
  rollout_fn = KnownMistake(first_wrong)
  kind = "hard" if kind else "soft"
  (record,) = label(rollout_fn, [line], kind=kind, budget=100)
  asked = rollout_fn.asked
  assert asked[0] == num_steps
  assert len(asked) == len(set(asked)) <= 1 + math.ceil(math.log2(num_steps))
  truth = (np.arange(num_steps) < first_wrong).astype(np.float32)
  if kind == "hard":
    np.testing.assert_array_equal(record.label[:first_wrong], 1)
    assert (record.label[first_wrong : first_wrong + 1] == 0).all()
  visited = np.isin(np.arange(num_steps) + 1, asked)
  np.testing.assert_array_equal(record.label[visited], truth[visited])
  if kind == "soft":
    assert (record.label[~visited] == NO_LABEL).all()
  assert record.tokens == 10 * len(asked)
  assert (record.kind, record.source) == (kind, "binary_search")
  assert (record.params_version, record.origin) == (2, "here")


def test_a_budget_that_is_too_small_leaves_true_labels():
  steps = tuple(f"step {i}" for i in range(64))
  line = Line(0, PROBLEM, steps, is_finished=True)
  rollout_fn = KnownMistake(40)
  (record,) = label(rollout_fn, [line], kind="hard", budget=3)
  assert rollout_fn.asked == [64, 32, 48]
  expected = np.full(64, NO_LABEL)
  expected[:32] = 1
  expected[[47, 63]] = 0
  np.testing.assert_array_equal(record.label, expected)


def test_a_prefix_that_cannot_be_played_has_no_label():
  def rollout_fn(prefixes):
    for prefix in prefixes:
      is_readable = len(prefix.steps) < 3
      solved = Rollout((*prefix.steps, "."), True, True)
      yield Rollouts((solved,) if is_readable else (), 1)

  line = Line(0, PROBLEM, tuple("abcd"), is_finished=False)
  (record,) = label(rollout_fn, [line], kind="hard", budget=9)
  np.testing.assert_array_equal(record.label, [1, 1, NO_LABEL, NO_LABEL])


# Selection.


def test_selection_by_hand():
  scores = binary_search.selection_scores(
    np.array([0.75, 0.25]),
    np.array([8, 24]),
    np.array([3, 0]),
    9,
    LabelsConfig(alpha=0.5, beta=0.9, c_puct=0.125),
    24,
  )
  # 0.5^0.25 0.9^(1/3) + 0.125 3 / 4 and 0.5^0.75 0.9 + 0.125 3 / 1.
  np.testing.assert_allclose(scores, [0.905627, 0.910143], atol=1e-6)


# A world of chances: every prefix has K samples of its own.


def ask_world(steps):
  """The K samples of a prefix."""
  samples = []
  # The more z, the worse.
  chance = max(0.1, 0.7 - 0.1 * steps.count("z"))
  for k in range(K):
    line = steps
    while len(line) < MAX_STEPS - 1 and unit(line, k, "end") < 0.9:
      line = (*line, "xyz"[int(3 * unit(line, k, steps, "step"))])
    is_finished = unit(steps, k, "finished") < 0.8
    is_solved = is_finished and unit(steps, k, "solved") < chance
    line = (*line, "." if is_finished else "z")
    samples.append(Rollout(line, is_finished, is_solved))
  return Rollouts(tuple(samples), 3 + len(steps))


class World:
  """Keeps what it was asked, by problem and in order."""

  def __init__(self):
    self.asked = {}
    self.round_sizes = []

  def __call__(self, prefixes):
    prefixes = list(prefixes)
    self.round_sizes.append(len(prefixes))
    for prefix in prefixes:
      self.asked.setdefault(prefix.problem.key, []).append(prefix.steps)
      yield ask_world(prefix.steps)


def world_lines(num_lines):
  rng = np.random.default_rng(0)
  lines = []
  for i in range(num_lines):
    num_steps = rng.integers(12)
    steps = tuple(rng.choice([*"xyz"], num_steps).tolist())
    problem = Problem("made_up", "?\n", f"problem {i}", {}, 1)
    lines.append(Line(i, problem, steps, is_finished=False))
  return lines


class _NoBudget(Exception):
  pass


def plain_omegaprm(steps, budget, alpha, beta, c_puct):
  """What is asked, in order, written as the paper tells it."""
  asked, mc, rollouts, visits, used = [], {}, [], {}, set()

  def evaluate(state):
    if state in mc:
      return mc[state]
    if len(asked) >= budget:
      raise _NoBudget
    asked.append(state)
    samples = ask_world(state).samples
    mc[state] = sum(s.is_solved for s in samples) / K
    visits[state] = 0
    for s in samples:
      if s.is_finished and not s.is_solved:
        rollouts.append((state, s.steps))
    return mc[state]

  def bisect(line, low, high):
    if high - low < 2:
      return
    middle = low + (high - low) // 2
    if evaluate(line[:middle]) > 0:
      bisect(line, middle, high)
    else:
      bisect(line, low, middle)

  try:
    if evaluate(steps) == 0:
      bisect(steps, 0, len(steps))
    while len(asked) < budget:
      best = None
      for i, (state, rollout) in enumerate(rollouts):
        if i in used or not 0 < mc[state] < 1:
          continue
        score = (
          alpha ** (1 - mc[state])
          * beta ** ((len(rollout) - len(state)) / MAX_STEPS)
        )  # fmt: skip
        score += c_puct * math.sqrt(sum(visits.values())) / (1 + visits[state])
        if best is None or score > best[0]:
          best = score, i
      if best is None:
        break
      used.add(best[1])
      state, rollout = rollouts[best[1]]
      visits[state] += 1
      mc.setdefault(rollout, 0.0)
      bisect(rollout, len(state), len(rollout))
  except _NoBudget:
    pass
  return asked


@pytest.mark.parametrize("budget", [1, 5, 20])
@pytest.mark.parametrize(
  ("alpha", "beta", "c_puct"), [(0.5, 0.9, 0.125), (0.9, 0.2, 2.0)]
)
def test_states_are_visited_as_plain_code_visits_them(
  budget, alpha, beta, c_puct
):
  lines = world_lines(12)
  how = {"budget": budget, "alpha": alpha, "beta": beta, "c_puct": c_puct}
  world = World()
  label(world, lines, **how)
  assert len(world.asked) == len(lines)
  for line in lines:
    asked = world.asked[line.problem.key]
    assert len(asked) <= budget
    assert asked == plain_omegaprm(line.steps, **how)
  if budget == 20:
    assert max(map(len, world.asked.values())) == budget


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_every_visited_state_is_labelled_once(kind):
  world = World()
  lines = world_lines(12)
  records = label(world, lines, kind=kind, budget=15)
  num_labels = num_known = 0
  for line in lines:
    found = [r for r in records if r.problem_key == line.problem.key]
    asked = world.asked[line.problem.key]
    assert sum(r.tokens for r in found) == sum(3 + len(s) for s in asked)
    if line.steps:
      assert found[0].steps == line.steps
      assert found[0].is_finished == line.is_finished
    values = {}
    for record in found:
      assert record.label.shape == (len(record.steps),)
      for i in np.flatnonzero(record.label != NO_LABEL):
        state = record.steps[: i + 1]
        assert state not in values
        values[state] = record.label[i]
    for record in found[1:]:
      assert record.is_finished
      assert (record.label != NO_LABEL).any()
    for state in asked:
      if state:
        solved = [s.is_solved for s in ask_world(state).samples]
        expected = np.mean(solved) if kind == "soft" else any(solved)
        if not (kind == "hard" and values[state] == 1):
          assert values[state] == np.float32(expected)
          num_known += 1
    # Of what was not asked: the ends of wrong roll-outs, and what is alive
    # because something after it is.
    for state, value in values.items():
      num_labels += 1
      if state in asked:
        continue
      later = [s for s in asked if s[: len(state)] == state]
      is_alive = any(
        sample.is_solved for s in later for sample in ask_world(s).samples
      )
      assert (kind, value) == ("hard", 1) if is_alive else value == 0
  assert num_labels > num_known > 20


def test_lines_come_in_order_whatever_the_batch():
  lines = world_lines(9)

  def ends(batch_size):
    world = World()
    found = label(world, lines, batch_size=batch_size, budget=8)
    assert max(world.round_sizes) <= batch_size
    return [(r.problem_key, r.steps, r.label.tolist(), r.tokens) for r in found]

  one = ends(1)
  assert ends(4) == one
  assert ends(100) == one
  order = [int(key.split()[1]) for key, *_ in one]
  assert order == sorted(order)


def test_a_table_stays_full_while_there_are_lines():
  world = World()
  label(world, world_lines(20), batch_size=5, budget=8)
  sizes = world.round_sizes
  num_full = sizes.index(next(size for size in sizes if size < 5))
  assert num_full >= (sum(map(len, world.asked.values())) - 5 * 8) // 5
