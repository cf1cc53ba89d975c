"""Fields of a foreign record, checked, and the records made of them."""

import dataclasses
import re
import types
from collections.abc import Sequence
from typing import Any

import numpy as np

from qstar_jax.data.reading import Reason, Refusal
from qstar_jax.domains.expressions import quote
from qstar_jax.records import LabelledLine

# How one problem's text differs from copy to copy: space, TeX's space, math
# signs, and sizes of fractions and brackets.
_LAYOUT = re.compile(
  r"\s|\\[!,;: ]|\\?\$|~|\\(?:left|right)(?![a-z])|(?<=\\)[dt](?=frac)",
  re.IGNORECASE,
)


def problem_key(text: str) -> str:
  """A problem's text without layout, which differs between copies of it.

  Two problems are the same problem when their keys are equal, whichever
  datasets they come from.
  """
  return _LAYOUT.sub("", text).casefold()


@dataclasses.dataclass(frozen=True)
class AnsweredProblem:
  """A problem with its final answer.

  Attributes:
    dataset: where it comes from.
    problem_key: see `problem_key`; splits are made by it.
    prompt: the problem's text; ends in a newline, holds no other.
    steps: of a solution, texts without delimiter; may be none.
    answer: the final answer, as the dataset writes it but for what its reader
      says.
    origin: file and record.
  """

  dataset: str
  problem_key: str
  prompt: str
  steps: tuple[str, ...]
  answer: str
  origin: str


def take(record: Any, name: str, kind: type | types.UnionType) -> Any:
  """The field `name` of a record, of type `kind`.

  Raises:
    Refusal: the record is no object, has no such field, or one of another
      type. A bool is no int.
  """
  checked(record, "the record", dict)
  if name not in record:
    raise Refusal(
      Reason.MISSING_FIELD, f"needs {name}, has {quote(', '.join(record))}"
    )
  return checked(record[name], name, kind)


def checked(value: Any, name: str, kind: type | types.UnionType) -> Any:
  """The value, of type `kind`; Refusal if of another. A bool is no int."""
  is_bool = isinstance(value, bool)
  if isinstance(value, kind) and (kind is bool or not is_bool):
    return value
  # Whole lists and objects are too long, or too deep, to be shown.
  is_short = isinstance(value, str | int | float)
  shown = f"{quote(str(value))}, of type " if is_short else "of type "
  raise Refusal(
    Reason.WRONG_TYPE,
    f"{name} is {shown}{type(value).__name__}; must be of type"
    f" {getattr(kind, '__name__', kind)}",
  )


def take_text(record: Any, name: str) -> str:
  """The field `name` of a record as one line of text; Refusal if it is none."""
  return one_line(take(record, name, str), name)


def take_texts(record: Any, name: str) -> tuple[str, ...]:
  """The field `name`, a list of texts, each as one line; Refusal otherwise."""
  texts = take(record, name, list)
  return tuple(one_line(text, f"{name}[{i}]") for i, text in enumerate(texts))


def one_line(text: Any, name: str) -> str:
  """The text with a single space for every line break (and the space at it).

  Raises:
    Refusal: no text, or none but space, or one that has no UTF-8 form.
  """
  lines = map(str.strip, checked(text, name, str).splitlines())
  joined = " ".join(filter(None, lines))
  if not joined:
    raise Refusal(Reason.EMPTY_TEXT, f"{name} has no text; fill or remove it")
  if not joined.isascii():
    try:
      joined.encode()
    except UnicodeEncodeError:
      raise Refusal(
        Reason.NOT_TEXT,
        f"{name} is {quote(ascii(joined))}, with half a character; mend it",
      ) from None
  return joined


def take_probability(record: Any, name: str) -> float:
  """The field `name`, a number in [0, 1]; Refusal otherwise."""
  value = take(record, name, int | float)
  if not 0 <= value <= 1:
    raise Refusal(
      Reason.BAD_LABEL, f"{name} is {quote(str(value))}; must be within [0, 1]"
    )
  return float(value)


def labelled_line(
  dataset: str,
  problem: str,
  steps: Sequence[str],
  label: Sequence[float],
  *,
  kind: str,
  source: str,
  is_finished: bool,
  origin: str,
) -> LabelledLine:
  """A line of a dataset; its labels cost no tokens here. See LabelledLine.

  Raises:
    Refusal: there are no steps.
  """
  if not steps:
    raise Refusal(Reason.EMPTY_TEXT, "the line has no steps; remove it")
  return LabelledLine(
    domain=dataset,
    problem_key=problem_key(problem),
    prompt=problem + "\n",
    steps=tuple(steps),
    is_finished=is_finished,
    label=np.array(label, np.float32),
    kind=kind,
    source=source,
    params_version=-1,
    tokens=0,
    origin=origin,
  )
