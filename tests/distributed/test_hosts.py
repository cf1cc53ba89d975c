"""What several processes of one program know of each other."""

import json
import os
import socket
import subprocess
import sys

import jax
import pytest

from qstar_jax.distributed import hosts, start
from qstar_jax.errors import LostHostError

NUM_HOSTS = 3


@pytest.fixture(scope="module")
def told():
  """What each of the processes says."""
  with socket.create_server(("localhost", 0)) as server:
    address = f"localhost:{server.getsockname()[1]}"
  processes = [
    subprocess.Popen(
      [sys.executable, "tests/distributed/hosts_program.py"],
      stdout=subprocess.PIPE,
      text=True,
      env={
        **os.environ,
        "PYTHONPATH": ".",
        "JAX_NUM_CPU_DEVICES": "2",
        start.ADDRESS: address,
        start.NUM_PROCESSES: str(NUM_HOSTS),
        start.PROCESS_ID: str(i),
      },
    )
    for i in range(NUM_HOSTS)
  ]
  # Gloo speaks there too.
  return [
    json.loads(process.communicate(timeout=120)[0].splitlines()[-1])
    for process in processes
  ]


def test_all_know_the_same(told):
  assert told[1:] == told[:-1]


def test_what_is_exchanged_may_have_any_size(told):
  assert told[0]["exchanged"] == [
    [0, 0, 0],
    [0, 5_000, 10_000],
    [0, 3_000_001, 6_000_002],
  ]
  assert told[0]["is_right"]


def test_the_first_decides_for_all(told):
  assert told[0]["on_first"] == "of 0"


def test_what_fails_somewhere_fails_everywhere(told):
  """The first process on which it does has the word."""
  assert told[0]["failed"] == "on 1"
  assert told[0]["failed_on_first"] is None


def test_errors_that_cannot_be_pickled_say_the_same(told):
  assert told[0]["shy"] == "ShyError: 1 and 2"


def test_those_that_have_gone_other_ways_are_found(told):
  assert told[0]["alike"] is None
  assert told[0]["unlike"].startswith(
    "it of process 2 is not that of process 0"
  )


def test_a_word_of_one_is_heard_by_all_one_call_later(told):
  assert told[0]["heard"] == [False, False, False, True, False]


def test_in_its_own_time_a_process_hears_itself_alone(told):
  assert told[0]["in_own_time"] == [False, False, True]


def test_alone_everything_is_what_it_is():
  assert hosts.count() == 1 and hosts.is_first()
  assert hosts.exchange("x") == ["x"]
  assert hosts.together(lambda: 1) == [1]
  assert hosts.on_first(lambda: 2) == 2
  assert [hosts.AnyHost()(own) for own in (True, False)] == [True, False]


@pytest.mark.parametrize(
  "words",
  [
    "UNAVAILABLE: tasks are unhealthy (stopped sending heartbeats)",
    "INTERNAL: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]",
  ],
)
def test_a_lost_process_is_found_below_other_errors(words, monkeypatch):
  error = OSError("cannot be written")
  error.__cause__ = jax.errors.JaxRuntimeError(words)
  hosts.raise_if_lost(error)
  monkeypatch.setattr(hosts, "count", lambda: 2)
  with pytest.raises(LostHostError, match="has lost another process"):
    hosts.raise_if_lost(error)
  hosts.raise_if_lost(OSError("no space left"))
