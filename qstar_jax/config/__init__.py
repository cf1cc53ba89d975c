"""The experiment's configuration: frozen dataclasses, one per part.

`validate` holds the rules; `configuration.load` (cli) reads YAML into these.
"""

from qstar_jax.config.experiment import (
  CheckpointConfig,
  CurriculumConfig,
  DomainConfig,
  EvaluationConfig,
  ExperimentConfig,
  GateConfig,
  MeshConfig,
  ModelConfig,
  SelfPlayConfig,
  TextConfig,
)
from qstar_jax.config.learning import (
  DataConfig,
  JudgeConfig,
  LabelsConfig,
  LearnerConfig,
  LossName,
  ReplayConfig,
  WarmStartConfig,
)
from qstar_jax.config.search import SearchConfig

__all__ = [
  "CheckpointConfig",
  "CurriculumConfig",
  "DataConfig",
  "DomainConfig",
  "EvaluationConfig",
  "ExperimentConfig",
  "GateConfig",
  "JudgeConfig",
  "LabelsConfig",
  "LearnerConfig",
  "LossName",
  "MeshConfig",
  "ModelConfig",
  "ReplayConfig",
  "SearchConfig",
  "SelfPlayConfig",
  "TextConfig",
  "WarmStartConfig",
]
