"""The rules that a config must obey, as data: bounds, and relations.

Checked before any device work. What depends on the devices is checked by
`validate_for_devices` once they are known.
"""

import dataclasses
import operator
import re
from collections.abc import Callable, Container, Mapping
from typing import Any

from qstar_jax.config import ExperimentConfig
from qstar_jax.domains import make_domain
from qstar_jax.errors import UserError
from qstar_jax.search.searchers import SEARCHERS, is_by_token

_DEFAULTS = ExperimentConfig()


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
  "search.max_considered": _COUNT,
  "search.gumbel_scale": _COUNT_OR_NONE,
  "search.horizon": _COUNT,
  "search.num_rollouts": _COUNT,
  "search.heuristic_weight": _COUNT_OR_NONE,
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
  "curriculum.uniform_share": _SHARE,
  "curriculum.decay": _SHARE,
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
  "learner.light_lines": _UNIT,
  "learner.max_drift": _COUNT_OR_NONE,
  "warm_start.steps": _COUNT_OR_NONE,
  "warm_start.corrupt_share": _SHARE,
  "evaluation.every_iterations": _COUNT,
  "evaluation.num_problems": _COUNT_OR_NONE,
  "evaluation.batch_size": _COUNT,
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
}


@dataclasses.dataclass(frozen=True)
class Relation:
  """What two or more fields must be to each other.

  Attributes:
    fields: that it reads; the first one gets the blame.
    holds: of the config.
    rule: completes "must be ..."; `{c.part.field}` stands for a value.
    fix: what to do instead, given the config.
  """

  fields: tuple[str, ...]
  holds: Callable[[ExperimentConfig], bool]
  rule: str
  fix: Callable[[ExperimentConfig], str]


def _divides(divisor: str, whole: str) -> Relation:
  """The field `divisor` divides the field `whole`."""
  of_divisor = operator.attrgetter(divisor)
  of_whole = operator.attrgetter(whole)
  return Relation(
    (divisor, whole),
    lambda c: of_whole(c) % of_divisor(c) == 0,
    f"a divisor of {whole} = {{c.{whole}}}",
    lambda c: f"use {nearest_divisors(of_whole(c), of_divisor(c))}",
  )


# Losses over tokens as actions.
_TOKEN_LOSSES = {"token_q", "token_value", "cql", "awac"}

RELATIONS = (
  Relation(
    ("domain.min_difficulty", "domain.max_difficulty"),
    lambda c: c.domain.min_difficulty <= c.domain.max_difficulty,
    "at most domain.max_difficulty = {c.domain.max_difficulty}",
    lambda c: "lower it or raise the maximum",
  ),
  _divides("model.num_kv_heads", "model.num_heads"),
  _divides("search.leaves_per_round", "search.num_simulations"),
  Relation(
    ("search.prune_illegal", "search.terminal_value"),
    lambda c: (
      not c.search.prune_illegal or c.search.terminal_value == "outcome"
    ),
    "False unless search.terminal_value is outcome: it asks the verifier",
    lambda c: "set one or the other",
  ),
  Relation(
    (
      "search.share_statistics",
      "search.terminal_value",
      "search.searcher",
      "search.mctx_mode",
    ),
    lambda c: (
      not c.search.share_statistics
      or (
        c.search.terminal_value == "outcome"
        and c.search.searcher != "mpc"
        and not c.search.mctx_mode
      )
    ),
    "False unless search.terminal_value is outcome, since the judge names the "
    "states, and where search.searcher is mpc or search.mctx_mode is set: they "
    "define Q otherwise",
    lambda c: "set one or the other",
  ),
  Relation(
    ("learner.min_visits", "search.fast_simulations"),
    lambda c: (
      c.search.full_search_share == 1
      or c.learner.min_visits > c.search.fast_simulations + 1
    ),
    "above 1 + search.fast_simulations = {c.search.fast_simulations}, or fast "
    "moves become policy targets",
    lambda c: f"use {c.search.fast_simulations + 2} or more",
  ),
  Relation(
    ("search.heuristic", "model.token_q"),
    lambda c: c.search.heuristic != "token_q" or c.model.token_q,
    "value or max_q unless model.token_q is true: the heads are not there",
    lambda c: "use value, or train a network with them",
  ),
  Relation(
    ("learner.losses", "model.token_q"),
    lambda c: (
      _TOKEN_LOSSES.isdisjoint(c.learner.losses)
      or (
        c.model.token_q and {"token_q", "token_value"} <= set(c.learner.losses)
      )
    ),
    "with both of token_q and token_value, and model.token_q true, where it "
    f"has one of {', '.join(sorted(_TOKEN_LOSSES))}: they need each other",
    lambda c: "name both and set model.token_q, or none",
  ),
  Relation(
    ("learner.kl_target", "learner.losses"),
    lambda c: not c.learner.kl_target or c.learner.losses.get("kl", 0) > 0,
    "0 unless learner.losses has kl with a weight above 0, which it adapts",
    lambda c: "name kl among the losses, at the weight to start from",
  ),
  *(
    Relation(
      (field, "search.utility"),
      lambda c, field=field: (
        operator.attrgetter(field)(c) != "progress"
        or c.search.utility == "value"
      ),
      "something else unless search.utility is value: progress is a change in "
      "the search's P(solved)",
      lambda c: "set one or the other",
    )
    for field in ("learner.prm_target", "learner.reward")
  ),
  Relation(
    ("search.searcher",),
    lambda c: not is_by_token(c.search),
    "a searcher over steps: over tokens there is nothing to learn a step from",
    lambda c: (
      "evaluate with it instead: qstar evaluate RUN --searcher "
      f"{c.search.searcher}"
    ),
  ),
  Relation(
    ("search.proposal", "search.searcher"),
    lambda c: c.search.proposal == "sample" or c.search.searcher != "mpc",
    "sample where search.searcher is mpc: its values are means over samples",
    lambda c: "set one or the other",
  ),
  Relation(
    ("search.tot_scoring", "search.proposal"),
    lambda c: c.search.tot_scoring == "value" or c.search.proposal == "sample",
    "value unless search.proposal is sample: a vote is how often a candidate "
    "was sampled",
    lambda c: "set one or the other",
  ),
  Relation(
    ("self_play.problems_per_iteration", "data.trees", "data.labels"),
    lambda c: (
      c.self_play.problems_per_iteration > 0
      or bool(c.data.trees or c.data.labels)
    ),
    "1 or more, or there is nothing to learn from",
    lambda c: "play, or name stored data with data.trees or data.labels",
  ),
  Relation(
    ("data.trees", "self_play.problems_per_iteration"),
    lambda c: not c.data.trees or c.self_play.problems_per_iteration == 0,
    "empty where self_play.problems_per_iteration = "
    "{c.self_play.problems_per_iteration} is not 0: the numbers of stored "
    "trees and of new ones would clash",
    lambda c: "set one or the other",
  ),
  Relation(
    ("replay.max_staleness", "data.trees"),
    lambda c: c.replay.max_staleness == 0 or not c.data.trees,
    "0 where data.trees is set: stored trees were made by another run's params",
    lambda c: "leave it out",
  ),
  Relation(
    ("replay.window_trees", "self_play.problems_per_iteration"),
    lambda c: c.replay.window_trees >= c.self_play.problems_per_iteration,
    "at least self_play.problems_per_iteration = "
    "{c.self_play.problems_per_iteration}, or play is dropped unseen",
    lambda c: f"use {c.self_play.problems_per_iteration} or more",
  ),
  Relation(
    ("curriculum.replay_share", "replay.reanalyse_share"),
    lambda c: c.curriculum.replay_share + c.replay.reanalyse_share < 1,
    "below 1 - replay.reanalyse_share = 1 - {c.replay.reanalyse_share}, or no "
    "new problem is ever played",
    lambda c: "lower one of them",
  ),
  Relation(
    ("curriculum.proposer_problems", "curriculum.replay_share"),
    lambda c: (
      c.curriculum.proposer_problems == 0 or c.curriculum.replay_share > 0
    ),
    "0 unless curriculum.replay_share is above 0: what is proposed is played "
    "from the table",
    lambda c: "set one or the other",
  ),
  Relation(
    ("evaluation.num_problems", "domain.held_out_problems"),
    lambda c: c.evaluation.num_problems <= c.domain.held_out_problems,
    "at most domain.held_out_problems = {c.domain.held_out_problems}",
    lambda c: "lower it or hold out more",
  ),
  Relation(
    ("labels.judge.right", "labels.judge.wrong"),
    lambda c: c.labels.judge.right != c.labels.judge.wrong,
    "another text than labels.judge.wrong",
    lambda c: "change one of them",
  ),
  Relation(
    ("mesh.data", "mesh.fsdp", "mesh.model"),
    lambda c: [c.mesh.data, c.mesh.fsdp, c.mesh.model].count(-1) <= 1,
    "a number where mesh.fsdp or mesh.model is -1: one axis at most is filled "
    "with what is left",
    lambda c: "keep one -1",
  ),
)


def find_errors(
  config: ExperimentConfig, ignore: Container[str] = ()
) -> list[str]:
  """What is wrong with a config: path, value, rule and fix, one line each.

  Args:
    config: of the right types, of any values.
    ignore: paths of fields that are known to be wrong; no rule reads them.
  """
  errors = {}
  for path, bound in BOUNDS.items():
    value = operator.attrgetter(path)(config)
    if path not in ignore and not bound.holds(value):
      default = operator.attrgetter(path)(_DEFAULTS)
      errors[path] = (
        f"{path} is {value!r}: must be {bound.rule}; the default is {default}"
      )
  for relation in RELATIONS:
    path = relation.fields[0]
    is_readable = not any(
      field in ignore or field in errors for field in relation.fields
    )
    if is_readable and not relation.holds(config):
      value = operator.attrgetter(path)(config)
      rule = relation.rule.format(c=config)
      errors[path] = (
        f"{path} is {value!r}: must be {rule}; {relation.fix(config)}"
      )
  domain_errors = () if "domain.name" in ignore else _domain_errors(config)
  return [*errors.values(), *domain_errors]


def _domain_errors(config: ExperimentConfig) -> list[str]:
  """What the domain itself has to say."""
  try:
    domain = make_domain(config.domain.name, config.domain.options)
  except UserError as error:
    return [str(error)]
  # A domain of the user's own need not say which difficulties it has.
  known = getattr(domain, "difficulties", None)
  if known is None:
    return []
  if not known:
    return [
      f"{path} is {value}: must be 0, since {domain.name} has no problems of "
      "its own to sample"
      for path in _NEED_PROBLEMS
      if (value := operator.attrgetter(path)(config)) != 0
    ]
  return [
    f"domain.{field} is {value}: {domain.name} has difficulties {known.start} "
    f"to {known.stop - 1}; use one of those"
    for field in ("min_difficulty", "max_difficulty")
    if (value := getattr(config.domain, field)) not in known
  ]


# What asks the domain for problems.
_NEED_PROBLEMS = (
  "self_play.problems_per_iteration",
  "warm_start.steps",
  "domain.held_out_problems",
)


def validate_for_devices(config: ExperimentConfig, num_devices: int) -> None:
  """Checks that mesh and batches fit the devices.

  Args:
    config: validated.
    num_devices: over all processes.

  Raises:
    UserError: they do not; the message has the nearest values that do.
  """
  # Imports JAX, which has to be configured before: see cli.runtime.
  from qstar_jax.distributed.mesh import mesh_shape

  num_data = mesh_shape(config.mesh, num_devices)[0]
  errors = [
    f"{path} is {size}: must be divisible by the {num_data} devices of "
    f"mesh.data; use {nearest_multiples(num_data, size)}"
    for path in (
      "self_play.batch_size",
      "learner.batch_size",
      "evaluation.batch_size",
    )
    if (size := operator.attrgetter(path)(config)) % num_data
  ]
  if errors:
    raise UserError("\n".join(errors))


def nearest_divisors(whole: int, near: int) -> str:
  """The divisors of `whole` next to `near`, e.g. "4 or 8" of 16 near 5."""
  divisors = [d for d in range(1, whole + 1) if whole % d == 0]
  below = [d for d in divisors if d < near][-1:]
  above = [d for d in divisors if d > near][:1]
  return " or ".join(map(str, below + above))


def nearest_multiples(of: int, near: int) -> str:
  """The multiples next to `near`, e.g. "96 or 104" of 8 near 100."""
  below = near // of * of
  return " or ".join(str(m) for m in (below, below + of) if m > 0)
