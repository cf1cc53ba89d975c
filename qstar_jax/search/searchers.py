"""The searchers by name. Loads no JAX until one of them is needed."""

import dataclasses
import importlib
import math
from types import ModuleType
from typing import TYPE_CHECKING

from qstar_jax.config import SearchConfig, TextConfig
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
  "rejection",
  "dvts",
  "tot_bfs",
  "tot_dfs",
  "astar",
  "best_first",
  "mpc",
  "value_guided",
  "token_beam",
  "token_astar",
)
# A step of their trees is a token.
_TOKEN_SEARCHERS = frozenset(("value_guided", "token_beam", "token_astar"))


def check_name(name: str) -> None:
  """UserError unless there is a searcher of this name."""
  if name not in SEARCHERS:
    raise UserError(
      f"searcher {name!r}: known searchers are {', '.join(SEARCHERS)}"
    )


def _module(name: str) -> ModuleType:
  check_name(name)
  return importlib.import_module(f"qstar_jax.search.algorithms.{name}")


def load(config: SearchConfig) -> "Searcher":
  """The searcher that a config names."""
  return _module(config.searcher).SEARCHER


def for_evaluation(
  config: SearchConfig, searcher: str, *, terminal_value: str = "value"
) -> SearchConfig:
  """A search as it is evaluated: no exploration, no verifier unless asked.

  Its trees stay whole: all lines are counted.

  Args:
    config: widths, budget and temperature to start from.
    searcher: a name in `SEARCHERS`.
    terminal_value: `value` or `outcome`.

  Returns:
    The search to run.

  Raises:
    UserError: unknown searcher.
  """
  config = dataclasses.replace(
    config,
    searcher=searcher,
    terminal_value=terminal_value,
    full_search_share=1.0,
    compact=False,
  )
  config = _module(searcher).for_evaluation(config)
  asks_verifier = config.terminal_value == "outcome"
  return dataclasses.replace(
    config,
    prune_illegal=config.prune_illegal and asks_verifier,
    share_statistics=config.share_statistics and asks_verifier,
  )


def is_by_token(config: SearchConfig) -> bool:
  """True if a step of the search's trees is a token."""
  return config.searcher in _TOKEN_SEARCHERS


def limits(config: SearchConfig, text: TextConfig) -> TextConfig:
  """Limits of lines in steps of the search's trees."""
  if not is_by_token(config):
    return text
  max_tokens = text.max_steps * text.max_step_tokens
  return dataclasses.replace(text, max_steps=max_tokens, max_step_tokens=1)


def sized_for_budget(
  config: SearchConfig, token_budget: int, text: TextConfig
) -> SearchConfig:
  """A search with room to spend a budget of tokens, and no less.

  Width and length of what is searched follow the budget of each tree; this sets
  what they can be at most, which is what is compiled and allocated.

  Args:
    config: from `for_evaluation`; a width above 1 stays a bound.
    token_budget: the largest to be played with.
    text: limits of steps and lines.

  Returns:
    The search.
  """
  text = limits(config, text)
  steps = token_budget // text.max_step_tokens
  width = max(
    min(config.num_candidates, math.isqrt(int(config.breadth * steps))), 1
  )
  per_level = steps // text.max_steps // (width + 1)
  config = dataclasses.replace(
    config,
    num_candidates=width,
    num_simulations=max(steps // (1 + width), 1),
    # Steps are shorter than they may be: half of the longest, at a guess.
    num_lines=max(2 * steps // text.max_steps, 1)
    if config.num_lines > 1
    else 1,
    beam_width=max(per_level, 1),
  )
  return _module(config.searcher).for_evaluation(config)
