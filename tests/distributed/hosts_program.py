"""What `hosts` gives each of several processes, as JSON on standard output.

usage: python hosts_program.py, with the variables of
`qstar_jax.distributed.start`.
"""

import json
import os

from qstar_jax.distributed import hosts, start

start.start(start.find_place(os.environ), timeout=60)
me = hosts.index()


def failing():
  if me:
    raise ValueError(f"on {me}")


class ShyError(Exception):
  def __init__(self, one, two):
    super().__init__(f"{one} and {two}")


def shy():
  raise ShyError(1, 2)


def outcome(work):
  try:
    return work()
  except Exception as error:
    return str(error)


sizes = (0, 5_000, 3_000_001)
exchanged = [hosts.exchange(bytes([me]) * (size * me)) for size in sizes]
any_host = hosts.AnyHost()
heard = [any_host(me == 1 and call == 2) for call in range(5)]
in_own_time = hosts.together(lambda: any_host(me == 2))
print(
  json.dumps(
    {
      "exchanged": [[len(x) for x in row] for row in exchanged],
      "is_right": all(
        {*x} <= {i} for row in exchanged for i, x in enumerate(row)
      ),
      "on_first": hosts.on_first(lambda: f"of {me}"),
      "failed": outcome(lambda: hosts.together(failing)),
      "failed_on_first": outcome(lambda: hosts.on_first(failing)),
      "shy": outcome(lambda: hosts.together(shy)),
      "alike": outcome(
        lambda: hosts.check_alike("it", lambda: {"b": 1, "a": 2})
      ),
      "unlike": outcome(lambda: hosts.check_alike("it", lambda: me // 2)),
      "heard": heard,
      "in_own_time": in_own_time,
    }
  )
)
