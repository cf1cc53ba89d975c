"""Losses by name: each alone, and their sum."""

import typing

from qstar_jax.config import LossName
from qstar_jax.learner.objective import LOSSES


def test_the_config_knows_every_loss():
  assert set(LOSSES) == set(typing.get_args(LossName))
