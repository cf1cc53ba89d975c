"""Every reader on records made by hand: what they become, what is refused."""

import copy
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qstar_jax.data import (
  competition_math,
  gsm8k,
  math_aps,
  math_shepherd,
  prm800k,
  prmbench,
)
from qstar_jax.data.reading import Reason, Report
from qstar_jax.errors import UserError
from qstar_jax.records import NO_LABEL, LabelledLine

GSM8K = {
  "question": "How many\nclips?",
  "answer": "48/2 = <<48/2=24>>24\n\nin all -<<1000*1=1000>>1,000\n#### -1,024",
}
MATH = {"problem": "Half of\n1?", "solution": r"So $\boxed{\frac{1}{2}}$."}
STEPWISE = {
  "instruction": "How much?\n",
  "responses": ["One.", "Two\nlines."],
  "next_response": "So 3.",
  "answer": "3",
  "rating": 1,
}


def _completion(text, rating):
  return {"text": text, "rating": rating, "flagged": False}


RAW = {
  "question": {"problem": "How much?"},
  "label": {
    "steps": [
      {
        "completions": [_completion("No.", -1), _completion("One.", 0)],
        "human_completion": None,
        "chosen_completion": 1,
      },
      {
        "completions": [_completion("Hm.", None)],
        "human_completion": {"text": "Two\nlines.", "rating": None},
        "chosen_completion": None,
      },
      {
        "completions": [_completion("So 3.\n\n# Answer\n\n3", 1)],
        "human_completion": None,
        "chosen_completion": None,
      },
    ]
  },
}
_TEXT = "Why? Step 1: Do.{}\nStep 2: Done. The answer is: 7{}"
SHEPHERD = {
  "input": _TEXT.format(" ки", " ки"),
  "label": _TEXT.format(" +", " -"),
}


def _node(text, value, *children):
  return {"text": text, "mc_value": value, "children": list(children)}


TREE = {
  "question": "Why?",
  "reasoning_steps": _node(
    "Why?",
    0.5,
    _node("a\nb", 0.25, _node("c", 0), _node("d", 0.5, _node(r"\boxed{1}", 1))),
    _node("e", 1.0),
  ),
}
PREFIXES = {
  "question": "Why?",
  "reasoning_steps": [
    {"solution_prefix": "Why?", "mc_value": 0.5},
    {"solution_prefix": "Why?\n\na\nb\n\nc", "mc_value": 0.75},
    {"solution_prefix": "Why?\n\na\nb", "mc_value": 0.25},
    {"solution_prefix": "Why?\n\ne", "mc_value": 1.0},
    {"solution_prefix": "Why?\n\na\nb\n", "mc_value": 0.125},
  ],
}
PRMBENCH = {
  "question": r"Costs $\$1.24$?",
  "modified_question": "Costs about $1.24?",
  "modified_process": ["1. a", "2. b", "3. c"],
  "error_steps": [2],
  "classification": "missing_condition",
}
SAMPLES = [
  (gsm8k.read, GSM8K),
  (competition_math.read, MATH),
  (prm800k.read, STEPWISE),
  (prm800k.read, RAW),
  (math_shepherd.read, SHEPHERD),
  (math_aps.read, TREE),
  (math_aps.read, PREFIXES),
  (prmbench.read, PRMBENCH),
]


@pytest.fixture
def read_one(write):
  def read(reader, record, **options):
    return list(reader(write([record]), Report(), **options))

  return read


def test_gsm8k(read_one):
  (problem,) = read_one(gsm8k.read, GSM8K)
  assert problem.prompt == "How many clips?\n"
  assert problem.steps == ("48/2 = 24", "in all -1,000")
  assert problem.answer == "-1024"
  assert problem.origin.endswith("file.jsonl, record 1")
  (problem,) = read_one(gsm8k.read, GSM8K, keep_marks=True)
  assert problem.steps[0] == "48/2 = <<48/2=24>>24"


@pytest.mark.parametrize(
  "answer",
  ["", "72", "####72", "#### x", "#### ٣", "#### 1\n#### 1", "#### 1\nso"],
)
def test_gsm8k_without_an_answer(write, answer):
  report = Report("skip")
  record = GSM8K | {"answer": answer}
  assert list(gsm8k.read(write([record]), report)) == []
  assert report.refused == {Reason.NO_ANSWER: 1}


@pytest.mark.parametrize(
  ("record", "answer"),
  [
    (MATH, r"\frac{1}{2}"),
    (MATH | {"answer": "0.5"}, "0.5"),
    ({"problem": "Half?", "final_answer": "1/2"}, "1/2"),
    (
      {"problem": "Half?", "solution": r"\boxed{1} or \fbox{2}, \boxed 3$"},
      "3",
    ),
    ({"problem": "Half?", "solution": r"\boxed{1} or \fbox{2}"}, "2"),
    ({"problem": "Half?", "solution": r"\fbox{2}"}, "2"),
  ],
)
def test_math(read_one, record, answer):
  (problem,) = read_one(competition_math.read, record)
  assert problem.answer == answer
  assert problem.steps == ()
  assert problem.prompt in ("Half of 1?\n", "Half?\n")


@pytest.mark.parametrize(
  "solution", ["", "5", r"\boxed", r"\boxed{1", r"\boxed $5$", "boxed{1}"]
)
def test_math_without_a_box(write, solution):
  report = Report("skip")
  record = {"problem": "Half?", "solution": solution}
  assert list(competition_math.read(write([record]), report)) == []
  assert report.refused == {Reason.NO_ANSWER: 1}


def _facts(lines):
  return [(x.steps, x.label.tolist(), x.is_finished) for x in lines]


def test_prm800k_stepwise(read_one):
  (line,) = lines = read_one(prm800k.read, STEPWISE)
  steps = ("One.", "Two lines.", "So 3. # Answer 3")
  assert _facts(lines) == [(steps, [NO_LABEL, NO_LABEL, 1], True)]
  assert (line.domain, line.prompt) == ("prm800k", "How much?\n")
  assert (line.kind, line.source, line.params_version) == ("hard", "human", -1)


@pytest.mark.parametrize(
  ("rating", "neutral", "label", "kind"),
  [
    (1, 0.5, 1, "soft"),
    (-1, 1.0, 0, "hard"),
    (None, 1.0, NO_LABEL, "hard"),
    (0, 1.0, 1, "hard"),
    (0, 0.0, 0, "hard"),
    (0, 0.5, 0.5, "soft"),
    (0, NO_LABEL, NO_LABEL, "hard"),
    (0.0, 0.25, 0.25, "soft"),  # As parquet has it.
  ],
)
def test_prm800k_ratings(read_one, rating, neutral, label, kind):
  record = STEPWISE | {"rating": rating}
  (line,) = read_one(prm800k.read, record, neutral=neutral)
  assert line.label[-1] == label
  assert line.kind == kind


def test_prm800k_neutral_out_of_range(write):
  with pytest.raises(UserError, match=r"neutral is 2\.0: must be in \[0, 1\]"):
    prm800k.read(write([STEPWISE]), Report(), neutral=2.0)


def test_prm800k_raw(read_one):
  """Wrong, neutral and chosen, unrated, a person's and chosen, and the last."""
  none = NO_LABEL
  assert _facts(read_one(prm800k.read, RAW)) == [
    (("No.",), [0], False),
    (("One.",), [1], False),
    (("One.", "Hm."), [none, none], False),
    (("One.", "Two lines."), [none, none], False),
    (("One.", "Two lines.", "So 3. # Answer 3"), [none, none, 1], True),
  ]


def test_math_shepherd(read_one):
  (line,) = lines = read_one(math_shepherd.read, SHEPHERD)
  steps = ("Do.", "Done. The answer is: 7")
  assert _facts(lines) == [(steps, [1, 0], True)]
  assert line.prompt == "Why?\n"
  assert (line.kind, line.source) == ("hard", "rollouts_hard")


def test_math_aps_tree(read_one):
  lines = read_one(math_aps.read, TREE)
  none = NO_LABEL
  assert _facts(lines) == [
    (("a b", "c"), [0.25, 0], False),
    (("a b", "d", r"\boxed{1}"), [none, 0.5, 1], True),
    (("e",), [1], False),
  ]
  assert {(x.kind, x.source) for x in lines} == {("soft", "rollouts_soft")}


def test_math_aps_prefixes(read_one):
  none = NO_LABEL
  assert _facts(read_one(math_aps.read, PREFIXES)) == [
    (("a b",), [0.125], False),
    (("a b",), [0.25], False),
    (("a b", "c"), [none, 0.75], False),
    (("e",), [1], False),
  ]


@given(
  st.recursive(
    st.builds(_node, st.sampled_from("abc"), st.floats(0, 1)),
    lambda nodes: st.builds(
      lambda text, value, children: _node(text, value, *children),
      st.sampled_from("abc"),
      st.floats(0, 1),
      st.lists(nodes, max_size=3),
    ),
    max_leaves=12,
  )
)
def test_every_value_of_a_tree_is_one_label(root):
  def walk(node, above):
    for child in node["children"]:
      yield (*above, child["text"]), np.float32(child["mc_value"])
      yield from walk(child, (*above, child["text"]))

  lines = list(math_aps._tree_lines(root))
  found = [
    (steps[: i + 1], np.float32(label[i]))
    for steps, label in lines
    for i in range(len(steps))
    if label[i] != NO_LABEL
  ]
  assert sorted(found) == sorted(walk(root, ()))


def test_prmbench(read_one):
  (line,) = read_one(prmbench.read, PRMBENCH)
  assert line.label.tolist() == [1, 0, 1]
  assert line.domain == "prmbench/missing_condition"
  assert line.prompt == "Costs about $1.24?\n"
  assert line.problem_key == "costs1.24?"
  (line,) = read_one(prmbench.read, PRMBENCH | {"error_steps": []})
  assert line.label.tolist() == [1, 1, 1]


def _changed(record, path, value):
  """The record with `value` at `path`, or without what is there."""
  if not path:
    return value
  record = copy.deepcopy(record)
  parent = record
  for name in path[:-1]:
    parent = parent[name]
  if value is KeyError:
    del parent[path[-1]]
  else:
    parent[path[-1]] = value
  return record


_STEPS = ("label", "steps")
BAD = [
  (gsm8k.read, GSM8K, ("question",), KeyError, Reason.MISSING_FIELD),
  (gsm8k.read, GSM8K, ("question",), "\n", Reason.EMPTY_TEXT),
  (gsm8k.read, GSM8K, ("answer",), 3, Reason.WRONG_TYPE),
  (competition_math.read, MATH, ("solution",), KeyError, Reason.MISSING_FIELD),
  (competition_math.read, MATH, ("answer",), "", Reason.EMPTY_TEXT),
  (competition_math.read, MATH, ("answer",), 5, Reason.WRONG_TYPE),
  (prm800k.read, STEPWISE, ("rating",), 2, Reason.BAD_LABEL),
  (prm800k.read, STEPWISE, ("rating",), 0.5, Reason.BAD_LABEL),
  (prm800k.read, STEPWISE, ("rating",), float("nan"), Reason.BAD_LABEL),
  (prm800k.read, STEPWISE, ("rating",), "1", Reason.WRONG_TYPE),
  (prm800k.read, STEPWISE, ("rating",), True, Reason.WRONG_TYPE),
  (prm800k.read, STEPWISE, ("rating",), KeyError, Reason.MISSING_FIELD),
  (prm800k.read, STEPWISE, ("responses", 1), None, Reason.WRONG_TYPE),
  (prm800k.read, STEPWISE, ("responses", 1), "", Reason.EMPTY_TEXT),
  (prm800k.read, STEPWISE, ("responses", 1), "\udc00", Reason.NOT_TEXT),
  (prm800k.read, RAW, ("label",), KeyError, Reason.MISSING_FIELD),
  (prm800k.read, RAW, ("question", "problem"), KeyError, Reason.MISSING_FIELD),
  (prm800k.read, RAW, (*_STEPS, 0), None, Reason.WRONG_TYPE),
  (prm800k.read, RAW, (*_STEPS, 0, "completions", 0), 1, Reason.WRONG_TYPE),
  (prm800k.read, RAW, (*_STEPS, 0, "chosen_completion"), 2, Reason.BAD_INDEX),
  (prm800k.read, RAW, (*_STEPS, 0, "chosen_completion"), -1, Reason.BAD_INDEX),
  (prm800k.read, RAW, (*_STEPS, 0, "chosen_completion"), None, Reason.MISMATCH),
  (
    prm800k.read,
    RAW,
    (*_STEPS, 2, "completions", 0, "rating"),
    -2,
    Reason.BAD_LABEL,
  ),
  (
    math_shepherd.read,
    SHEPHERD,
    ("label",),
    SHEPHERD["input"],
    Reason.BAD_LABEL,
  ),
  (math_shepherd.read, SHEPHERD, ("label",), "Why?", Reason.MISMATCH),
  (
    math_shepherd.read,
    SHEPHERD,
    ("label",),
    SHEPHERD["label"] + "+",
    Reason.MISMATCH,
  ),
  (math_shepherd.read, SHEPHERD, ("input",), "Why?", Reason.MISMATCH),
  (
    math_shepherd.read,
    SHEPHERD,
    (),
    {"input": "Why? Do ки", "label": "Why? Do +"},
    Reason.MISMATCH,
  ),
  (
    math_shepherd.read,
    SHEPHERD,
    (),
    {"input": "Why? Step 1: ки", "label": "Why? Step 1: +"},
    Reason.EMPTY_TEXT,
  ),
  (math_aps.read, TREE, ("reasoning_steps",), "x", Reason.WRONG_TYPE),
  (
    math_aps.read,
    TREE,
    ("reasoning_steps", "children", 1, "mc_value"),
    1.5,
    Reason.BAD_LABEL,
  ),
  (
    math_aps.read,
    TREE,
    ("reasoning_steps", "children", 1, "children"),
    None,
    Reason.WRONG_TYPE,
  ),
  (
    math_aps.read,
    PREFIXES,
    ("reasoning_steps", 3, "solution_prefix"),
    "How?",
    Reason.MISMATCH,
  ),
  (
    math_aps.read,
    PREFIXES,
    ("reasoning_steps", 3, "mc_value"),
    -0.1,
    Reason.BAD_LABEL,
  ),
  (prmbench.read, PRMBENCH, ("error_steps",), [4], Reason.BAD_INDEX),
  (prmbench.read, PRMBENCH, ("error_steps",), [0], Reason.BAD_INDEX),
  (prmbench.read, PRMBENCH, ("error_steps",), ["2"], Reason.WRONG_TYPE),
  (prmbench.read, PRMBENCH, ("classification",), "other", Reason.BAD_LABEL),
  (prmbench.read, PRMBENCH, ("modified_process", 1), " ", Reason.EMPTY_TEXT),
  (
    prmbench.read,
    PRMBENCH | {"error_steps": []},
    ("modified_process",),
    [],
    Reason.EMPTY_TEXT,
  ),
]


@pytest.mark.parametrize(("reader", "record", "path", "value", "reason"), BAD)
def test_what_is_refused(write, reader, record, path, value, reason):
  file = write([record, _changed(record, path, value), record])
  report = Report("skip")
  lines = list(reader(file, report))
  assert report.refused == {reason: 1}
  assert report.messages[0].startswith(f"{file}, record 2: {reason}: ")
  assert report.num_records == 2
  assert len(lines) == 2 * len(list(reader(write([record]), Report())))
  with pytest.raises(UserError, match="record 2"):
    list(reader(write([record, _changed(record, path, value)]), Report()))


_JSON = st.recursive(
  st.none()
  | st.booleans()
  | st.integers(-3, 3)
  | st.floats()
  | st.text(max_size=4)
  | st.sampled_from(["\ud800", "#### 1", "ки", "Step 1: ", "\\boxed{"]),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=4), inner, max_size=3)
  ),
  max_leaves=6,
)


def _paths(value, path=()):
  yield path
  inner = {}
  if isinstance(value, dict):
    inner = value
  elif isinstance(value, list):
    inner = dict(enumerate(value))
  for name, child in inner.items():
    yield from _paths(child, (*path, name))


def _read_text(folder, reader, data):
  path = folder / "fuzz.jsonl"
  path.write_bytes(data)
  report = Report("skip")
  lines = list(reader(path, report))
  assert report.num_records + report.refused.total() >= 1
  for line in lines:
    assert line.prompt.find("\n") == len(line.prompt) - 1
    assert all(step and "\n" not in step for step in line.steps)
    (line.prompt + "".join(line.steps)).encode()
    if isinstance(line, LabelledLine):
      assert len(line.label) == len(line.steps) >= 1
      is_label = (line.label >= 0) & (line.label <= 1)
      assert (is_label | (line.label == NO_LABEL)).all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize(("reader", "record"), SAMPLES)
@given(data=st.data())
def test_changed_records_never_crash(folder, reader, record, data):
  path = data.draw(st.sampled_from(list(_paths(record))))
  value = data.draw(_JSON)
  record = _changed(record, path, value)
  _read_text(folder, reader, json.dumps(record).encode())


@pytest.mark.parametrize(("reader", "record"), SAMPLES)
@given(data=st.data())
def test_damaged_text_never_crashes(folder, reader, record, data):
  text = bytearray(json.dumps(record).encode())
  place = st.integers(0, len(text) - 1)
  for _ in range(data.draw(st.integers(0, 3))):
    text[data.draw(place)] = data.draw(st.integers(0, 255))
  _read_text(folder, reader, bytes(text[: data.draw(place) + 1]))
