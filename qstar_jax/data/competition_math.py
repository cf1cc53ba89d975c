"""MATH: competition problems with a final answer (Hendrycks et al. 2021).

Reads what is in circulation: `problem` with `answer` (MATH-500, and other
lists), with `final_answer`, or with the `solution` alone (the original, one
file a problem, and lists of those), whose last box is the answer.
"""

from collections.abc import Iterator
from typing import Any

from etils import epath

from qstar_jax.data import fields, reading
from qstar_jax.data.reading import Reason, Refusal, Report

_ANSWER_FIELDS = ("answer", "final_answer")
_BOXES = ("\\boxed", "\\fbox")


def read(
  path: epath.PathLike, report: Report
) -> Iterator[fields.AnsweredProblem]:
  """The problems of a file, without steps.

  Args:
    path: `.jsonl`, or `.json` with an array or one problem; or either gzipped.
    report: counts, and says what happens to bad records.

  Raises:
    UserError: see `reading.read`.
  """
  return reading.read(path, _parse, report)


def _parse(record: Any, origin: str) -> list[fields.AnsweredProblem]:
  problem = fields.take_text(record, "problem")
  return [
    fields.AnsweredProblem(
      dataset="math",
      problem_key=fields.problem_key(problem),
      prompt=problem + "\n",
      steps=(),
      answer=_answer(record),
      origin=origin,
    )
  ]


def _answer(record: dict[str, Any]) -> str:
  for name in _ANSWER_FIELDS:
    if name in record:
      return fields.take_text(record, name)
  answer = last_box(fields.take(record, "solution", str))
  if answer is None:
    raise Refusal(
      Reason.NO_ANSWER, "solution has no \\boxed{..}; give it an answer field"
    )
  return fields.one_line(answer, "the box of solution")


def last_box(solution: str) -> str | None:
  r"""What the last `\boxed{..}` of a text holds; None if there is none.

  `\fbox{..}` is a box too, and so is `\boxed 5`, up to the next space or
  dollar sign. Braces are matched: `\boxed{\frac{1}{2}}` holds `\frac{1}{2}`.
  """
  ends = [solution.rfind(box) + len(box) for box in _BOXES if box in solution]
  if not ends:
    return None
  rest = solution[max(ends) :].lstrip()
  if not rest.startswith("{"):
    words = rest.partition("$")[0].split()
    return words[0] if words else None
  depth = 0
  for i, character in enumerate(rest):
    depth += (character == "{") - (character == "}")
    if depth == 0:
      return rest[1:i]
  return None
