"""The rules that a config must obey, as data: bounds, and relations."""

from qstar_jax.validation.bounds import BOUNDS
from qstar_jax.validation.relations import RELATIONS, nearest_divisors
from qstar_jax.validation.rules import (
  find_errors,
  nearest_multiples,
  validate_for_devices,
)

__all__ = [
  "BOUNDS",
  "RELATIONS",
  "find_errors",
  "nearest_divisors",
  "nearest_multiples",
  "validate_for_devices",
]
