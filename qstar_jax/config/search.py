"""How a search goes: one from one state, and the play that repeats it."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class SearchConfig:
  """One search from one state, and the play that repeats it.

  Attributes:
    searcher: name of a searcher.
    num_candidates: A, steps sampled at each expansion.
    num_simulations: expansions per move after the root's own.
    full_search_share: of the moves; the others take `fast_simulations` and no
      noise: playout-cap randomisation (Wu 2019, arXiv:1902.10565).
    fast_simulations: see there; keep `learner.min_visits` above it.
    num_lines: of searches made of independent lines: N of best-of-N.
    beam_width: lines that go on at every level, of searches that go level by
      level; those that run at once, of searches made of independent lines.
    leaves_per_round: W, leaves of one tree expanded at once; divides
      num_simulations.
    temperature: of the proposal that candidates are sampled from; 0 is greedy,
      or beam search.
    min_p: no token is proposed that is less than min_p times as likely as the
      likeliest one there; 0 drops none.
    proposal: candidates are drawn with replacement (`sample`) or without it
      (`stochastic_beam`), so that all of them differ.
    utility: the score that drives the search: V, the PRM, or their product.
    aggregate: how the scores of a line's steps make that of the line; see
      `search.tree.SearchTree.line_score`.
    choose_by: how a finished tree's line is chosen: as the searcher says, by
      score, or by a vote of its finished lines; see `selfplay.votes`.
    terminal_value: `outcome` asks the verifier, `value` the network alone.
    prune_illegal: drop candidates that the domain refuses (needs `outcome`).
    share_statistics: candidates of one tree that lead to the same state share
      their values (needs `outcome`, and a domain with `state_key`); read by
      `gumbel` and `puct`.
    compact: give up what a committed step leaves behind, so that trees and step
      cache need room for a few moves instead of a whole play; in self-play, of
      `gumbel`, `puct` and `mpc`.
    horizon: steps that model-predictive control looks ahead.
    num_rollouts: of each of its candidates, at most num_candidates.
    breadth: an expansion has sqrt(breadth * n) candidates where a budget buys n
      steps: candidates of an expansion over expansions.
    path_cost: of A*, what g is made of.
    policy_cost: of A* and Q*, what every nat of -log pi of a line takes from f;
      nothing where the verifier has judged.
    heuristic: of Q*, V of a line or of its best candidate, or Q of its last
      token; of searches over tokens, `token_q` or else V.
    heuristic_weight: lambda in f = g + lambda h.
    guidance: beta of value-guided decoding, log pi + beta (Q - V).
    prune_below: score of the candidates that depth-first search gives up.
    accept_above: score of the finished line that ends it.
    tot_scoring: what breadth-first Tree of Thoughts ranks a level by.
    max_considered: candidates that sequential halving starts with at the root.
    gumbel_scale: 1 explores; 0 is deterministic given the candidates.
    puct_init: c_init of PUCT.
    puct_base: c_base of PUCT.
    dirichlet_alpha: concentration of PUCT's noise at the root.
    dirichlet_share: of that noise in the root's prior; 0 has none.
    forced_playouts: k of PUCT's forced playouts at the root; 0 has none.
    backup: Q of an expanded candidate is the mean of its V and of what visits
      backed up (`mean`), or the value of its node under the improved policy
      (`improved`; Grill et al. 2020, arXiv:2007.12509).
    value_scale: c_scale of sigma(q) = (c_visit + max visits) * c_scale * q.
    maxvisit_init: c_visit.
    mctx_mode: reproduce mctx's policy of the same name on the same tree, as a
      numeric reference (needs leaves_per_round 1).
  """

  searcher: str = "gumbel"
  num_candidates: int = 8
  num_simulations: int = 16
  full_search_share: float = 1.0
  fast_simulations: int = 4
  num_lines: int = 16
  beam_width: int = 4
  leaves_per_round: int = 1
  temperature: float = 1.0
  min_p: float = 0.0
  proposal: Literal["sample", "stochastic_beam"] = "sample"
  utility: Literal["value", "prm", "mix"] = "value"
  aggregate: Literal["last", "min", "product", "mean"] = "last"
  choose_by: Literal["score", "majority", "weighted_majority", "shortest"] = (
    "score"
  )
  terminal_value: Literal["value", "outcome"] = "value"
  prune_illegal: bool = False
  share_statistics: bool = False
  compact: bool = False
  horizon: int = 2
  num_rollouts: int = 4
  breadth: float = 1.0
  path_cost: Literal["prm", "depth"] = "prm"
  policy_cost: float = 0.0
  heuristic: Literal["value", "max_q", "token_q"] = "value"
  heuristic_weight: float = 1.0
  guidance: float = 4.0
  prune_below: float = 0.05
  accept_above: float = 0.95
  tot_scoring: Literal["value", "vote"] = "value"
  max_considered: int = 16
  gumbel_scale: float = 1.0
  puct_init: float = 1.25
  puct_base: float = 19_652.0
  dirichlet_alpha: float = 0.3
  dirichlet_share: float = 0.25
  forced_playouts: float = 0.0
  backup: Literal["mean", "improved"] = "mean"
  value_scale: float = 0.1
  maxvisit_init: float = 50.0
  mctx_mode: bool = False
