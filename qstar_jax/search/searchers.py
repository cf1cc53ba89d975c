"""The searchers by name. Loads no JAX until one of them is needed."""

import dataclasses
import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from qstar_jax.config import SearchConfig
from qstar_jax.errors import UserError

if TYPE_CHECKING:
  from qstar_jax.search.searcher import Searcher

# Each is a module of `algorithms`.
SEARCHERS = (
  "gumbel",
  "puct",
  "greedy",
  "sample",
  "best_of_n",
  "beam",
  "dvts",
  "tot_bfs",
  "tot_dfs",
  "astar",
  "best_first",
)


def _module(name: str) -> ModuleType:
  if name not in SEARCHERS:
    raise UserError(
      f"searcher {name!r}: known searchers are {', '.join(SEARCHERS)}"
    )
  return importlib.import_module(f"qstar_jax.search.algorithms.{name}")


def load(config: SearchConfig) -> "Searcher":
  """The searcher that a config names."""
  return _module(config.searcher).SEARCHER


def for_evaluation(
  config: SearchConfig, searcher: str, *, terminal_value: str = "value"
) -> SearchConfig:
  """A search as it is evaluated: no exploration, no verifier unless asked.

  Args:
    config: widths, budget and temperature to start from.
    searcher: a name in `SEARCHERS`.
    terminal_value: `value` or `outcome`.

  Returns:
    The search to run.

  Raises:
    UserError: unknown searcher.
  """
  config = _module(searcher).for_evaluation(config)
  return dataclasses.replace(
    config,
    searcher=searcher,
    terminal_value=terminal_value,
    prune_illegal=config.prune_illegal and terminal_value == "outcome",
  )
