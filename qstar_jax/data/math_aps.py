"""MATH-APS: steps labelled by roll-outs in a tree, as OmegaPRM does (Luo et al.
2024, arXiv:2406.06592; data of OpenR, Wang et al. 2024, arXiv:2410.09671).

`{"question": .., "final_answer": .., "reasoning_steps": ..}`, one a line, where
`reasoning_steps` is a tree of `{text, mc_value, children}` whose root is the
question, or a list of `{solution_prefix, mc_value}` whose prefixes begin with
it. `mc_value` is the share of the roll-outs from there that found the answer.

A step is what stands between two places rolled out from, often many lines. The
value of the question alone speaks of no step and is left out.
"""

from collections.abc import Iterator
from typing import Any

from etils import epath

from qstar_jax.data import fields, reading
from qstar_jax.data.reading import Reason, Refusal, Report
from qstar_jax.records import NO_LABEL, LabelledLine

_BOX = "\\boxed"
# Texts and labels of some steps.
_Line = tuple[tuple[str, ...], tuple[float, ...]]


def read(path: epath.PathLike, report: Report) -> Iterator[LabelledLine]:
  """The lines of a file; every value is the label of one step of one of them.

  A tree gives one line for every leaf, where a step that several share has its
  label in the first. Prefixes give one line each, whose last step alone has a
  label; a prefix rolled out from twice is two lines. A line is finished if its
  last step has a box.

  Args:
    path: a `.jsonl` file, or `.jsonl.gz`.
    report: counts, and says what happens to bad records.

  Raises:
    UserError: see `reading.read`.
  """
  return reading.read(path, _parse, report)


def _parse(record: Any, origin: str) -> Iterator[LabelledLine]:
  problem = fields.take_text(record, "question")
  found = fields.take(record, "reasoning_steps", dict | list)
  is_tree = isinstance(found, dict)
  lines = _tree_lines(found) if is_tree else _prefix_lines(record, found)
  for steps, label in lines:
    yield fields.labelled_line(
      "math_aps",
      problem,
      steps,
      label,
      kind="soft",
      source="rollouts_soft",
      is_finished=_BOX in steps[-1],
      origin=origin,
    )


def _tree_lines(root: dict[str, Any]) -> Iterator[_Line]:
  """A line for every leaf, depth first."""
  children = fields.take(root, "children", list)
  waiting = [(child, (), ()) for child in reversed(children)]
  while waiting:
    node, steps, label = waiting.pop()
    steps += (fields.take_text(node, "text"),)
    label += (fields.take_probability(node, "mc_value"),)
    children = fields.take(node, "children", list)
    if not children:
      yield steps, label
      continue
    unlabelled = (NO_LABEL,) * len(steps)
    waiting += [(child, steps, unlabelled) for child in reversed(children[1:])]
    waiting.append((children[0], steps, label))


def _prefix_lines(record: dict[str, Any], found: list[Any]) -> Iterator[_Line]:
  """A line for every prefix, in alphabetical order."""
  question = fields.take(record, "question", str).rstrip()
  prefixes = []
  for node in found:
    prefix = fields.take(node, "solution_prefix", str)
    if not prefix.startswith(question):
      raise Refusal(
        Reason.MISMATCH, "a solution_prefix must begin with the question"
      )
    solution = prefix[len(question) :].rstrip()
    prefixes.append((solution, fields.take_probability(node, "mc_value")))
  # In this order a prefix stands before all that go on from it.
  above: list[tuple[str, tuple[str, ...]]] = [("", ())]
  for solution, value in sorted(prefixes):
    while not solution.startswith(above[-1][0]):
      above.pop()
    begun, steps = above[-1]
    if solution != begun:
      step = fields.one_line(solution[len(begun) :], "solution_prefix")
      steps = (*steps, step)
      above.append((solution, steps))
    if steps:
      yield steps, (NO_LABEL,) * (len(steps) - 1) + (value,)
