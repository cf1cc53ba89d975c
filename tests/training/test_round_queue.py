"""Rounds that are played ahead: by how much, how fast, and how it ends."""

import contextlib
import itertools
import random
import threading
import time
from typing import NamedTuple

import pytest

from qstar_jax.config import ExperimentConfig, SelfPlayConfig
from qstar_jax.training.preemption import Preempted, PreemptionFlag
from qstar_jax.training.round_queue import RoundQueue
from qstar_jax.validation.relations import split_staleness

_CONFIG = ExperimentConfig()
_STEPS = _CONFIG.learner.steps_per_iteration


class _Round(NamedTuple):
  index: int
  version: int


def _play(params, version, index):
  assert params == f"params {version}"
  return _Round(index, version)


def _never():
  """Nobody asks to stop."""


@pytest.mark.parametrize(
  ("max_lead", "publish_every"), [(1, 1), (3, 1), (2, 4)]
)
def test_trees_are_never_older_than_the_bound(max_lead, publish_every):
  """A thousand publications, whoever happens to be the faster one."""
  play = SelfPlayConfig(
    max_lead=max_lead, publish_every_iterations=publish_every
  )
  bound = split_staleness(ExperimentConfig(self_play=play))
  rng = random.Random(0)
  ages = []
  indices = itertools.count(7)
  with RoundQueue(_play, max_lead=max_lead, indices=indices) as queue:
    for iteration in range(7, 7 + 1000 * publish_every):
      step = iteration * _STEPS
      if iteration == 7 or iteration % publish_every == 0:
        queue.publish(f"params {step}", step)
      played = queue.take(_never)
      assert played.index == iteration
      ages.append(step + _STEPS - 1 - played.version)
      if rng.random() < 0.02:
        time.sleep(0.001)
  # The first params are no older than the run.
  assert 0 <= max(ages) <= bound
  # And the actor is ahead: it does not wait for the newest.
  assert max(ages) >= _STEPS


def test_play_and_learning_overlap():
  seconds, rounds = 0.05, 8

  def play(*_):
    time.sleep(seconds)

  start = time.monotonic()
  with RoundQueue(play, max_lead=1, indices=itertools.count()) as queue:
    queue.publish(None, 0)
    for _ in range(rounds):
      queue.take(_never)
      time.sleep(seconds)
  # Taking turns, it takes twice as long.
  assert time.monotonic() - start < 1.6 * rounds * seconds


@pytest.mark.parametrize("max_lead", [1, 4])
def test_no_more_is_played_than_may_be_ahead(max_lead):
  begun = []
  all_begun = threading.Event()

  def play(params, version, index):
    begun.append(index)
    if len(begun) == max_lead:
      all_begun.set()

  indices = itertools.count()
  with RoundQueue(play, max_lead=max_lead, indices=indices) as queue:
    time.sleep(0.02)
    assert begun == []  # Nothing is published.
    queue.publish(None, 0)
    assert all_begun.wait(10)
    time.sleep(0.02)
    assert begun == list(range(max_lead))
    queue.take(_never)
    while len(begun) < max_lead + 1:
      time.sleep(0.001)
    time.sleep(0.02)
    assert begun == list(range(max_lead + 1))


def test_what_ends_the_player_ends_the_taker():
  def play(params, version, index):
    if index == 1:
      raise ZeroDivisionError
    return index

  with RoundQueue(play, max_lead=2, indices=itertools.count()) as queue:
    queue.publish(None, 0)
    assert queue.take(_never) == 0
    with pytest.raises(ZeroDivisionError):
      queue.take(_never)


@contextlib.contextmanager
def _endless():
  """A queue in the middle of a round that ends only when it is told to."""
  is_playing = threading.Event()

  def play(*_):
    is_playing.set()
    while True:
      queue.flag.check()
      time.sleep(0.001)

  with RoundQueue(play, max_lead=1, indices=itertools.count()) as queue:
    queue.publish(None, 0)
    assert is_playing.wait(10)
    yield queue


def test_stopped_while_it_waits_and_plays():
  flag = PreemptionFlag()
  with _endless() as queue:
    flag.set()
    with pytest.raises(Preempted, match="SIGTERM"):
      queue.take(flag.check)
  assert not queue._thread.is_alive()


def test_it_ends_before_anything_is_published():
  with RoundQueue(_play, max_lead=1, indices=itertools.count()) as queue:
    pass
  assert not queue._thread.is_alive()


@pytest.mark.parametrize("max_lead", [1, 3, 9])
def test_no_round_is_begun_that_nobody_takes(max_lead):
  begun = []

  def play(params, version, index):
    begun.append(index)
    return index

  indices = range(4, 8)
  with RoundQueue(play, max_lead=max_lead, indices=indices) as queue:
    queue.publish(None, 0)
    assert [queue.take(_never) for _ in indices] == [*indices]
    # The thread has ended by itself.
    queue._thread.join(10)
    assert not queue._thread.is_alive()
    assert begun == [*indices]
    with pytest.raises(IndexError):
      queue.take(_never)


def test_it_can_be_told_to_end_before_its_context_does():
  with _endless() as queue:
    queue.stop()
    queue._thread.join(10)
    assert not queue._thread.is_alive()
