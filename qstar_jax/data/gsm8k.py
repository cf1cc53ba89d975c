"""GSM8K: grade-school problems with worked steps (Cobbe et al. 2021).

`{"question": .., "answer": "step\\nstep\\n#### 72"}`, one a line. The files of
`openai/grade-school-math`, the socratic ones included: their steps read
`sub-question ** step`.
"""

import re
from collections.abc import Iterator
from typing import Any

from etils import epath

from qstar_jax.data import fields, reading
from qstar_jax.data.reading import Reason, Refusal, Report
from qstar_jax.domains.expressions import quote

_MARK = re.compile(r"<<[^<>]*>>")
_ANSWER = re.compile(r"#### (-?[0-9][0-9,]*(?:\.[0-9]+)?)")


def read(
  path: epath.PathLike, report: Report, *, keep_marks: bool = False
) -> Iterator[fields.AnsweredProblem]:
  """The problems of a file.

  Blank lines of a solution are no steps. The answer is what stands after
  `####`, which only the last line may have, without its thousands commas; the
  last calculator mark often holds something else.

  Args:
    path: a `.jsonl` file, or `.jsonl.gz`.
    report: counts, and says what happens to bad records.
    keep_marks: leave the calculator's marks, as in `48/2 = <<48/2=24>>24`.

  Raises:
    UserError: see `reading.read`.
  """

  def parse(record: Any, origin: str) -> list[fields.AnsweredProblem]:
    problem = fields.take_text(record, "question")
    *lines, last = fields.take(record, "answer", str).splitlines() or [""]
    match = _ANSWER.fullmatch(last.strip())
    if not match or any("####" in line for line in lines):
      raise Refusal(
        Reason.NO_ANSWER,
        f"answer ends in {quote(last)}; its last line, and no other, must be"
        " '#### ' and a number",
      )
    if not keep_marks:
      lines = [_MARK.sub("", line) for line in lines]
    return [
      fields.AnsweredProblem(
        dataset="gsm8k",
        problem_key=fields.problem_key(problem),
        prompt=problem + "\n",
        steps=tuple(
          fields.one_line(line, "answer") for line in lines if line.strip()
        ),
        answer=match[1].replace(",", ""),
        origin=origin,
      )
    ]

  return reading.read(path, parse, report)
