"""PRM800K: steps rated by people (Lightman et al. 2023, arXiv:2305.20050).

Two layouts. OpenAI's own has a whole labelling in a record, with completions at
every step. `stepwise-critic` has one completion in a record, with the steps
before it (`.parquet`, or JSON lines made of it). Both give the same lines: one
for every completion, whose last step is that completion and alone may have a
label. Completions that a person wrote are rated by nobody.

An answer stands at the end of its step, as in OpenAI's layout: `So it is 29
cents. # Answer 29`. Such a step finishes its line.

Several labelers may have rated one step, and now and then differently (55 of
45,435 steps in the train file of phase 1). Each rating is a line, so such a
step is trained towards their mean. Phase 2 stops at the first error.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from qstar_jax.data import fields, reading
from qstar_jax.data.reading import Reason, Refusal, Report
from qstar_jax.domains.expressions import quote
from qstar_jax.errors import UserError
from qstar_jax.records import NO_LABEL, LabelledLine

_ANSWER = " # Answer "


def read(
  path: epath.PathLike, report: Report, *, neutral: float = 1.0
) -> Iterator[LabelledLine]:
  """The completions of a file in either layout, each at the end of its line.

  Rating 1 is label 1, -1 is 0, and null is no label. Rating 0 says that a step
  is sound but of no help, or hard to judge: a solution is still within reach
  after it, which is what label 1 means, and the paper counts it as positive
  too.

  Args:
    path: `.jsonl`, `.json` or `.parquet`, or one of them gzipped.
    report: counts, and says what happens to bad records.
    neutral: label of rating 0, in [0, 1]; `NO_LABEL` leaves such steps
      without one.

  Raises:
    UserError: `neutral` is neither; or see `reading.read`.
  """
  if neutral != NO_LABEL and not 0 <= neutral <= 1:
    raise UserError(
      f"neutral is {neutral}: must be in [0, 1], or {NO_LABEL:g} for no label"
    )
  labels = {1: 1.0, 0: neutral, -1: 0.0, None: NO_LABEL}
  kind = "hard" if neutral in (0, 1, NO_LABEL) else "soft"

  def parse(record: Any, origin: str) -> Iterator[LabelledLine]:
    is_raw = isinstance(record, dict) and "question" in record
    problem, completions = (_raw if is_raw else _stepwise)(record)
    for steps, rating in completions:
      yield fields.labelled_line(
        "prm800k",
        problem,
        steps,
        [NO_LABEL] * (len(steps) - 1) + [labels[rating]],
        kind=kind,
        source="human",
        is_finished=_ANSWER in steps[-1],
        origin=origin,
      )

  return reading.read(path, parse, report)


# Steps, of which the last is the completion, and its rating.
_Completion = tuple[Sequence[str], float | None]


def _stepwise(record: Any) -> tuple[str, list[_Completion]]:
  """Problem and completion of a record of the stepwise-critic layout."""
  problem = fields.take_text(record, "instruction")
  steps = fields.take_texts(record, "responses")
  step = fields.take_text(record, "next_response")
  if fields.take(record, "answer", str | None) is not None:
    step += _ANSWER + fields.take_text(record, "answer")
  return problem, [((*steps, step), _rating(record))]


def _raw(record: Any) -> tuple[str, list[_Completion]]:
  """Problem and completions of a record of OpenAI's layout."""
  question = fields.take(record, "question", dict)
  problem = fields.take_text(question, "problem")
  label = fields.take(record, "label", dict)
  line: list[str] = []
  found: list[_Completion] = []
  steps = fields.take(label, "steps", list)
  for number, step in enumerate(steps, 1):
    fields.checked(step, f"steps[{number - 1}]", dict)
    completions = fields.take(step, "completions", list | None) or []
    texts = [fields.take_text(completion, "text") for completion in completions]
    ratings = [_rating(completion) for completion in completions]
    found += [
      ([*line, text], rating)
      for text, rating in zip(texts, ratings, strict=True)
    ]
    human = fields.take(step, "human_completion", dict | None)
    if human is not None:
      texts.append(fields.take_text(human, "text"))
      found.append(([*line, texts[-1]], None))
    chosen = _chosen(step, len(completions), human is not None)
    if chosen is not None:
      line.append(texts[chosen])
    elif number < len(steps):
      raise Refusal(
        Reason.MISMATCH,
        f"step {number} of {len(steps)} has no completion that the next one"
        " goes on from; remove what follows",
      )
  return problem, found


def _rating(record: Any) -> float | None:
  # In parquet a column of integers with nulls is one of floats.
  rating = fields.take(record, "rating", int | float | None)
  if rating not in (1, 0, -1, None):
    raise Refusal(
      Reason.BAD_LABEL,
      f"rating is {quote(str(rating))}; must be 1, 0, -1 or null",
    )
  return rating


def _chosen(
  step: dict[str, Any], num_completions: int, has_human: bool
) -> int | None:
  """Index of the completion that the line goes on with; a person's is last."""
  chosen = fields.take(step, "chosen_completion", int | None)
  if chosen is None:
    return num_completions if has_human else None
  if not 0 <= chosen < num_completions:
    raise Refusal(
      Reason.BAD_INDEX,
      f"chosen_completion is {quote(str(chosen))} of {num_completions}; must"
      " be one of them, from 0, or null",
    )
  return chosen
