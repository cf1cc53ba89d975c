"""What is learned from, and how."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class ReplayConfig:
  """What of the stored play the learner sees.

  Attributes:
    window_trees: newest trees that the learner samples from.
    window_growth: trees by which the window grows for every one that comes once
      it is full, at first; 0 keeps its size. See `replay.sampling`.
    window_exponent: power of the number of trees that it grows as.
    max_reuse: times a tree may be sampled before it is retired.
    max_staleness: gradient steps that a tree may be old at any step that it is
      used in, counted from the params that searched it; 0 has no bound.
    sampling: of the window's trees: uniform, or some more often: by the error
      of their values (`prioritised`) or by what the search changed of the
      policy (`surprise`). See `learner.priorities`.
    priority_exponent: power of the priorities; 0 is uniform.
    uniform_share: share of the samples drawn without regard to priorities.
    reanalyse_share: share of an iteration's plays that search problems of the
      window again, with the newest params, instead of new problems.
    shard_trees: trees per file.
  """

  window_trees: int = 4096
  window_growth: float = 0.0
  window_exponent: float = 0.75
  max_reuse: int = 8
  max_staleness: int = 0
  sampling: Literal["uniform", "prioritised", "surprise"] = "uniform"
  priority_exponent: float = 1.0
  uniform_share: float = 0.5
  reanalyse_share: float = 0.0
  shard_trees: int = 256


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What there is to learn from besides self-play.

  Attributes:
    trees: a run directory, or its RUN/replay, whose trees fill the window of a
      run that plays nothing; empty for none.
    labels: lines with labelled steps: a directory that `qstar label` made, or
      `FORMAT:FILE` of others, e.g. `prm800k:phase1_train.jsonl.gz`; a file that
      is not here is looked for in QSTAR_DATA_DIR. Empty for none.
    label_share: of a batch's rows that are labelled lines, where there are
      trees too.
    held_out_share: of the problems of `labels`, kept out of training to judge
      the PRM.
    held_out_lines: of those problems that it is judged by, at most.
    on_error: a record of an outside file that cannot be used ends the run, or
      is counted and skipped.
  """

  trees: str = ""
  labels: str = ""
  label_share: float = 0.5
  held_out_share: float = 0.05
  held_out_lines: int = 1000
  on_error: Literal["refuse", "skip"] = "refuse"


# Of `learner.objective.LOSSES`.
LossName = Literal[
  "policy",
  "value",
  "prm",
  "prm_ranking",
  "kl",
  "entropy",
  "token_q",
  "token_value",
  "cql",
  "awac",
]


@dataclasses.dataclass(frozen=True)
class LearnerConfig:
  """The distillation of search into the network.

  Attributes:
    steps_per_iteration: gradient steps between two self-play phases.
    steps_per_call: gradient steps handed to the device at once; small networks
      wait less for the host, and the run hears of Ctrl-C that much later.
    batch_size: rows per step, over all devices.
    lines_per_row: room of a row, in lines of the greatest length; trees fill it
      with branches.
    optimizer: `adamw`, or `muon` for the matrices of the layers.
    learning_rate: peak, after warm-up.
    warmup_steps: linear from 0.
    weight_decay: decoupled, on the matrices of the layers.
    max_grad_norm: clip by global norm.
    ema_decay: of the moving average of the parameters over steps, which plays
      and is evaluated; 0 keeps none and plays the newest.
    losses: names of `learner.objective.LOSSES` with their weights; 0 only
      measures a loss.
    tree_q: Q of stored trees, as the `search` left it, or `replanned` from all
      that the finished tree knows; see `learner.tree_policy.replanned`.
    value_target: `mix` of outcome and search value, or `step_q`, the best that
      the stored candidates lead to.
    value_lambda: of the mix, 1 takes the outcome of the committed line, 0 the
      search's own value, between mixes them.
    policy_target: the improved policy, or the visits of a search by PUCT; or,
      without the search, `imitation` of lines verified correct, or `awr`,
      every step by the exponential of its advantage.
    prm_target: labels by `rules`, or `progress`, the change in P(solved).
    reward: of reinforcement learning: the `outcome` at the line's end, the
      stored `prm` score of every step, or its `progress`.
    discount: of what comes after a step.
    advantage_temperature: of `awr` and `awac`, in the unit of rewards.
    max_advantage_weight: of theirs, where exp(advantage / temperature) is cut.
    expectile: of token values; towards 1 they are the best Q and no mean.
    target_decay: of the moving average of the token-Q heads that token values
      are learned from.
    kl_target: nats to the reference that the weight of the KL loss is adapted
      to hold; 0 leaves the weight as it is.
    min_visits: visits a node needs for its policy to be a target; its own
      expansion is one.
    light_steps: share of the steps without much policy weight that are trained
      on, each weighing as much more; rather those where the player's V or PRM
      was far off. Those with steps below all are.
    max_drift: mean nats per step between what the player and the params that
      should play give to the steps of new trees; more is an alarm, 0 has none.
    on_drift: an alarm is reported and counted, or ends the run.
  """

  steps_per_iteration: int = 64
  steps_per_call: int = 1
  batch_size: int = 256
  lines_per_row: int = 1
  optimizer: Literal["adamw", "muon"] = "adamw"
  learning_rate: float = 1e-3
  warmup_steps: int = 50
  weight_decay: float = 0.01
  max_grad_norm: float = 1.0
  ema_decay: float = 0.0
  losses: dict[LossName, float] = dataclasses.field(
    default_factory=lambda: {"policy": 1.0, "value": 1.0, "prm": 1.0}
  )
  tree_q: Literal["search", "replanned"] = "search"
  value_target: Literal["mix", "step_q"] = "mix"
  value_lambda: float = 0.75
  policy_target: Literal["improved", "visits", "imitation", "awr"] = "improved"
  prm_target: Literal["rules", "progress"] = "rules"
  reward: Literal["outcome", "prm", "progress"] = "outcome"
  discount: float = 1.0
  advantage_temperature: float = 0.25
  max_advantage_weight: float = 20.0
  expectile: float = 0.7
  target_decay: float = 0.995
  kl_target: float = 0.0
  min_visits: int = 1
  light_steps: float = 0.25
  max_drift: float = 0.2
  on_drift: Literal["warn", "stop"] = "warn"

  @property
  def lines_per_batch(self) -> int:
    """Lines of a batch of nothing but lines."""
    return self.batch_size * self.lines_per_row


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
  """Hindsight warm start on random legal play, before the first iteration.

  Attributes:
    steps: gradient steps; 0 starts self-play from random weights.
    corrupt_share: share of lines with a step made wrong, for value and PRM.
    later_share: of a batch's rows that are still such lines afterwards, beside
      those of trees: rules are rehearsed while search is learned from.
  """

  steps: int = 300
  corrupt_share: float = 0.5
  later_share: float = 0.0


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
  """How the network is asked about a step.

  Attributes:
    prompts: what stands behind the step, one wording or several.
    right: the verdict on a right step, as a text.
    wrong: on a wrong one.
    teach_share: of the trees; the checked labels of their lines that are judged
      teach a copy of the network its verdicts before it does.
    teach_steps: gradient steps of that; 0 asks the network as it is.
  """

  prompts: tuple[str, ...] = ("step ok?",)
  right: str = "yes"
  wrong: str = "no"
  teach_share: float = 0.05
  teach_steps: int = 300


@dataclasses.dataclass(frozen=True)
class LabelsConfig:
  """Labels of steps that need the network anew. See `labels`.

  Attributes:
    num_rollouts: K, from every step.
    budget: prefixes that binary search rolls out for a line.
    alpha: of OmegaPRM, prefers roll-outs of states that are mostly solved.
    beta: prefers short roll-outs.
    c_puct: prefers states that were seldom selected.
    tolerance: largest difference of two labels of a consensus.
    judge: the network as judge.
  """

  num_rollouts: int = 8
  budget: int = 16
  alpha: float = 0.5
  beta: float = 0.9
  c_puct: float = 0.125
  tolerance: float = 0.25
  judge: JudgeConfig = dataclasses.field(default_factory=JudgeConfig)
