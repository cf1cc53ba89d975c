"""The experiment's configuration: frozen dataclasses, one per part.

`validate` holds the rules; `configuration.load` (cli) reads YAML into these.
"""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class DomainConfig:
  """Which problems.

  Attributes:
    name: a registered domain, or `my_module:MyDomain` for one of the user's.
    options: fields of the domain's class, e.g. `{num_numbers: 3}`.
    min_difficulty: easiest problems of the curriculum, >= 1.
    max_difficulty: hardest, >= min_difficulty.
    held_out_problems: canonical problems kept out of training for evaluation;
      0 keeps none.
  """

  name: str = "countdown"
  options: dict[str, int | float | str | bool] = dataclasses.field(
    default_factory=dict
  )
  min_difficulty: int = 1
  max_difficulty: int = 1
  held_out_problems: int = 500


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Which tokens, and how many of them.

  Attributes:
    vocabulary: `bytes`, or `sentencepiece` trained on the domain's own play, or
      on `data.labels` where the domain cannot play; that of the run that made
      `data.trees` where there are some.
    vocabulary_size: pieces to train (sentencepiece only).
    max_prompt_tokens: P; a longer prompt is an error.
    max_step_tokens: T, delimiter included; a longer step is cut and wrong.
    max_steps: D; a line not finished after D steps is wrong.
  """

  vocabulary: Literal["bytes", "sentencepiece"] = "sentencepiece"
  vocabulary_size: int = 512
  max_prompt_tokens: int = 8
  max_step_tokens: int = 10
  max_steps: int = 3

  @property
  def max_line_tokens(self) -> int:
    """Tokens of the longest line: prompt and every step."""
    return self.max_prompt_tokens + self.max_steps * self.max_step_tokens


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Decoder-only transformer with policy, value and PRM heads.

  Attributes:
    num_layers: L.
    model_dim: M.
    num_heads: H, query heads.
    num_kv_heads: K, divides H (grouped-query attention).
    head_dim: C, even (rotary embedding).
    ffn_dim: F, width of the gated MLP.
    rope_base: base wavelength of the rotary embedding.
    norm_epsilon: added to the mean square in RMSNorm.
    scan_layers: `lax.scan` over layers (compiles faster when deep) instead of
      a Python loop (up to 2x faster on CPU).
    compute_dtype: of activations and the step cache; heads are float32 always.
    token_q: heads for Q and V of single tokens besides.
  """

  num_layers: int = 4
  model_dim: int = 128
  num_heads: int = 4
  num_kv_heads: int = 4
  head_dim: int = 32
  ffn_dim: int = 352
  rope_base: float = 10_000.0
  norm_epsilon: float = 1e-6
  scan_layers: bool = False
  compute_dtype: Literal["float32", "bfloat16"] = "float32"
  token_q: bool = False


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
    path_cost: of A*, what g is made of.
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
  path_cost: Literal["prm", "depth"] = "prm"
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
  value_scale: float = 0.1
  maxvisit_init: float = 50.0
  mctx_mode: bool = False


@dataclasses.dataclass(frozen=True)
class SelfPlayConfig:
  """How much play an iteration makes. The search is `ExperimentConfig.search`.

  Attributes:
    problems_per_iteration: trees made between two learner phases; 0 plays
      nothing, and learns from `data` alone.
    batch_size: trees of a table; where the search asks the judge there are two
      tables.
  """

  problems_per_iteration: int = 256
  batch_size: int = 64


@dataclasses.dataclass(frozen=True)
class CurriculumConfig:
  """Which training problems come more often.

  Attributes:
    uniform_share: share of problems drawn without regard to solve rates.
    decay: weight of the past in the running solve rates.
    replay_share: share of an iteration's plays that are of problems in the
      table: those that some line has solved, by p (1 - p).
    table_problems: in the table at most, those played last.
    proposer_problems: new problems that the player and an earlier one try, as
      candidates for the table; 0 has no proposer.
    proposer_tries: lines of each problem and player.
    proposer_every_iterations: period, and how much older the earlier player is.
  """

  uniform_share: float = 0.25
  decay: float = 0.9
  replay_share: float = 0.0
  table_problems: int = 1024
  proposer_problems: int = 0
  proposer_tries: int = 4
  proposer_every_iterations: int = 5


@dataclasses.dataclass(frozen=True)
class ReplayConfig:
  """What of the stored play the learner sees.

  Attributes:
    window_trees: newest trees that the learner samples from.
    window_growth: trees by which the window grows for every one that comes once
      it is full, at first; 0 keeps its size. See `replay.sampling`.
    window_exponent: power of the number of trees that it grows as.
    max_reuse: times a tree may be sampled before it is retired.
    max_staleness: gradient steps after which a tree is dropped, counted from
      the params that searched it to the start of the learner's phase; 0 has no
      bound.
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


@dataclasses.dataclass(frozen=True)
class LearnerConfig:
  """The distillation of search into the network.

  Attributes:
    steps_per_iteration: gradient steps between two self-play phases.
    steps_per_call: gradient steps handed to the device at once; small networks
      wait less for the host, and the run hears of Ctrl-C that much later.
    batch_size: lines per step, over all devices.
    optimizer: `adamw`, or `muon` for the matrices of the layers.
    learning_rate: peak, after warm-up.
    warmup_steps: linear from 0.
    weight_decay: decoupled, on the matrices of the layers.
    max_grad_norm: clip by global norm.
    ema_decay: of the moving average of the parameters over steps, which plays
      and is evaluated; 0 keeps none and plays the newest.
    losses: names of `learner.objective.LOSSES` with their weights; 0 only
      measures a loss.
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
    light_lines: share of the lines without much policy weight that are trained
      on, each weighing as much more; see `lines.thin_light_lines`.
    max_drift: mean nats per step between what the player and the params that
      should play give to the steps of new trees; more is an alarm, 0 has none.
    on_drift: an alarm is reported and counted, or ends the run.
  """

  steps_per_iteration: int = 64
  steps_per_call: int = 1
  batch_size: int = 256
  optimizer: Literal["adamw", "muon"] = "adamw"
  learning_rate: float = 1e-3
  warmup_steps: int = 50
  weight_decay: float = 0.01
  max_grad_norm: float = 1.0
  ema_decay: float = 0.0
  losses: dict[LossName, float] = dataclasses.field(
    default_factory=lambda: {"policy": 1.0, "value": 1.0, "prm": 1.0}
  )
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
  light_lines: float = 0.25
  max_drift: float = 0.2
  on_drift: Literal["warn", "stop"] = "warn"


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
  """Hindsight warm start on random legal play, before the first iteration.

  Attributes:
    steps: gradient steps; 0 starts self-play from random weights.
    corrupt_share: share of lines with a step made wrong, for value and PRM.
  """

  steps: int = 300
  corrupt_share: float = 0.5


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """Evaluation inside a training run, on held-out problems.

  Attributes:
    every_iterations: period; the last iteration is always evaluated.
    num_problems: held-out problems played; 0 plays none.
    batch_size: trees searched at once.
  """

  every_iterations: int = 5
  num_problems: int = 500
  batch_size: int = 128


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
  """How the network is asked about a step.

  Attributes:
    prompts: what stands behind the step, one wording or several.
    right: the verdict on a right step, as a text.
    wrong: on a wrong one.
    teach_share: of the trees, whose checked labels teach a copy of the network
      its verdicts before it judges.
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
    judge: the network as judge.
  """

  num_rollouts: int = 8
  budget: int = 16
  alpha: float = 0.5
  beta: float = 0.9
  c_puct: float = 0.125
  judge: JudgeConfig = dataclasses.field(default_factory=JudgeConfig)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """Attributes:
  every_iterations: period; the last iteration is always saved.
  keep: newest checkpoints kept.
  """

  every_iterations: int = 1
  keep: int = 2


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Axes of the device mesh; one of them may be -1, filled with what is left.

  Attributes:
    data: trees and lines are split over it.
    fsdp: parameters are split over it.
    model: heads and hidden units are split over it.
    cpu_devices: virtual devices to make when the platform is CPU.
  """

  data: int = -1
  fsdp: int = 1
  model: int = 1
  cpu_devices: int = 1


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
  """Everything that determines a run.

  Attributes:
    name: of the run; default run directory is runs/<name>.
    seed: of every random number in the run.
    num_iterations: of self-play and learning.
  """

  name: str = "run"
  seed: int = 0
  num_iterations: int = 10
  domain: DomainConfig = dataclasses.field(default_factory=DomainConfig)
  text: TextConfig = dataclasses.field(default_factory=TextConfig)
  model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
  search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
  self_play: SelfPlayConfig = dataclasses.field(default_factory=SelfPlayConfig)
  curriculum: CurriculumConfig = dataclasses.field(
    default_factory=CurriculumConfig
  )
  replay: ReplayConfig = dataclasses.field(default_factory=ReplayConfig)
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  learner: LearnerConfig = dataclasses.field(default_factory=LearnerConfig)
  warm_start: WarmStartConfig = dataclasses.field(
    default_factory=WarmStartConfig
  )
  evaluation: EvaluationConfig = dataclasses.field(
    default_factory=EvaluationConfig
  )
  labels: LabelsConfig = dataclasses.field(default_factory=LabelsConfig)
  checkpoint: CheckpointConfig = dataclasses.field(
    default_factory=CheckpointConfig
  )
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
