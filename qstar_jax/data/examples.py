"""Lines as flat examples: tokens, and the targets of each. No TensorFlow.

An example is one line: `inputs`, int32 [p], the prompt's tokens, and `targets`,
int32 [t], those of its steps one after another with their last tokens
(delimiter or end), as `text.steps.encode_line` has them. Token by token beside
`targets` stand the WEIGHTS, float32 [t], the weights and targets of
`records.TrainBatch`. PROMPT is the prompt's text.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from qstar_jax.domains.hindsight import HindsightLine
from qstar_jax.errors import UserError
from qstar_jax.records import (
  NO_LABEL,
  LabelledLine,
  Outcome,
  TrainBatch,
  TreeRecord,
)
from qstar_jax.text.steps import encode_line
from qstar_jax.text.vocabulary import Vocabulary

PROMPT = "inputs_pretokenized"
# Those that every batch has.
WEIGHTS = tuple(
  field.name
  for field in dataclasses.fields(TrainBatch)
  if field.name != "tokens" and field.default is not None
)

Example = dict[str, Any]


def from_play(line: HindsightLine, vocabulary: Vocabulary) -> Example:
  """An example of the warm start; see `learner.plays.plays_to_rows`.

  Legal steps have policy weight 1, right ones label 1; the bad one has label 0
  and is the last. Value and PRM share the labels.
  """
  prompt_tokens, step_tokens = encode_line(
    vocabulary, line.problem.prompt, line.steps, is_finished=line.is_finished
  )
  label = [1.0] * len(step_tokens)
  if line.bad_step is not None:
    before = NO_LABEL if line.is_aimless else 1.0
    label = [before] * line.bad_step + [0.0]
  return _example(
    line.problem.prompt,
    prompt_tokens,
    step_tokens[: len(label)],
    policy=np.not_equal(label, 0.0) | line.is_aimless,
    value=label,
    prm=label,
  )


def from_tree(tree: TreeRecord, vocabulary: Vocabulary) -> Example:
  """The line that a play committed to.

  If it solves its problem it is imitated: policy weight 1, else 0. The value of
  every step is the line's score. PRM labels are those of the rules: 1 in a line
  that is correct; 0 for a step that is illegal or finishes a wrong answer.

  Raises:
    UserError: the tree is of another vocabulary.
  """
  if vocabulary.decode(tree.prompt_tokens.tolist()) != tree.prompt:
    raise UserError(
      f"tree {tree.sequence} of actor {tree.actor_id}: its tokens do not spell"
      f" {tree.prompt!r} in this vocabulary; give the one of its run"
    )
  is_correct = tree.final_outcome == Outcome.CORRECT
  line = tree.committed_node, tree.committed_candidate
  end = np.cumsum(tree.length).reshape(tree.length.shape)[line]
  steps = [
    tree.tokens[end - length : end]
    for end, length in zip(end, tree.length[line], strict=True)
  ]
  is_wrong = tree.legal[line] == 0
  is_wrong[-1] |= tree.ended[line][-1] and not is_correct
  label = np.where(is_wrong, 0.0, 1.0 if is_correct else NO_LABEL)
  return _example(
    tree.prompt,
    tree.prompt_tokens,
    steps,
    policy=[float(is_correct)] * len(steps),
    value=[tree.final_score] * len(steps),
    prm=label,
  )


def from_labels(line: LabelledLine, vocabulary: Vocabulary) -> Example:
  """A line with its labels as targets of the PRM; see `learner.labelled`.

  They are weights of the policy as well: steps are imitated as far as they are
  right. There is no value.
  """
  num_steps = len(line.steps)
  return _example(
    line.prompt,
    *encode_line(
      vocabulary, line.prompt, line.steps, is_finished=line.is_finished
    ),
    policy=np.where(line.label == NO_LABEL, 0, line.label),
    value=[NO_LABEL] * num_steps,
    prm=line.label,
  )


def _example(
  prompt: str,
  prompt_tokens: Sequence[int],
  step_tokens: Sequence[Sequence[int]],
  *,
  policy: Sequence[float],
  value: Sequence[float],
  prm: Sequence[float],
) -> Example:
  """An example: its policy weights, and values and labels or NO_LABEL, by step.

  Values and labels stand at the last token of their step.
  """
  length = np.array([len(tokens) for tokens in step_tokens])
  last = np.cumsum(length) - 1

  def at_last(values: np.ndarray) -> np.ndarray:
    out = np.zeros(length.sum(), np.float32)
    out[last] = values
    return out

  example = {
    PROMPT: prompt,
    "inputs": np.array(prompt_tokens, np.int32),
    "targets": np.concatenate(step_tokens, dtype=np.int32),
    "policy_weight": np.repeat(np.float32(policy), length),
  }
  for name, targets in (("value", np.array(value)), ("prm", np.array(prm))):
    has_target = targets != NO_LABEL
    example[f"{name}_target"] = at_last(np.where(has_target, targets, 0.0))
    example[f"{name}_weight"] = at_last(has_target)
  return example
