"""The PRM judged by labels, as a training run does it now and then."""

from collections.abc import Sequence
from typing import Any

from flax import nnx

from qstar_jax.config import TextConfig
from qstar_jax.evaluation import calibration
from qstar_jax.evaluation.scored_lines import labelled_lines
from qstar_jax.evaluation.step_scores import score_lines
from qstar_jax.records import LabelledLine
from qstar_jax.text.vocabulary import Vocabulary


def prm_figures(
  graphdef: nnx.GraphDef,
  params: nnx.State,
  vocabulary: Vocabulary,
  lines: Sequence[LabelledLine],
  *,
  text: TextConfig,
  batch_size: int,
  seed: int,
) -> dict[str, Any]:
  """How well PRM scores fit labels.

  Args:
    graphdef: structure of the network.
    params: of the network.
    vocabulary: of the network.
    lines: with labels.
    text: bounds the windows of long lines.
    batch_size: B, see `score_lines`.
    seed: of the bootstrap, which draws problems.

  Returns:
    steps: judged, mean_label, mean_score; and auroc, brier and ece with their
    95 % intervals, e.g. auroc_ci95. NaN where one is not defined.
  """
  scored = (
    (line, scores)
    for line, scores in score_lines(
      graphdef,
      params,
      vocabulary,
      lines,
      text=text,
      batch_size=batch_size,
      labelled_only=True,
    )
    if scores is not None
  )
  found = calibration.figures(list(labelled_lines(scored)), seed)
  del found["bins"]
  for name in ("auroc", "brier", "ece"):
    figure = found.pop(name)
    found |= {name: figure["value"], f"{name}_ci95": figure["ci95"]}
  return found
