"""The searchers by name: which file, and which settings in an evaluation.

Loads no JAX: configs are checked before it is set up.
"""

import dataclasses
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from qstar_jax.config import SearchConfig
from qstar_jax.errors import UserError

if TYPE_CHECKING:
  from qstar_jax.search.searcher import Searcher


class Entry(NamedTuple):
  """One name.

  Attributes:
    module: of `qstar_jax.search`; its `SEARCHER` decides.
    for_evaluation: the settings that the name stands for, without exploration.
  """

  module: str
  for_evaluation: Callable[[SearchConfig], SearchConfig]


def _gumbel(config: SearchConfig) -> SearchConfig:
  """Gumbel search without exploration noise at the root."""
  return dataclasses.replace(config, gumbel_scale=0.0)


def _chain(config: SearchConfig, temperature: float) -> SearchConfig:
  return dataclasses.replace(
    config,
    num_candidates=1,
    num_simulations=0,
    leaves_per_round=1,
    temperature=temperature,
    gumbel_scale=0.0,
  )


def _greedy(config: SearchConfig) -> SearchConfig:
  """The policy alone, its most likely token each time."""
  return _chain(config, 0.0)


def _sample(config: SearchConfig) -> SearchConfig:
  """The policy alone, one line sampled at temperature 1."""
  return _chain(config, 1.0)


SEARCHERS = {
  "gumbel": Entry("gumbel", _gumbel),
  "greedy": Entry("gumbel", _greedy),
  "sample": Entry("gumbel", _sample),
}


def load(config: SearchConfig) -> "Searcher":
  """The searcher that a config names."""
  module = SEARCHERS[config.searcher].module
  return importlib.import_module(f"qstar_jax.search.{module}").SEARCHER


def for_evaluation(
  config: SearchConfig, searcher: str, *, terminal_value: str = "value"
) -> SearchConfig:
  """A search as it is evaluated: no exploration, no verifier unless asked.

  Args:
    config: widths, budget and temperature to start from.
    searcher: a key of `SEARCHERS`.
    terminal_value: `value` or `outcome`.

  Returns:
    The search to run.

  Raises:
    UserError: unknown searcher.
  """
  if searcher not in SEARCHERS:
    raise UserError(
      f"searcher {searcher!r}: known searchers are {', '.join(SEARCHERS)}"
    )
  config = SEARCHERS[searcher].for_evaluation(config)
  return dataclasses.replace(
    config,
    searcher=searcher,
    terminal_value=terminal_value,
    prune_illegal=config.prune_illegal and terminal_value == "outcome",
  )
