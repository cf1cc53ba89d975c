"""Math-Shepherd: steps labelled by roll-outs (Wang et al. 2024,
arXiv:2312.08935).

`{"input": .., "label": .., "task": ..}`, one a line. `input` is the problem and
its steps, `Step 1: .. ки`; `label` is the same text with `+` or `-` in place of
every `ки`: some roll-out from there found the answer, or none did.
"""

import re
from collections.abc import Iterator
from typing import Any

from etils import epath

from qstar_jax.data import fields, reading
from qstar_jax.data.reading import Reason, Refusal, Report
from qstar_jax.domains.expressions import quote
from qstar_jax.records import LabelledLine

_TAG = "\N{CYRILLIC SMALL LETTER KA}\N{CYRILLIC SMALL LETTER I}"
_LABELS = {"+": 1.0, "-": 0.0}
_FIRST_STEP = "Step 1: "
_STEP = re.compile(r"Step [0-9]+: ")
_ANSWER = "The answer is"


def read(path: epath.PathLike, report: Report) -> Iterator[LabelledLine]:
  """The lines of a file, every step labelled.

  Steps lose their `Step 1: `; calculator marks stay. A line is finished if its
  last step says what `The answer is`.

  Args:
    path: a `.jsonl` file, or `.jsonl.gz`.
    report: counts, and says what happens to bad records.

  Raises:
    UserError: see `reading.read`.
  """
  return reading.read(path, _parse, report)


def _parse(record: Any, origin: str) -> list[LabelledLine]:
  text = fields.take(record, "input", str)
  *pieces, rest = text.split(_TAG)
  label = _labels(pieces, rest, fields.take(record, "label", str))
  problem, marker, pieces[0] = pieces[0].rpartition(_FIRST_STEP)
  if not marker:
    raise Refusal(
      Reason.MISMATCH,
      f"input has no {_FIRST_STEP!r} before its first tag; write one after the"
      " problem",
    )
  steps = [
    fields.one_line(_STEP.sub("", piece.lstrip(), count=1), "a step of input")
    for piece in pieces
  ]
  return [
    fields.labelled_line(
      "math_shepherd",
      fields.one_line(problem, "the problem of input"),
      steps,
      label,
      kind="hard",
      source="rollouts_hard",
      is_finished=_ANSWER in steps[-1],
      origin=origin,
    )
  ]


def _labels(pieces: list[str], rest: str, labelled: str) -> list[float]:
  """What stands in `labelled` where `input` has its tags.

  Args:
    pieces: of `input`, each with a tag behind it.
    rest: what stands behind the last tag.
    labelled: the text with labels.

  Raises:
    Refusal: there are no tags, the two texts differ elsewhere, or something
      else stands there.
  """
  label, position = [], 0
  for piece in pieces:
    position += len(piece)
    mark = labelled[position : position + 1]
    if not labelled.endswith(piece, 0, position) or not mark:
      break
    if mark not in _LABELS:
      raise Refusal(
        Reason.BAD_LABEL, f"{quote(mark)} stands for a tag; must be + or -"
      )
    label.append(_LABELS[mark])
    position += 1
  if not label or len(label) < len(pieces) or labelled[position:] != rest:
    raise Refusal(
      Reason.MISMATCH,
      f"label must be the text of input with + or - for each of its"
      f" {len(pieces)} tags, at least one",
    )
  return label
