"""Every label stands exactly once before and after, with its own text."""

import collections

import hypothesis
import numpy as np
from hypothesis import strategies as st

from qstar_jax.labels.merge import merge
from tests.labels.conftest import line_of


def _line(steps, label, **changes):
  return line_of(
    0,
    **{
      "steps": tuple(steps),
      "label": np.array(label, np.float32),
      "is_finished": False,
      "kind": "hard",
      "origin": f"record {steps}",
      **changes,
    },
  )


def _texts(lines):
  return [("".join(x.steps), x.label.tolist()) for x in lines]


def test_rated_completions_of_one_solution():
  lines = [
    _line("a", [1], tokens=2),
    _line("x", [0]),
    _line("ab", [-1, 1], tokens=3),
    _line("ay", [-1, 0]),
    _line("abc", [-1, -1, 0], tokens=5),
  ]
  merged = list(merge(lines))
  assert _texts(merged) == [
    ("x", [0]),
    ("ay", [-1, 0]),
    ("abc", [1, 1, 0]),
  ]
  assert merged[2].tokens == 10
  assert merged[2].origin == lines[4].origin
  assert lines[4].label.tolist() == [-1, -1, 0]


def test_what_does_not_fit_stays_apart():
  rated_twice = [_line("ab", [-1, 1]), _line("ab", [-1, 0])]
  agreed = [_line("ab", [-1, 1]), _line("ab", [-1, 1])]
  other_end = [_line("a", [1], is_finished=True), _line("ab", [-1, 1])]
  for lines in (rated_twice, agreed, other_end):
    assert _texts(merge(lines)) == _texts(lines)
  # One of three ratings of a step goes into the line that goes on.
  thrice = [*(_line("a", [x]) for x in (1, 1, 0)), _line("ab", [-1, 1])]
  assert _texts(merge(thrice)) == [("a", [1]), ("a", [0]), ("ab", [1, 1])]
  same_end = [_line("ab", [1, -1], is_finished=True)]
  same_end.append(_line("ab", [-1, 0], is_finished=True))
  assert _texts(merge(same_end)) == [("ab", [1, 0])]
  for name, value in (
    ("problem_key", "other"),
    ("prompt", "other\n"),
    ("kind", "soft"),
    ("source", "human"),
  ):
    lines = [_line("a", [1]), _line("ab", [-1, 1], **{name: value})]
    assert _texts(merge(lines)) == _texts(lines)


def _labels(lines):
  """Each label with the steps up to it, and whether its step is the end."""
  return collections.Counter(
    (x.prompt, x.steps[: i + 1], x.is_finished and i + 1 == len(x.steps), value)
    for x in lines
    for i, value in enumerate(x.label.tolist())
    if value >= 0
  )


_LINES = st.builds(
  lambda prompt, labelled, end: _line(
    [step for step, _ in labelled],
    [value for _, value in labelled],
    prompt=prompt + "\n",
    is_finished=end,
  ),
  st.sampled_from("pq"),
  st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from([-1, -1, 0, 1])),
    min_size=1,
    max_size=4,
  ),
  st.booleans(),
)


@hypothesis.given(st.lists(_LINES, max_size=12))
def test_every_label_stands_once(lines):
  merged = list(merge(lines))
  assert _labels(merged) == _labels(lines)
  assert len(merged) <= len(lines)
  assert sum(x.tokens for x in merged) == sum(x.tokens for x in lines)
  assert _texts(merge(merged)) == _texts(merged)
