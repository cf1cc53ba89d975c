"""Slices: chips, hosts, and the names that clouds have for them."""

import re

import pytest

from qstar_jax.errors import UserError
from tools.launch.slices import GENERATIONS, Slice, parse_slice


@pytest.mark.parametrize(
  ("text", "chips", "hosts", "accelerator_type"),
  [
    ("v5e:1x1", 1, 1, "v5litepod-1"),
    ("v5e:2x2", 4, 1, "v5litepod-4"),
    ("v5e:2x4", 8, 1, "v5litepod-8"),
    ("v5e:4x4", 16, 4, "v5litepod-16"),
    ("v5e:16x16", 256, 64, "v5litepod-256"),
    ("v6e:2x4", 8, 1, "v6e-8"),
    ("v6e:4x8", 32, 8, "v6e-32"),
    # Cloud TPU counts the two cores of a chip of v5p.
    ("v5p:2x2x1", 4, 1, "v5p-8"),
    ("v5p:2x2x2", 8, 2, "v5p-16"),
    ("v5p:4x4x4", 64, 16, "v5p-128"),
    ("v5p:4x8x8", 256, 64, "v5p-512"),
    ("v5p:8x12x16", 1536, 384, "v5p-3072"),
  ],
)
def test_sizes_and_names(text, chips, hosts, accelerator_type):
  found = parse_slice(text)
  assert str(found) == text
  assert (found.num_chips, found.num_hosts) == (chips, hosts)
  assert found.num_hosts * found.chips_per_host == chips
  assert found.accelerator_type == accelerator_type


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("v5e", "must be a generation (v5e, v5p, v6e) and its chips each way"),
    ("v3:4x4", "must be a generation"),
    ("v5e:4", "must be a generation"),
    ("v5e:4x5", "topology is v5e:4x5: slices of v5e are 1x1, 2x2, 2x4, 4x4"),
    ("v5e:4x4x4", "slices of v5e are"),
    ("v5p:4x4", "slices of v5p are 2x2x1, 2x2x2, 2x2x4, 2x4x4, or three"),
    ("v5p:8x4x4", "ascending"),
    ("v5p:4x4x6", "multiples of 4"),
    ("v5p:0x4x4", "multiples of 4"),
    ("v5p:16x24x28", "at most 8,960 chips"),
  ],
)
def test_what_is_no_slice(text, message):
  with pytest.raises(UserError, match=re.escape(message)):
    parse_slice(text)


def test_a_shape_that_its_size_does_not_name():
  with pytest.raises(UserError, match="its 256 chips are v5p:4x8x8; use that"):
    _ = parse_slice("v5p:4x4x16").accelerator_type


def test_every_plane_is_made_of_whole_hosts():
  for name, generation in GENERATIONS.items():
    for shape in generation.shapes:
      found = Slice(name, shape)
      assert found.num_hosts * found.chips_per_host == found.num_chips
