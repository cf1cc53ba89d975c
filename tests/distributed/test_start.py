"""Processes of one program meet before JAX starts, or say why they do not."""

import socket
import threading
import time

import pytest

from qstar_jax.distributed import start
from qstar_jax.distributed.start import Place, find_place
from qstar_jax.errors import LostHostError, UserError

FACTS = {"config": {"seed": 1, "learner": {"batch_size": 64}}, "jax": "0.10"}


@pytest.fixture
def address():
  """Of a port that nobody listens at."""
  with socket.create_server(("localhost", 0)) as server:
    port = server.getsockname()[1]
  return f"localhost:{port}"


class Process(threading.Thread):
  """Goes to a meeting; keeps what it was told, and how it ended."""

  def __init__(self, place, facts=FACTS, timeout=20):
    super().__init__()
    self.place, self.facts, self.timeout = place, facts, timeout
    self.words, self.error = [], None
    self.start()

  def run(self):
    try:
      start.meet(
        self.place, self.facts, timeout=self.timeout, say=self.words.append
      )
    except (LostHostError, UserError) as error:
      self.error = str(error)

  def end(self):
    self.join(30)
    assert not self.is_alive()
    return self.error


def test_all_come_in_any_order(address):
  later = [Process(Place(address, 4, i)) for i in (3, 1)]
  time.sleep(0.2)
  first = Process(Place(address, 4, 0))
  while "process 2 not" not in "".join(first.words):
    time.sleep(0.01)
  last = Process(Place(address, 4, 2))
  assert [p.end() for p in (first, last, *later)] == [None] * 4
  *_, before, last_words = first.words
  assert before.startswith(f"waiting for 1 of 4 hosts at {address}: process 2")
  assert last_words == "all 4 hosts are there"


def test_the_port_is_free_for_jax_afterwards(address):
  processes = [Process(Place(address, 2, i)) for i in range(2)]
  assert [p.end() for p in processes] == [None, None]
  port = processes[0].place.port
  with socket.create_server(("localhost", port)):
    pass


def test_those_that_are_to_run_something_else_are_told_what(address):
  other = {**FACTS, "config": {"seed": 1, "learner": {"batch_size": 32}}}
  processes = [
    Process(Place(address, 3, 0)),
    Process(Place(address, 3, 1)),
  ]
  while "process 2 not" not in "".join(processes[0].words):
    time.sleep(0.01)
  processes.append(Process(Place(address, 3, 2), other))
  errors = {p.end() for p in processes}
  assert len(errors) == 1
  (error,) = errors
  assert error.startswith(
    "process 2 differs from process 0: config.learner.batch_size is 32 there, "
    "64 here"
  )


def test_another_number_of_processes_is_a_difference(address):
  processes = [Process(Place(address, 2, 0)), Process(Place(address, 3, 1))]
  for process in processes:
    assert "JAX_NUM_PROCESSES is 3 there, 2 here" in process.end()


def test_process_0_says_who_did_not_come(address):
  first = Process(Place(address, 4, 0), timeout=1)
  one = Process(Place(address, 4, 2), timeout=20)
  error = first.end()
  assert error.startswith("process 1 and 3 of 4 did not come to localhost:")
  assert one.end() == error


def test_the_others_say_that_process_0_cannot_be_reached(address):
  error = Process(Place(address, 2, 1), timeout=1).end()
  assert f"process 1 did not reach process 0 at {address} within 1 s" in error
  assert "refused" in error


@pytest.mark.parametrize(
  "sent", [b"", b"GET / HTTP/1.0\r\n\r\n", b"[1]\n", b'{"a": 1}\n', b"\xff\n"]
)
def test_strangers_at_the_port_do_not_count(address, sent):
  first = Process(Place(address, 2, 0))
  while not first.words:
    time.sleep(0.01)
  with socket.create_connection(("localhost", first.place.port)) as stranger:
    stranger.sendall(sent)
    stranger.shutdown(socket.SHUT_WR)
    assert stranger.recv(1) == b""
  assert Process(Place(address, 2, 1)).end() is None
  assert first.end() is None


def test_a_host_that_was_started_again_counts_once(address):
  first = Process(Place(address, 3, 0))
  while not first.words:
    time.sleep(0.01)
  hello = {"process_id": 1, "facts": {"JAX_NUM_PROCESSES": 3, **FACTS}}
  with socket.create_connection(("localhost", first.place.port)) as dying:
    start._send(dying, hello)
    while "process 2 not" not in "".join(first.words):
      time.sleep(0.01)
  while "process 1 and 2 not" not in first.words[-1]:
    time.sleep(0.01)
  others = [Process(Place(address, 3, i)) for i in (2, 1)]
  assert [p.end() for p in (first, *others)] == [None] * 3


def test_a_port_that_is_taken_is_named(address):
  port = address.rpartition(":")[2]
  with socket.create_server(("", int(port))):
    error = Process(Place(address, 2, 0), timeout=0.5).end()
  assert f"port {port} of JAX_COORDINATOR_ADDRESS cannot be" in error


OWN = {
  "JAX_COORDINATOR_ADDRESS": "10.0.0.2:8476",
  "JAX_NUM_PROCESSES": "4",
  "JAX_PROCESS_ID": "3",
}
GKE = {"TPU_WORKER_HOSTNAMES": "a.b,c.d", "TPU_WORKER_ID": "1"}
SLICES = {
  **GKE,
  "MEGASCALE_COORDINATOR_ADDRESS": "e.f:8080",
  "MEGASCALE_NUM_SLICES": "3",
  "MEGASCALE_SLICE_ID": "2",
}


@pytest.mark.parametrize(
  ("environ", "place"),
  [
    ({}, None),
    (OWN, Place("10.0.0.2:8476", 4, 3)),
    ({**OWN, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, None),
    ({**GKE, **OWN}, Place("10.0.0.2:8476", 4, 3)),
    (GKE, Place("a.b:8476", 2, 1)),
    ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
    (SLICES, Place("e.f:8476", 6, 5)),
  ],
)
def test_the_environment_says_who_one_is(environ, place):
  assert find_place(environ) == place


@pytest.mark.parametrize(
  ("environ", "words"),
  [
    ({"JAX_PROCESS_ID": "0"}, "without JAX_COORDINATOR_ADDRESS and JAX_NUM"),
    ({**OWN, "JAX_PROCESS_ID": "4"}, "0 or more and below JAX_NUM_PROCESSES"),
    ({**OWN, "JAX_NUM_PROCESSES": "four"}, "is 'four': must be a number"),
    ({**OWN, "JAX_COORDINATOR_ADDRESS": "a"}, "must be HOST:PORT"),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU_WORKER_ID is ''"),
  ],
)
def test_an_environment_that_makes_no_sense_is_refused(environ, words):
  with pytest.raises(UserError, match=words):
    find_place(environ)


def test_an_address_may_be_of_ipv6():
  place = Place("[::1]:8476", 2, 0)
  assert (place.host, place.port) == ("::1", 8476)
