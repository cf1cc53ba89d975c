"""The seam between a search and what it searches with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import numpy as np

# What leaf_BW holds in place of a candidate's index.
PROBLEM = -1
NOTHING = -2


class Expansion(NamedTuple):
  """A candidates proposed at each of W leaves of each of B trees.

  Attributes:
    tokens: int32 [B, W, A, T], 0 behind a candidate's end.
    length: int32 [B, W, A], tokens in use, the delimiter included.
    token_log_prob: float32 [B, W, A, T], log pi of each token, nats, at
      temperature 1; 0 behind the end.
    proposal_log_prob: float32 [B, W, A], nats, of the candidate under what it
      was sampled from: of one draw with replacement, or of being among the A
      without it.
    value: float32 [B, W, A] in [0, 1], V after the candidate.
    prm: float32 [B, W, A] in [0, 1], PRM score of the candidate.
    token_q: float32 [B, W, A], Q of the candidate's last token, known before it
      is run, in the unit of rewards; V of networks without token-Q heads.
    ended: bool [B, W, A], the candidate finishes its line.
    truncated: bool [B, W, A], no delimiter within T tokens.
    count: int32 [B, W, A] >= 0, samples that were this candidate; 0 marks a
      duplicate merged into an earlier one, which is no candidate any more, and
      what was not sampled, which has length 0 besides.
  """

  tokens: chex.Array
  length: chex.Array
  token_log_prob: chex.Array
  proposal_log_prob: chex.Array
  value: chex.Array
  prm: chex.Array
  token_q: chex.Array
  ended: chex.Array
  truncated: chex.Array
  count: chex.Array


# What a search hands through to its expand function and never looks into. For
# compaction it has a method: store.move_blocks(source_BN) is the store in which
# block n of tree b is what source_BN[b, n] was, a permutation for each tree.
Store = Any

# (params, rng_key_B, store, leaf_BW, width_BW, block) -> (Expansion, store).
#
# Samples the first width_BW (int32 [B, W], at most A) candidates at leaf_BW,
# int32 [B, W]: the candidate index block * A + a, `PROBLEM`, or `NOTHING`, of
# width 0, where the search will ignore the result, whatever it is. Leaf w of
# every tree takes block `block + w` (int32 scalar) of the store; blocks come
# round again when nothing refers to them any more. rng_key_B holds one key per
# tree, consumed, so that a tree's result does not depend on its neighbours.
ExpandFn = Callable[
  [Any, chex.PRNGKey, Store, chex.Array, chex.Array, chex.Array],
  tuple[Expansion, Store],
]


class Judgement(NamedTuple):
  """What a judge says of the candidates of one round; host arrays.

  Attributes:
    legal: int8 [B, W, A]; 1 legal, 0 illegal, -1 not checked.
    finished: bool [B, W, A], the line ends here whether or not the candidate
      says so.
    outcome: int8 [B, W, A], `records.Outcome` of a finished line, else -1.
    score: float32 [B, W, A] in [0, 1], where outcome is set.
    state: int32 [B, W, A], from 0, equal where the lines of one tree go on from
      the same state; -1 where that is not known, or the line does not go on.
  """

  legal: np.ndarray
  finished: np.ndarray
  outcome: np.ndarray
  score: np.ndarray
  state: np.ndarray


def unjudged(expansion: Expansion) -> Judgement:
  """The judgement of a search that has no judge."""
  count = expansion.count
  return Judgement(
    legal=(count * 0 - 1).astype("int8"),
    finished=count < 0,
    outcome=(count * 0 - 1).astype("int8"),
    score=(count * 0).astype("float32"),
    state=(count * 0 - 1).astype("int32"),
  )
