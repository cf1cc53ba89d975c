"""An experiment: its problems, network and machine, and all other parts."""

import dataclasses
from typing import Literal

from qstar_jax.config.learning import (
  DataConfig,
  LabelsConfig,
  LearnerConfig,
  ReplayConfig,
  WarmStartConfig,
)
from qstar_jax.config.search import SearchConfig


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
    held_out_file: of problems that are kept out of training besides, to
      evaluate on when it is over; looked for in QSTAR_DATA_DIR if it is not
      here. See `readers.read_problems`; empty for none.
    held_out_rows: of that file, e.g. `900:1362`; empty for all.
  """

  name: str = "countdown"
  options: dict[str, int | float | str | bool] = dataclasses.field(
    default_factory=dict
  )
  min_difficulty: int = 1
  max_difficulty: int = 1
  held_out_problems: int = 500
  held_out_file: str = ""
  held_out_rows: str = ""


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Which tokens, and how many of them.

  The bounds are those of lines that are played. Stored lines that pass them are
  read in windows that keep to them: see `text.windows`.

  Attributes:
    vocabulary: `bytes`, or `sentencepiece` trained on the domain's own play, or
      on `data.labels` where the domain cannot play; that of the run that made
      `data.trees` where there are some.
    vocabulary_size: pieces to train (sentencepiece only).
    split_digits: digits are pieces, numbers are not (sentencepiece only): where
      there are too many numbers to learn each of them.
    max_prompt_tokens: P; a longer prompt is an error.
    max_step_tokens: T, delimiter included; a longer step is cut and wrong.
    max_steps: D; a line not finished after D steps is wrong.
  """

  vocabulary: Literal["bytes", "sentencepiece"] = "sentencepiece"
  vocabulary_size: int = 512
  split_digits: bool = False
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
    vocabulary_multiple: V is padded to a multiple of this, by rows of the
      embedding that are of no token: the vocabulary is trained, and its size
      not known before. `mesh.model` divides it.
    rope_base: base wavelength of the rotary embedding.
    norm_epsilon: added to the mean square in RMSNorm.
    scan_layers: `lax.scan` over layers (compiles faster when deep) instead of
      a Python loop (up to 2x faster on CPU).
    recompute: a gradient step computes what is inside the layers, and the
      logits of the policy loss, again instead of keeping it: a third more work
      for a small part of the memory (needs scan_layers).
    compute_dtype: of activations and the step cache; heads are float32 always.
    token_q: heads for Q and V of single tokens besides.
  """

  num_layers: int = 4
  model_dim: int = 128
  num_heads: int = 4
  num_kv_heads: int = 4
  head_dim: int = 32
  ffn_dim: int = 352
  vocabulary_multiple: int = 1
  rope_base: float = 10_000.0
  norm_epsilon: float = 1e-6
  scan_layers: bool = False
  recompute: bool = False
  compute_dtype: Literal["float32", "bfloat16"] = "float32"
  token_q: bool = False


@dataclasses.dataclass(frozen=True)
class SelfPlayConfig:
  """How much play an iteration makes. The search is `ExperimentConfig.search`.

  Attributes:
    problems_per_iteration: trees made between two learner phases; 0 plays
      nothing, and learns from `data` alone.
    batch_size: trees of a table; where the search asks the judge there are two
      tables.
    max_lead: iterations' worth of trees that actors may be ahead of the
      learner, where they play while it learns (`run_mode` split or files).
    publish_every_iterations: of the learner, after which actors get its params
      in `run_mode` split. With files they get them with every checkpoint.
  """

  problems_per_iteration: int = 256
  batch_size: int = 64
  max_lead: int = 1
  publish_every_iterations: int = 1


@dataclasses.dataclass(frozen=True)
class CurriculumConfig:
  """Which training problems come more often.

  Attributes:
    uniform_share: share of problems drawn without regard to solve rates.
    decay: weight of the past in the running solve rates.
    related_share: share of new problems of the domain's wider kind: in Game of
      24 those with larger numbers or another target.
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
  related_share: float = 0.0
  replay_share: float = 0.0
  table_problems: int = 1024
  proposer_problems: int = 0
  proposer_tries: int = 4
  proposer_every_iterations: int = 5


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """Evaluation inside a training run, on held-out problems.

  Attributes:
    every_iterations: period; the last iteration is always evaluated.
    num_problems: held-out problems played; 0 plays none.
    batch_size: trees searched at once.
    ladder_budgets: tokens per problem, at each of which the config's searcher
      plays too; empty for none.
    ladder_problems: held-out problems that are played at each budget.
  """

  every_iterations: int = 5
  num_problems: int = 500
  batch_size: int = 128
  ladder_budgets: tuple[int, ...] = ()
  ladder_problems: int = 100


@dataclasses.dataclass(frozen=True)
class GateConfig:
  """When the learner's params take the place of those that play.

  Attributes:
    every_iterations: period of trials; 0 has no gate, and the newest params
      play.
    pool_problems: kept out of training and evaluation, for trials alone.
    num_problems: of a trial, at most; one without a result by then keeps the
      player that there is.
    token_budget: of each play; 0 has none but the search's own.
    win_rate: share of the problems on which the two differ that a better
      candidate wins; the other hypothesis is one half.
    error_rate: of the test, to accept an equal one or to refuse a better one.
    max_refusals: trials in a row that accept nobody, refused or without a
      result, after which the learner goes back to the params that play; 0 never
      does.
  """

  every_iterations: int = 0
  pool_problems: int = 256
  num_problems: int = 256
  token_budget: int = 0
  win_rate: float = 0.6
  error_rate: float = 0.05
  max_refusals: int = 5


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
    fsdp: they are split over it too, and so are the learner's parameters.
    model: heads, hidden units and the vocabulary are split over it.
    cpu_devices: virtual devices to make when the platform is CPU.
    actor_devices: of all devices, those that self-play has for itself in
      `run_mode` split, over `data` and `model`; the axes above are the
      learner's, which has the others. 0 in the other modes.
    start_timeout_seconds: that the hosts of a program wait for each other.
  """

  data: int = -1
  fsdp: int = 1
  model: int = 1
  cpu_devices: int = 1
  actor_devices: int = 0
  start_timeout_seconds: int = 600


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
  """Everything that determines a run.

  Attributes:
    name: of the run; default run directory is runs/<name>.
    seed: of every random number in the run.
    run_mode: self-play and learning take turns (`alternate`), go on at once on
      devices of their own (`split`), or are jobs that share a directory
      (`files`, which `qstar actor` and `qstar learner` set).
    num_iterations: of self-play and learning. What depends on time left, as the
      learning rate does, is planned for so many, also where a bound below ends
      the run before.
    max_minutes: of the run, interruptions left out: it ends with the iteration
      in which they are over; 0 has no bound.
    max_tokens: generated and prefilled by self-play, likewise.
  """

  name: str = "run"
  seed: int = 0
  run_mode: Literal["alternate", "split", "files"] = "alternate"
  num_iterations: int = 10
  max_minutes: float = 0.0
  max_tokens: int = 0
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
  gate: GateConfig = dataclasses.field(default_factory=GateConfig)
  labels: LabelsConfig = dataclasses.field(default_factory=LabelsConfig)
  checkpoint: CheckpointConfig = dataclasses.field(
    default_factory=CheckpointConfig
  )
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

  @property
  def row_tokens(self) -> int:
    """Tokens of a row of the learner's batches."""
    return self.learner.lines_per_row * self.text.max_line_tokens
