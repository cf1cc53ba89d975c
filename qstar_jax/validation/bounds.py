"""Which values a field of the config may have by itself."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

from qstar_jax.search.searchers import SEARCHERS


@dataclasses.dataclass(frozen=True)
class Bound:
  """Which values a field may have by itself.

  Attributes:
    rule: completes "must be ...".
    holds: of the value.
  """

  rule: str
  holds: Callable[[Any], bool]


_COUNT = Bound("1 or more", lambda value: value >= 1)
_COUNT_OR_NONE = Bound("0 or more", lambda value: value >= 0)
_POSITIVE = Bound("above 0", lambda value: value > 0)
_SHARE = Bound("in [0, 1]", lambda value: 0 <= value <= 1)
_UNIT = Bound("in (0, 1]", lambda value: 0 < value <= 1)
_LINE = Bound(
  "a text without a newline", lambda value: value and "\n" not in value
)
_BELOW_1 = Bound("in [0, 1)", lambda value: 0 <= value < 1)
_INSIDE = Bound("in (0, 1)", lambda value: 0 < value < 1)
_AXIS = Bound("1 or more, or -1", lambda value: value >= 1 or value == -1)

# Every number of the config, and every free text that has a form.
BOUNDS: Mapping[str, Bound] = {
  "name": Bound(
    "letters, digits, `.`, `_` and `-` alone, a letter or digit first",
    lambda value: re.fullmatch(r"[A-Za-z0-9][-.\w]*", value, re.ASCII),
  ),
  "seed": Bound("in [0, 2**32)", lambda value: 0 <= value < 2**32),
  "num_iterations": _COUNT_OR_NONE,
  "max_minutes": _COUNT_OR_NONE,
  "max_tokens": _COUNT_OR_NONE,
  "domain.min_difficulty": _COUNT,
  "domain.max_difficulty": _COUNT,
  "domain.held_out_problems": _COUNT_OR_NONE,
  "text.vocabulary_size": _COUNT,
  "text.max_prompt_tokens": _COUNT,
  "text.max_step_tokens": Bound(
    "2 or more: a step has text and its delimiter", lambda value: value >= 2
  ),
  "text.max_steps": _COUNT,
  "model.num_layers": _COUNT,
  "model.model_dim": _COUNT,
  "model.num_heads": _COUNT,
  "model.num_kv_heads": _COUNT,
  "model.head_dim": Bound(
    "even and 2 or more: rotary embedding turns pairs",
    lambda value: value >= 2 and value % 2 == 0,
  ),
  "model.ffn_dim": _COUNT,
  "model.vocabulary_multiple": _COUNT,
  "model.rope_base": Bound("above 1", lambda value: value > 1),
  "model.norm_epsilon": _POSITIVE,
  "search.searcher": Bound(
    f"a searcher; known ones are {', '.join(SEARCHERS)}",
    lambda value: value in SEARCHERS,
  ),
  "search.num_candidates": _COUNT,
  "search.num_simulations": _COUNT_OR_NONE,
  "search.full_search_share": _SHARE,
  "search.fast_simulations": _COUNT_OR_NONE,
  "search.num_lines": _COUNT,
  "search.beam_width": _COUNT,
  "search.leaves_per_round": _COUNT,
  "search.temperature": _COUNT_OR_NONE,
  "search.min_p": _BELOW_1,
  "search.max_considered": _COUNT,
  "search.gumbel_scale": _COUNT_OR_NONE,
  "search.horizon": _COUNT,
  "search.num_rollouts": _COUNT,
  "search.breadth": _POSITIVE,
  "search.heuristic_weight": _COUNT_OR_NONE,
  "search.policy_cost": _COUNT_OR_NONE,
  "search.guidance": _COUNT_OR_NONE,
  "search.prune_below": _SHARE,
  "search.accept_above": _SHARE,
  "search.puct_init": _COUNT_OR_NONE,
  "search.puct_base": _POSITIVE,
  "search.dirichlet_alpha": _POSITIVE,
  "search.dirichlet_share": _SHARE,
  "search.forced_playouts": _COUNT_OR_NONE,
  "search.value_scale": _COUNT_OR_NONE,
  "search.maxvisit_init": _COUNT_OR_NONE,
  "self_play.problems_per_iteration": _COUNT_OR_NONE,
  "self_play.batch_size": _COUNT,
  "self_play.max_lead": _COUNT,
  "self_play.publish_every_iterations": _COUNT,
  "curriculum.uniform_share": _SHARE,
  "curriculum.decay": _SHARE,
  "curriculum.related_share": _SHARE,
  "curriculum.replay_share": _SHARE,
  "curriculum.table_problems": _COUNT,
  "curriculum.proposer_problems": _COUNT_OR_NONE,
  "curriculum.proposer_tries": Bound(
    "2 or more: one try is never solved sometimes", lambda value: value >= 2
  ),
  "curriculum.proposer_every_iterations": _COUNT,
  "replay.window_trees": _COUNT,
  "replay.window_growth": _SHARE,
  "replay.window_exponent": _UNIT,
  "replay.max_reuse": _COUNT,
  "replay.max_staleness": _COUNT_OR_NONE,
  "replay.priority_exponent": _COUNT_OR_NONE,
  "replay.uniform_share": _UNIT,
  "replay.reanalyse_share": _SHARE,
  "replay.shard_trees": _COUNT,
  "data.label_share": _INSIDE,
  "data.held_out_share": _BELOW_1,
  "data.held_out_lines": _COUNT,
  "learner.steps_per_iteration": _COUNT_OR_NONE,
  "learner.steps_per_call": _COUNT,
  "learner.batch_size": _COUNT,
  "learner.lines_per_row": _COUNT,
  "learner.learning_rate": _POSITIVE,
  "learner.warmup_steps": _COUNT_OR_NONE,
  "learner.weight_decay": _COUNT_OR_NONE,
  "learner.ema_decay": _BELOW_1,
  "learner.max_grad_norm": _POSITIVE,
  "learner.losses": Bound(
    "one or more, with weights of 0 or more",
    lambda value: value and min(value.values()) >= 0,
  ),
  "learner.value_lambda": _SHARE,
  "learner.discount": _SHARE,
  "learner.advantage_temperature": _POSITIVE,
  "learner.max_advantage_weight": _POSITIVE,
  "learner.expectile": _INSIDE,
  "learner.target_decay": _BELOW_1,
  "learner.kl_target": _COUNT_OR_NONE,
  "learner.min_visits": _COUNT_OR_NONE,
  "learner.light_steps": _UNIT,
  "learner.max_drift": _COUNT_OR_NONE,
  "warm_start.steps": _COUNT_OR_NONE,
  "warm_start.corrupt_share": _SHARE,
  "warm_start.later_share": _BELOW_1,
  "evaluation.every_iterations": _COUNT,
  "evaluation.num_problems": _COUNT_OR_NONE,
  "evaluation.batch_size": _COUNT,
  "evaluation.ladder_budgets": Bound(
    "numbers of tokens, each 1 or more and larger than the one before",
    lambda value: all(
      low < high for low, high in itertools.pairwise([0, *value])
    ),
  ),
  "evaluation.ladder_problems": _COUNT,
  "gate.every_iterations": _COUNT_OR_NONE,
  "gate.pool_problems": _COUNT,
  "gate.num_problems": _COUNT,
  "gate.token_budget": _COUNT_OR_NONE,
  "gate.win_rate": Bound("in (0.5, 1)", lambda value: 0.5 < value < 1),
  "gate.error_rate": Bound("in (0, 0.5)", lambda value: 0 < value < 0.5),
  "gate.max_refusals": _COUNT_OR_NONE,
  "labels.num_rollouts": _COUNT,
  "labels.budget": _COUNT,
  "labels.alpha": _UNIT,
  "labels.beta": _UNIT,
  "labels.c_puct": _COUNT_OR_NONE,
  "labels.tolerance": _UNIT,
  "labels.judge.prompts": Bound(
    "one text or more, each without a newline",
    lambda value: value and all(map(_LINE.holds, value)),
  ),
  "labels.judge.right": _LINE,
  "labels.judge.wrong": _LINE,
  "labels.judge.teach_share": _UNIT,
  "labels.judge.teach_steps": _COUNT_OR_NONE,
  "checkpoint.every_iterations": _COUNT,
  "checkpoint.keep": _COUNT,
  "mesh.data": _AXIS,
  "mesh.fsdp": _AXIS,
  "mesh.model": _AXIS,
  "mesh.cpu_devices": _COUNT,
  "mesh.actor_devices": _COUNT_OR_NONE,
  "mesh.start_timeout_seconds": _COUNT,
}
