"""Trees as JSON and as pages; `test_tree_page.py` looks at a page."""

import base64
import dataclasses
import hashlib
import html.parser
import json
import os
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qstar_jax.errors import UserError
from qstar_jax.evaluation.tree_export import destination, to_json, to_page
from qstar_jax.records import Outcome
from tests.evaluation.made_trees import (
  export_made,
  large_record,
  make_record,
  random_record,
  step,
)


def test_a_tree_by_hand():
  record = make_record(
    [
      step("2 * 3 = 6 (left: 1 6)", visits=1, q=0.7, value=0.6, prm=0.9),
      step(
        "1 + 2 = 3 (left: 3 3)",
        [step("3 + 3 = 6 (left: 6)", ended=True, outcome=0, score=1, q=1)],
        visits=3,
        count=2,
        log_prob=-0.25,
        proposal_log_prob=-0.25,
      ),
    ],
    committed=[1, 0],
  )
  record = dataclasses.replace(record, params_version=40)
  exported = export_made(record, outcome=Outcome.CORRECT, score=1.0, reason="")
  first, second, third = exported.pop("candidates")
  assert exported == {
    "format": "qstar_jax tree",
    "version": 1,
    "domain": "countdown",
    "problem": "1 2 3 -> 6",
    "searcher": "astar",
    "seed": 7,
    "checkpoint_step": 40,
    "value": 0.25,
    "tokens": 1234,
    "expansions": 2,
    "solution": {
      "steps": ["1 + 2 = 3 (left: 3 3)"],
      "answer": "",
      "outcome": "correct",
      "score": 1.0,
      "reason": "",
    },
  }
  prior = first.pop("prior"), second.pop("prior"), third.pop("prior")
  assert prior == pytest.approx((2 / 3, 1 / 3, 1))
  assert first == {
    "parent": None,
    "text": "1 + 2 = 3 (left: 3 3)",
    "committed": True,
    "fate": "expanded",
    "fate_words": "",
    "tokens": 22,
    "count": 2,
    "visits": 3,
    "q": 0.5,
    "value": 0.5,
    "prm": 0.5,
    "priority": None,
    "log_prob": -0.25,
  }
  # As short as the numbers were written, whatever float32 makes of them.
  assert (second["q"], second["value"], second["prm"]) == (0.7, 0.6, 0.9)
  assert (second["parent"], second["committed"]) == (None, False)
  assert (third["parent"], third["committed"]) == (0, True)
  assert (third["fate"], third["fate_words"]) == ("correct", "ended correct")


def test_why_branches_end():
  record = make_record(
    [
      step("a", legal=0),
      step("b", is_cut=True),
      step("c", ended=True, outcome=0, score=0.5),
      step("d", ended=True, outcome=1),
      step("e", ended=True, outcome=2),
      step("f", ended=True, outcome=3),
      step("g", ended=True),
      step("h"),
      step("i", [step("j")]),
    ],
    committed=[8, 0],
  )
  fates = {
    candidate["text"]: (candidate["fate"], candidate["fate_words"])
    for candidate in export_made(record)["candidates"]
  }
  assert fates == {
    "a": ("illegal", "illegal"),
    "b": ("truncated", "truncated"),
    "c": ("correct", "ended correct, score 0.50"),
    "d": ("wrong", "ended wrong"),
    "e": ("unparseable", "ended unparseable"),
    "f": ("timeout", "ended timeout"),
    "g": ("unjudged", "ended, not judged"),
    "h": ("unexpanded", "not expanded"),
    "i": ("expanded", ""),
    "j": ("wrong", "ended wrong"),  # Of the committed line.
  }


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6))
def test_the_flat_list_is_the_tree(seed):
  record, root, committed = random_record(np.random.default_rng(seed))
  candidates = export_made(record)["candidates"]
  below = {None: []}
  for index, candidate in enumerate(candidates):
    below[candidate["parent"]].append(index)  # Parents come first.
    below[index] = []
  pending = [(None, root)]
  while pending:
    index, steps = pending.pop()
    order = sorted(steps, key=lambda s: (-s["visits"], -s["q"]))
    found = [candidates[i] for i in below[index]]
    assert [s["visits"] for s in order] == [c["visits"] for c in found]
    assert [np.float32(s["q"]) for s in order] == (
      [np.float32(c["q"]) for c in found]
    )
    for i, expected in zip(below[index], order, strict=True):
      if expected["below"] is not None:
        pending.append((i, expected["below"]))
      else:
        assert not below[i]
  line, steps = [], root
  for index in committed:
    line.append(steps[index])
    steps = line[-1]["below"]
  marked = [c["visits"] for c in candidates if c["committed"]]
  assert marked == [s["visits"] for s in line]


def test_priority_stands_beside_its_candidate():
  record = make_record(
    [step("a"), step("b", [step("c"), step("d")], visits=1)], committed=[1, 0]
  )
  priority = np.array([[-1.5, -np.inf], [0.25, np.nan]])
  assert {
    candidate["text"]: candidate["priority"]
    for candidate in export_made(record, priority)["candidates"]
  } == {"a": -1.5, "b": None, "c": 0.25, "d": None}


def test_only_finite_numbers_are_exported():
  record = make_record(
    [step("a", q=np.nan, prm=np.inf, log_prob=-np.inf, value=np.nan)],
    committed=[0],
  )
  record = dataclasses.replace(
    record, node_value=np.array([np.nan], np.float32)
  )
  exported = json.loads(to_json(export_made(record)))
  (candidate,) = exported["candidates"]
  for name in ("q", "prm", "log_prob", "value", "prior"):
    assert candidate[name] is None
  assert exported["value"] is None


class Elements(html.parser.HTMLParser):
  """Every element of a page, its attributes and the text right inside."""

  def __init__(self, page):
    super().__init__()
    self.found = []
    self._is_inside = False
    self.feed(page)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.found.append([tag, dict(attrs), ""])
    self._is_inside = True

  def handle_endtag(self, tag):
    self._is_inside = False

  def handle_data(self, data):
    if self._is_inside:
      self.found[-1][2] += data

  def contents(self, tag, **attrs):
    """Texts of the elements with a tag and these attributes."""
    return [
      text
      for found, has, text in self.found
      if found == tag and has.items() >= attrs.items()
    ]


PLAIN = Elements(to_page(export_made(make_record([step("a")], committed=[0]))))


@settings(max_examples=200)
@given(st.text())
@example("</script><script>alert(1)</script>")
@example("<!--<script>")
@example("]]>-->\u2028\u2029\x00\x1b\x85\ufeff\\u003c&lt;{{tree}}{{style}}")
def test_any_text_survives(text):
  text = text.replace("\n", "")
  record = make_record([step(text)], committed=[0], prompt=f"{text}\n")
  exported = export_made(record, reason=text)
  assert exported["candidates"][0]["text"] == exported["problem"] == text
  assert json.loads(to_json(exported)) == exported
  page = Elements(to_page(exported))
  (data,) = page.contents("script", type="application/json")
  assert json.loads(data) == exported
  # The data is text, whatever it says: there is no other element.
  assert [found[:2] for found in page.found] == (
    [found[:2] for found in PLAIN.found]
  )


def _policy_hash(content):
  digest = hashlib.sha256(content.encode()).digest()
  return f"'sha256-{base64.b64encode(digest).decode()}'"


def test_a_page_may_load_nothing_and_run_nothing_else():
  (policy,) = (
    attrs["content"]
    for _, attrs, _ in PLAIN.found
    if attrs.get("http-equiv") == "Content-Security-Policy"
  )
  data, script = PLAIN.contents("script")
  (style,) = PLAIN.contents("style")
  assert json.loads(data)["version"] == 1
  assert dict(rule.split(" ", 1) for rule in policy.split("; ")) == {
    "default-src": "'none'",
    "script-src": _policy_hash(script),
    "style-src": _policy_hash(style),
    "base-uri": "'none'",
    "form-action": "'none'",
  }
  assert not re.search(r"innerHTML|outerHTML|document\.write|eval", script)


@pytest.mark.parametrize(
  ("num_nodes", "width"), [(5000, 3), (5000, 1)], ids=["large", "deep"]
)
def test_a_tree_of_any_size(num_nodes, width):
  exported = export_made(large_record(num_nodes, width))
  candidates = exported["candidates"]
  assert len(candidates) == num_nodes * width
  assert sum(c["fate"] == "expanded" for c in candidates) == num_nodes - 1
  line = [i for i, c in enumerate(candidates) if c["committed"]]
  assert [candidates[i]["parent"] for i in line] == [None, *line[:-1]]
  assert json.loads(to_json(exported)) == exported
  (data,) = Elements(to_page(exported)).contents(
    "script", type="application/json"
  )
  assert json.loads(data) == exported


@pytest.mark.parametrize(
  ("path", "message"),
  [
    ("", "is a directory: name a file"),
    ("missing/tree.html", "missing is no directory; make it"),
    ("file/tree.html", "file is no directory; make it"),
    ("pipe", "is no regular file: name a file"),
  ],
)
def test_where_no_file_can_be_written(tmp_path, path, message):
  (tmp_path / "file").touch()
  os.mkfifo(tmp_path / "pipe")
  with pytest.raises(UserError, match=message):
    destination(tmp_path / path)


def test_a_folder_that_is_not_writable(tmp_path, monkeypatch):
  # Root may write where the mode says that it may not.
  monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
  with pytest.raises(UserError, match="is not writable; name another"):
    destination(tmp_path / "tree.html")


def test_links_are_followed(tmp_path):
  (tmp_path / "folder").mkdir()
  (tmp_path / "link").symlink_to(tmp_path / "folder" / "tree.html")
  assert destination(tmp_path / "link") == tmp_path / "folder" / "tree.html"


def test_a_bucket_is_left_to_its_writer():
  assert str(destination("gs://bucket/tree.html")) == "gs://bucket/tree.html"
