"""The searchers by name. Each is a setting of the one search over steps."""

import dataclasses

from qstar_jax.config import SearchConfig
from qstar_jax.errors import UserError


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


SEARCHERS = {"gumbel": _gumbel, "greedy": _greedy, "sample": _sample}


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
  config = SEARCHERS[searcher](config)
  return dataclasses.replace(
    config,
    searcher=searcher,
    terminal_value=terminal_value,
    prune_illegal=config.prune_illegal and terminal_value == "outcome",
  )
