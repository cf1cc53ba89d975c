"""How far a run has come."""

import dataclasses

from qstar_jax.config import ExperimentConfig


@dataclasses.dataclass
class Progress:
  """Where the loop stands; saved with every checkpoint.

  Attributes:
    warm_steps: gradient steps of the warm start that are done.
    iteration: iterations that are done.
    num_trees: trees played, and the number of the next one.
    num_tokens: generated and prefilled by self-play.
    num_labelled_lines: drawn from `data.labels`.
    is_over: a bound of the config has ended the run.
  """

  warm_steps: int = 0
  iteration: int = 0
  num_trees: int = 0
  num_tokens: int = 0
  num_labelled_lines: int = 0
  is_over: bool = False

  def count(self, num_trees: int, num_tokens: int) -> dict[str, int]:
    """Counts new trees, and what their play took; returns what to log."""
    self.num_trees += num_trees
    self.num_tokens += num_tokens
    return {"trees": self.num_trees, "tokens": self.num_tokens}

  def is_done(self, config: ExperimentConfig) -> bool:
    """Whether nothing that the config asks for is left to do."""
    return self.warm_steps >= config.warm_start.steps and (
      self.is_over or self.iteration >= config.num_iterations
    )
