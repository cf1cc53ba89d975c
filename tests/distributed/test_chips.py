"""Names of TPU slices, and what their links carry."""

import pytest

from qstar_jax.distributed import chips
from qstar_jax.errors import UserError


def test_a_name_says_the_chips():
  topology = chips.parse_topology("v5e:4x4")
  assert topology.chip is chips.CHIPS["v5e"]
  assert (topology.num_chips, topology.num_devices) == (16, 16)
  assert topology.name == "v5e:4x4"
  # Two JAX devices to a chip.
  assert chips.parse_topology("tpu7x:2x2x1").num_devices == 8


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("v9:4x4", "one of v4, v5e, v5p, v6e, tpu7x"),
    ("v5e", "numbers of chips along each axis, e.g. v5e:4x4"),
    ("v5e:4xx4", "numbers of chips along each axis"),
    ("v5e:0x4", "numbers of chips along each axis"),
    ("v5p:4x4", "has 3 axes, not 2, e.g. v5p:4x4x4"),
  ],
)
def test_other_names_are_refused_with_the_fix(name, words):
  with pytest.raises(UserError, match=words):
    chips.parse_topology(name)


def test_rings_carry_twice_what_lines_do():
  link = chips.CHIPS["v5e"].link_bandwidth
  line = chips.parse_topology("v5e:4x4")
  assert line.bandwidth((4, 1)) == link
  assert line.bandwidth((4, 4)) == 2 * link
  ring = chips.parse_topology("v5e:16x16")
  assert ring.bandwidth((16, 1)) == 2 * link
  # A part of a ring is a line.
  assert ring.bandwidth((4, 1)) == link
  assert (ring.num_hops((16, 1)), line.num_hops((4, 4))) == (8, 6)
