"""Signals as a flag."""

import signal

import pytest

from qstar_jax.training.preemption import (
  Preempted,
  PreemptionFlag,
  catch_signals,
)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture
def seen():
  """What reaches the handlers that were there before."""
  numbers = []
  old = {
    number: signal.signal(number, lambda number, _: numbers.append(number))
    for number in _SIGNALS
  }
  yield numbers
  for number, handler in old.items():
    signal.signal(number, handler)


def test_a_flag_of_its_own_never_stops():
  PreemptionFlag().check()


@pytest.mark.parametrize("number", _SIGNALS)
def test_the_first_signal_sets_the_flag_and_the_second_acts(seen, number):
  with catch_signals() as flag:
    flag.check()
    signal.raise_signal(number)
    assert seen == []
    for _ in range(2):
      with pytest.raises(Preempted, match=f"^{number.name}$"):
        flag.check()
    for later in _SIGNALS:
      signal.raise_signal(later)
    assert seen == list(_SIGNALS)


def test_afterwards_the_handlers_are_the_old_ones(seen):
  with pytest.raises(ZeroDivisionError), catch_signals():
    raise ZeroDivisionError
  signal.raise_signal(signal.SIGTERM)
  assert seen == [signal.SIGTERM]
