"""The rules that a config must obey, as data: bounds, and relations."""

from qstar_jax.validation.bounds import BOUNDS
from qstar_jax.validation.relations import RELATIONS
from qstar_jax.validation.rules import find_errors, validate_for_devices

__all__ = [
  "BOUNDS",
  "RELATIONS",
  "find_errors",
  "validate_for_devices",
]
