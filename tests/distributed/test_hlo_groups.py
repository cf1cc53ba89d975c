"""Replica groups, in every form that XLA writes them in."""

import pytest

from qstar_jax.distributed.hlo_groups import replica_groups

ROWS = [[0, 1, 2, 3], [4, 5, 6, 7]]
COLUMNS = [[0, 4], [1, 5], [2, 6], [3, 7]]


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%x", ROWS),
    ("replica_groups={}", [[*range(8)]]),
    ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ("replica_groups=[2,4]<=[8], dimensions={0}", ROWS),
    ("replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}", COLUMNS),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, x=1", ROWS),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, x=1", COLUMNS),
    ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", [[*range(8)]]),
    # Axis b is of two parts: {0, 1, 2, 3} = (0, 2) + (0, 1).
    (
      "replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}",
      [[0, 2], [1, 3], [4, 6], [5, 7]],
    ),
    (
      "replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}",
      [[0, 1], [2, 3], [4, 5], [6, 7]],
    ),
    (
      "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}",
      COLUMNS,
    ),
    (
      "replica_groups=mesh['a'=2,'b'=2], device_ids=(0,2,1,3) {'b'}",
      [[0, 2], [1, 3]],
    ),
  ],
)
def test_groups(text, expected):
  assert replica_groups(text, 8) == expected


def test_a_form_that_is_not_known_is_refused():
  with pytest.raises(ValueError, match="unknown form"):
    replica_groups("replica_groups=?", 8)
