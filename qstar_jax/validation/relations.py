"""What fields of the config must be to each other."""

import dataclasses
import operator
from collections.abc import Callable

from qstar_jax.config import ExperimentConfig
from qstar_jax.errors import nearest_divisors
from qstar_jax.search.searchers import is_by_token


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
  Relation(
    ("model.recompute", "model.scan_layers"),
    lambda c: not c.model.recompute or c.model.scan_layers,
    "False unless model.scan_layers is True: it is the loop's body that is "
    "computed again",
    lambda c: "set one or the other",
  ),
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
    ("search.backup", "search.mctx_mode"),
    lambda c: c.search.backup == "mean" or not c.search.mctx_mode,
    "mean where search.mctx_mode is set: it defines Q otherwise",
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
    ("replay.max_staleness", "learner.steps_per_iteration"),
    lambda c: (
      c.replay.max_staleness == 0
      or c.replay.max_staleness >= c.learner.steps_per_iteration
    ),
    "0 or at least learner.steps_per_iteration = "
    "{c.learner.steps_per_iteration}, or the newest trees are too old before "
    "the phase is over that learns from them",
    lambda c: f"use {c.learner.steps_per_iteration} or more",
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
    ("evaluation.ladder_budgets", "domain.held_out_problems"),
    lambda c: (
      not c.evaluation.ladder_budgets
      or c.evaluation.ladder_problems <= c.domain.held_out_problems
    ),
    "empty unless evaluation.ladder_problems = {c.evaluation.ladder_problems} "
    "is at most domain.held_out_problems = {c.domain.held_out_problems}",
    lambda c: "lower it or hold out more",
  ),
  Relation(
    ("domain.held_out_rows", "domain.held_out_file"),
    lambda c: not c.domain.held_out_rows or bool(c.domain.held_out_file),
    "empty unless domain.held_out_file names the file that they are rows of",
    lambda c: "set both or none",
  ),
  Relation(
    ("gate.num_problems", "gate.pool_problems"),
    lambda c: c.gate.num_problems <= c.gate.pool_problems,
    "at most gate.pool_problems = {c.gate.pool_problems}",
    lambda c: "lower it or enlarge the pool",
  ),
  Relation(
    ("gate.every_iterations", "self_play.problems_per_iteration"),
    lambda c: (
      c.gate.every_iterations == 0 or c.self_play.problems_per_iteration > 0
    ),
    "0 where self_play.problems_per_iteration is 0: there is no player to "
    "promote",
    lambda c: "leave it out",
  ),
  Relation(
    ("run_mode", "self_play.problems_per_iteration"),
    lambda c: (
      c.run_mode == "alternate" or c.self_play.problems_per_iteration > 0
    ),
    "alternate where self_play.problems_per_iteration is 0: nobody plays",
    lambda c: "leave it out",
  ),
  Relation(
    ("mesh.actor_devices", "run_mode"),
    lambda c: (c.mesh.actor_devices > 0) == (c.run_mode == "split"),
    "1 or more where run_mode is split, and 0 where it is not: run_mode is "
    "{c.run_mode}",
    lambda c: (
      "use 1 or more, about half of the devices to begin with"
      if c.run_mode == "split"
      else "leave it out, or set run_mode to split"
    ),
  ),
  Relation(
    ("self_play.publish_every_iterations", "run_mode"),
    lambda c: (
      c.self_play.publish_every_iterations == 1 or c.run_mode == "split"
    ),
    "1 unless run_mode is split: it is {c.run_mode}, and files publishes every "
    "checkpoint",
    lambda c: "leave it out, or set checkpoint.every_iterations",
  ),
  Relation(
    ("self_play.max_lead", "checkpoint.every_iterations", "run_mode"),
    lambda c: (
      c.run_mode != "files"
      or c.self_play.max_lead >= c.checkpoint.every_iterations
    ),
    "at least checkpoint.every_iterations = {c.checkpoint.every_iterations} "
    "where run_mode is files: actors hear of the learner by its checkpoints, "
    "and would wait for the next one while it waits for their trees",
    lambda c: f"use {c.checkpoint.every_iterations} or more",
  ),
  Relation(
    (
      "replay.max_staleness",
      "run_mode",
      "self_play.max_lead",
      "self_play.publish_every_iterations",
      "learner.steps_per_iteration",
    ),
    lambda c: (
      c.run_mode != "split"
      or c.replay.max_staleness == 0
      or c.replay.max_staleness >= split_staleness(c)
    ),
    "0, or at least learner.steps_per_iteration * (self_play.max_lead + "
    "self_play.publish_every_iterations) - 1, the age of new trees at most, at "
    "the last step that uses them where run_mode is split",
    lambda c: f"use {split_staleness(c)} or more",
  ),
  Relation(
    (
      "replay.max_staleness",
      "run_mode",
      "checkpoint.every_iterations",
      "learner.steps_per_iteration",
    ),
    lambda c: (
      c.run_mode != "files"
      or c.replay.max_staleness == 0
      or c.replay.max_staleness >= files_staleness(c)
    ),
    "0, or at least learner.steps_per_iteration * checkpoint.every_iterations "
    "- 1, the age of the params that actors have when the learner's next "
    "are saved",
    lambda c: f"use {files_staleness(c)} or more",
  ),
  Relation(
    ("replay.max_staleness", "gate.every_iterations"),
    lambda c: c.replay.max_staleness == 0 or c.gate.every_iterations == 0,
    "0 where gate.every_iterations is set: the player may be of any age",
    lambda c: "set one or the other to 0",
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


def files_staleness(config: ExperimentConfig) -> int:
  """Gradient steps from a checkpoint to the last before the next one."""
  iterations = config.checkpoint.every_iterations
  return iterations * config.learner.steps_per_iteration - 1


def split_staleness(config: ExperimentConfig) -> int:
  """Gradient steps that new trees are old at most when all have been used.

  An iteration's trees are begun when the learner has still to learn `max_lead`
  iterations before them, with params that it had up to
  `publish_every_iterations` - 1 iterations before.
  """
  play = config.self_play
  iterations = play.max_lead + play.publish_every_iterations
  return iterations * config.learner.steps_per_iteration - 1
