"""The start of one program on several hosts: its processes meet, and agree.

JAX's own start says nothing until all are there, and nothing of who is missing
if they are not. So they meet first, at the same address: process 0 waits there
for the others, tells who has not come, and compares what each is about to run.
"""

import json
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from qstar_jax.errors import LostHostError, UserError

# That the firewall rule which Cloud TPU makes for the hosts of a slice opens,
# unlike the 8482 that JAX would take (github.com/jax-ml/jax/issues/35905).
PORT = 8476

# Variables that say who a process is.
ADDRESS = "JAX_COORDINATOR_ADDRESS"
NUM_PROCESSES = "JAX_NUM_PROCESSES"
PROCESS_ID = "JAX_PROCESS_ID"

# Seconds: between two tries to reach process 0, between two words on who is
# missing, and that one message may take.
_RETRY, _REPEAT, _MESSAGE = 0.5, 30, 5
_MAX_MESSAGE_BYTES = 1 << 20


class Place(NamedTuple):
  """Where a process stands among those of its program.

  Attributes:
    address: of process 0, `host:port`, that all of them can reach.
    num_processes: of the program, >= 2.
    process_id: of this one, from 0.
  """

  address: str
  num_processes: int
  process_id: int

  @property
  def host(self) -> str:
    """Of `address`."""
    return self.address.rpartition(":")[0].strip("[]")

  @property
  def port(self) -> int:
    """Of `address`."""
    return int(self.address.rpartition(":")[2])


def find_place(environ: Mapping[str, str]) -> Place | None:
  """What the environment says of a process; None if it is the only one.

  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say it. Where
  they are not set, TPU_WORKER_HOSTNAMES and TPU_WORKER_ID do, which GKE gives
  the pods of a slice, with the MEGASCALE variables of several slices.

  Raises:
    UserError: they are incomplete, or no numbers.
  """
  names = {ADDRESS, NUM_PROCESSES, PROCESS_ID}
  given = sorted(name for name in names if environ.get(name))
  if not given:
    return _place_on_slices(environ)
  missing = names.difference(given)
  if missing:
    raise UserError(
      f"{' and '.join(given)} without {' and '.join(sorted(missing))}: a "
      "program on several hosts needs all three; set them, or none"
    )
  place = Place(
    environ[ADDRESS],
    _number(environ, NUM_PROCESSES),
    _number(environ, PROCESS_ID),
  )
  port = place.address.rpartition(":")[2]
  if not (place.host and port.isdecimal()):
    raise UserError(
      f"{ADDRESS} is {place.address!r}: must be HOST:PORT of process 0, such "
      f"as 10.0.0.2:{PORT}"
    )
  if not 0 <= place.process_id < place.num_processes:
    raise UserError(
      f"{PROCESS_ID} is {place.process_id}: must be 0 or more and below "
      f"{NUM_PROCESSES} = {place.num_processes}"
    )
  return place if place.num_processes > 1 else None


def _place_on_slices(environ: Mapping[str, str]) -> Place | None:
  """Likewise, of the variables of TPU slices."""
  hosts = [h for h in environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if h]
  if not hosts:
    return None
  num_slices, slice_id, first = 1, 0, hosts[0]
  if address := environ.get("MEGASCALE_COORDINATOR_ADDRESS"):
    num_slices = _number(environ, "MEGASCALE_NUM_SLICES")
    slice_id = _number(environ, "MEGASCALE_SLICE_ID")
    first = address.partition(":")[0]
  if num_slices * len(hosts) == 1:
    return None
  return Place(
    f"{first}:{PORT}",
    num_slices * len(hosts),
    slice_id * len(hosts) + _number(environ, "TPU_WORKER_ID"),
  )


def _number(environ: Mapping[str, str], name: str) -> int:
  value = environ.get(name, "")
  if not value.isdecimal():
    raise UserError(f"{name} is {value!r}: must be a number, 0 or more")
  return int(value)


def meet(
  place: Place,
  facts: Mapping[str, Any],
  *,
  timeout: float,
  say: Callable[[str], None],
) -> None:
  """Waits until all processes of a program are there, and agree.

  Args:
    place: of this one.
    facts: JSON-able, that must be the same in all; nested dictionaries are
      compared field by field.
    timeout: seconds to wait.
    say: told, in words, who is waited for.

  Raises:
    LostHostError: they do not come. All that are there raise it.
    UserError: they do not agree; likewise.
  """
  deadline = time.monotonic() + timeout
  facts = {NUM_PROCESSES: place.num_processes, **facts}
  if place.process_id == 0:
    _Meeting(place, facts, say).hold(deadline, timeout)
  else:
    _join(place, facts, deadline, timeout, say)


class _Meeting:
  """Process 0 waiting for the others."""

  def __init__(self, place: Place, facts: Mapping, say: Callable[[str], None]):
    self._place = place
    # As it comes out of a message.
    self._facts = json.loads(json.dumps(facts))
    self._say = say
    self._there: dict[int, socket.socket] = {}
    self._next_word = 0.0

  def hold(self, deadline: float, timeout: float) -> None:
    """Until all are there; those get an answer."""
    with (
      selectors.DefaultSelector() as selector,
      self._listen(deadline) as server,
    ):
      selector.register(server, selectors.EVENT_READ)
      try:
        while self._missing():
          self._tell_who_is_missing(deadline)
          for key, _ in selector.select(_RETRY):
            if key.fileobj is server:
              self._let_in(server, selector)
            else:
              # They have nothing more to say: this one is gone.
              selector.unregister(key.fileobj)
              self._drop(key.fileobj)
          if self._missing() and time.monotonic() > deadline:
            raise LostHostError(self._nobody_came(timeout))
      except (LostHostError, UserError) as error:
        kind = type(error).__name__
        self._answer({"error": str(error), "kind": kind})
        raise
      self._answer({})
    self._say(f"all {self._place.num_processes} hosts are there")

  def _missing(self) -> list[int]:
    return [
      i for i in range(1, self._place.num_processes) if i not in self._there
    ]

  def _listen(self, deadline: float) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    while True:
      try:
        return socket.create_server(
          ("", self._place.port), family=family, dualstack_ipv6=both
        )
      except OSError as error:
        # A program that was here before may be about to end.
        if time.monotonic() > deadline:
          raise UserError(
            f"port {self._place.port} of {ADDRESS} cannot be listened at "
            f"({error}); another run may have it: give this one another port, "
            "on all hosts"
          ) from None
      time.sleep(_RETRY)

  def _tell_who_is_missing(self, deadline: float) -> None:
    if time.monotonic() < self._next_word:
      return
    self._next_word = time.monotonic() + _REPEAT
    missing = self._missing()
    self._say(
      f"waiting for {len(missing)} of {self._place.num_processes} hosts at "
      f"{self._place.address}: process {_list(missing)} not there yet, "
      f"{max(0, deadline - time.monotonic()):.0f} s left"
    )

  def _let_in(self, server: socket.socket, selector) -> None:
    connection, _ = server.accept()
    connection.settimeout(_MESSAGE)
    hello = _receive(connection)
    if not isinstance(hello, dict) or hello.keys() != {"process_id", "facts"}:
      connection.close()  # Somebody else, who looks what is at this port.
      return
    process_id = hello["process_id"]
    if process_id in self._there:
      # It was started again, and its old connection has not broken yet.
      old = self._there[process_id]
      selector.unregister(old)
      self._drop(old)
    self._there[process_id] = connection
    selector.register(connection, selectors.EVENT_READ)
    self._next_word = 0.0
    if difference := _difference(self._facts, hello["facts"]):
      raise UserError(
        f"process {process_id} differs from process 0: {difference}; start all "
        "hosts with the same command, files and versions"
      )

  def _drop(self, connection: socket.socket) -> None:
    connection.close()
    self._there = {
      i: other for i, other in self._there.items() if other is not connection
    }
    self._next_word = 0.0

  def _answer(self, answer: Mapping[str, Any]) -> None:
    """Answers all that are there, who hang up first: the port is free then."""
    for connection in self._there.values():
      try:
        _send(connection, answer)
        connection.recv(1)
      except OSError:
        pass  # JAX's own start will miss it.
      connection.close()

  def _nobody_came(self, timeout: float) -> str:
    return (
      f"process {_list(self._missing())} of {self._place.num_processes} did "
      f"not come to {self._place.address} within {timeout:.0f} s; see whether "
      "those hosts run, what their own logs say, and whether they may connect "
      "to that port of this host; or raise mesh.start_timeout_seconds"
    )


def _join(
  place: Place,
  facts: Mapping[str, Any],
  deadline: float,
  timeout: float,
  say: Callable[[str], None],
) -> None:
  """Goes to process 0 and waits for its answer."""
  hello = {"process_id": place.process_id, "facts": facts}
  next_word = time.monotonic() + _REPEAT
  reason = "no connection"
  while (left := deadline - time.monotonic()) > 0:
    try:
      with socket.create_connection(
        (place.host, place.port), timeout=min(left, _MESSAGE)
      ) as connection:
        _send(connection, hello)
        # It may wait for others, and gives up with a word of its own.
        connection.settimeout(left + _MESSAGE)
        answer = _receive(connection)
      if answer is not None:
        if "error" in answer:
          is_lost = answer["kind"] == LostHostError.__name__
          raise (LostHostError if is_lost else UserError)(answer["error"])
        return
      reason = "it hung up"
    except OSError as error:
      reason = str(error)
    if time.monotonic() > next_word:
      next_word = time.monotonic() + _REPEAT
      say(f"waiting for process 0 at {place.address} ({reason})")
    time.sleep(_RETRY)
  raise LostHostError(
    f"process {place.process_id} did not reach process 0 at {place.address} "
    f"within {timeout:.0f} s ({reason}); see whether that host runs, what its "
    "log says, and whether its port may be connected to from here; or raise "
    "mesh.start_timeout_seconds"
  )


def _send(connection: socket.socket, message: Mapping[str, Any]) -> None:
  connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket) -> dict[str, Any] | None:
  """The next message; None if there is none, or garbage."""
  try:
    with connection.makefile("rb") as file:
      return json.loads(file.readline(_MAX_MESSAGE_BYTES))
  except (OSError, ValueError):
    return None


def _difference(own: Any, other: Any, path: str = "") -> str:
  """The first field in which two differ, in words; empty if they do not."""
  if isinstance(own, dict) and isinstance(other, dict):
    for name in sorted({*own, *other}):
      below = f"{path}.{name}" if path else name
      if found := _difference(own.get(name), other.get(name), below):
        return found
    return ""
  return "" if own == other else f"{path} is {other!r} there, {own!r} here"


def _list(numbers: list[int]) -> str:
  """`1, 2 and 3`; of many only the first."""
  shown = [str(number) for number in numbers[:8]]
  if len(numbers) > len(shown):
    return ", ".join(shown) + f" and {len(numbers) - len(shown)} more"
  return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))


def start(place: Place, *, timeout: float) -> None:
  """Starts JAX as one of several processes that have met."""
  import jax  # Not above: it has to be set up first.

  jax.distributed.initialize(
    place.address,
    place.num_processes,
    place.process_id,
    initialization_timeout=int(timeout),
    cluster_detection_method="deactivate",
  )
