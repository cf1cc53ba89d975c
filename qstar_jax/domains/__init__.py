"""Domains: rules that sample problems, check steps and verify lines. No JAX.

`DOMAINS` holds the built-in ones; a domain of the user's own is named
`my_module:MyDomain` and needs no registration.
"""

import dataclasses
import difflib
import importlib
import typing
from collections.abc import Mapping

from qstar_jax.domains.arithmetic import Arithmetic
from qstar_jax.domains.countdown import Countdown
from qstar_jax.domains.game24 import Game24
from qstar_jax.domains.text import Text
from qstar_jax.errors import UserError
from qstar_jax.records import Domain

DOMAINS: dict[str, type] = {
  domain.name: domain for domain in (Arithmetic, Countdown, Game24, Text)
}

_REQUIRED = (
  "name",
  "version",
  "sample",
  "parse",
  "split_key",
  "check_step",
  "verify",
  "answer",
  "random_play",
)


def make_domain(
  name: str, options: Mapping[str, int | float | str | bool] | None = None
) -> Domain:
  """The domain of a config.

  Args:
    name: a key of DOMAINS, or `my_module:MyDomain` for a dataclass of the
      user's own on the Python path.
    options: values for fields of the domain's class; the others keep their
      defaults.

  Raises:
    UserError: unknown name or option, or an option of wrong type or value.
  """
  cls = _import_class(name) if ":" in name else DOMAINS.get(name)
  if cls is None:
    raise UserError(
      f"domain.name is {name!r}: known domains are {', '.join(DOMAINS)}; one "
      "of your own is named my_module:MyDomain"
    )
  options = dict(options or {})
  types = typing.get_type_hints(cls)
  fields = [field.name for field in dataclasses.fields(cls) if field.init]
  for option, value in options.items():
    if option not in fields:
      close = difflib.get_close_matches(option, fields, n=1)
      hint = f"did you mean {close[0]}? " if close else ""
      raise UserError(
        f"domain.options.{option}: {name} has no such option; {hint}"
        f"known ones are {', '.join(fields) or 'none'}"
      )
    _check_type(option, value, types[option])
  return cls(**options)


def _check_type(option: str, value: object, expected: object) -> None:
  """UserError unless a value from a config fits an option's type."""
  fits = {
    bool: isinstance(value, bool),
    int: isinstance(value, int) and not isinstance(value, bool),
    float: isinstance(value, int | float) and not isinstance(value, bool),
    str: isinstance(value, str),
  }
  # Other types are for the class itself to check.
  if not fits.get(expected, True):
    raise UserError(
      f"domain.options.{option} is {value!r}: must be {expected.__name__}, "
      f"not {type(value).__name__}"
    )


def _import_class(name: str) -> type:
  """The class that `my_module:MyDomain` names, checked to be a domain."""
  module_name, _, class_name = name.partition(":")
  try:
    module = importlib.import_module(module_name)
  except (ImportError, ValueError) as error:
    raise UserError(
      f"domain.name is {name!r}: cannot import {module_name!r} ({error}); put "
      "its folder on PYTHONPATH"
    ) from error
  cls = getattr(module, class_name, None)
  if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
    raise UserError(
      f"domain.name is {name!r}: {module_name} has no dataclass {class_name!r}"
    )
  missing = [part for part in _REQUIRED if not hasattr(cls, part)]
  if missing:
    raise UserError(
      f"domain.name is {name!r}: a domain needs {', '.join(missing)}; see "
      "qstar_jax.records.Domain"
    )
  return cls
