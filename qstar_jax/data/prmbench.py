"""PRMBench: solutions with marked mistakes (Song et al. 2025,
arXiv:2501.03124).

One JSON object a line. GPT-4o put mistakes of nine classes into solutions of
PRM800K and said in which steps.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from etils import epath

from qstar_jax.data import fields, reading
from qstar_jax.data.reading import Reason, Refusal, Report
from qstar_jax.domains.expressions import quote
from qstar_jax.records import LabelledLine

# As the files spell them.
CLASSES = (
  "circular",
  "confidence",
  "counterfactual",
  "deception",
  "domain_inconsistency",
  "missing_condition",
  "multi_solutions",
  "redundency",
  "step_contradiction",
)


def read(path: epath.PathLike, report: Report) -> Iterator[LabelledLine]:
  """The solutions of a file, every step labelled.

  Steps in `error_steps` (from 1) are labelled 0 and all others 1, those after a
  mistake too: PRMBench asks of each step whether it is one. (Elsewhere a label
  counts what stands before its step; take the labels up to the first 0 for
  that.) Records with an index outside their steps are refused (100 of 6,216),
  and so are those with a step that has no text (3).

  `domain` is `prmbench/` and the class. The steps answer `modified_question`,
  which is the prompt; the key is that of `question`, the problem that the
  solution is from.

  Args:
    path: a `.jsonl` file, or `.jsonl.gz`.
    report: counts, and says what happens to bad records.

  Raises:
    UserError: see `reading.read`.
  """
  return reading.read(path, _parse, report)


def _parse(record: Any, origin: str) -> list[LabelledLine]:
  error_class = fields.take(record, "classification", str)
  if error_class not in CLASSES:
    raise Refusal(
      Reason.BAD_LABEL,
      f"classification is {quote(error_class)}; known ones are"
      f" {', '.join(CLASSES)}",
    )
  error_steps = fields.take(record, "error_steps", list)
  num_steps = len(fields.take(record, "modified_process", list))
  for step in error_steps:
    if not 1 <= fields.checked(step, "an error step", int) <= num_steps:
      raise Refusal(
        Reason.BAD_INDEX,
        f"error step {quote(str(step))} of {num_steps} steps, from 1; drop it",
      )
  line = fields.labelled_line(
    f"prmbench/{error_class}",
    fields.take_text(record, "modified_question"),
    fields.take_texts(record, "modified_process"),
    [float(step not in error_steps) for step in range(1, num_steps + 1)],
    kind="hard",
    source="injected",
    is_finished=True,
    origin=origin,
  )
  question = fields.take_text(record, "question")
  return [dataclasses.replace(line, problem_key=fields.problem_key(question))]
