"""The page of a tree, opened in a headless Chromium."""

import time

import numpy as np
import pytest

from qstar_jax.evaluation.tree_export import to_page
from qstar_jax.records import Outcome
from tests.evaluation import browser as browser_lib
from tests.evaluation.made_trees import (
  export_made,
  large_record,
  make_record,
  step,
)

# Seconds that a person may have to wait.
PATIENCE = 5.0

EVIL = "<img src=x onerror=alert(1)></script><script>alert(2)</script>&lt;"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
  """A browser window."""
  if missing := browser_lib.what_is_missing():
    pytest.skip(missing)
  with browser_lib.open_browser(tmp_path_factory.mktemp("profile")) as opened:
    yield opened


@pytest.fixture
def page(browser, tmp_path):
  """Opens the page of an export; it may neither complain nor load anything."""
  path = tmp_path / "tree.html"
  opened = []
  browser.forget_log()

  def open_page(exported):
    path.write_text(to_page(exported), encoding="utf-8")
    opened.append(path.as_uri())
    browser.open(opened[-1])
    return browser

  yield open_page
  assert browser.logged("browser") == []
  assert browser.requests() == opened


def text_of(browser, selector):
  return browser.run(
    "return document.querySelector(arguments[0])?.textContent", selector
  )


def rows(browser):
  """(level, text, why it ends) of the rows in view, first to last."""
  found = browser.run(
    "return [...document.querySelectorAll('#body .row')].map((row) => ["
    "  Number(row.getAttribute('aria-level')),"
    "  row.querySelector('.text').textContent,"
    "  row.querySelector('.fate').textContent])"
  )
  return [tuple(row) for row in found]


def texts(browser):
  return [text for _, text, _ in rows(browser)]


def num_rows(browser):
  """Rows that can be scrolled to."""
  count = browser.run(
    "return document.getElementById('grid').getAttribute('aria-rowcount')"
  )
  return int(count) - 1


def selected(browser):
  return text_of(browser, "#body [aria-selected=true] .text")


def type_query(browser, query):
  browser.click("#query")
  browser.press(query)


def a_tree():
  """Three levels; the committed line is b, d."""
  return make_record(
    [
      step(
        "b",
        [step("c", ended=True, outcome=1), step("d", ended=True, q=0.9)],
        visits=3,
        prm=0.25,
      ),
      step("a", [step("e", [step("x 17")]), step("f 17", legal=0)], visits=2),
      step("g", is_cut=True),
    ],
    committed=[0, 1],
    prompt="1 2 3 -> 6\n",
    final_outcome=0,
    final_score=1.0,
  )


def test_what_a_page_opens_with(page):
  browser = page(
    export_made(a_tree(), outcome=Outcome.CORRECT, score=1.0, reason="")
  )
  assert text_of(browser, "title") == "1 2 3 -> 6 · astar"
  assert text_of(browser, "h1") == "1 2 3 -> 6"
  assert text_of(browser, "#outcome") == "solved"
  assert text_of(browser, "#facts").startswith(
    "searcherastartokens1,234expansions4candidates8"
  )
  # The first level and the committed line, no more.
  assert rows(browser) == [
    (1, "b", ""),
    (2, "d", "ended correct"),
    (2, "c", "ended wrong"),
    (1, "a", ""),
    (1, "g", "truncated"),
  ]
  assert text_of(browser, "#status") == "5 of 8 steps shown"
  assert browser.run(
    "return [...document.querySelectorAll('.row.committed .text')]"
    ".map((text) => text.textContent)"
  ) == ["b", "d"]
  assert text_of(browser, "#step-0").endswith("30.500.330.500.25")
  assert selected(browser) == "d"
  assert text_of(browser, "#details h2") == "Step 2 ended correct ★ committed"
  assert text_of(browser, "#details ol") == "bd"


def test_a_failure_says_why(page):
  browser = page(export_made(a_tree(), reason="step 2: 3 + 3 is 6", score=0.25))
  assert text_of(browser, "#verdict") == (
    "not solved, score 0.25 step 2: 3 + 3 is 6"
  )


def test_a_priority_has_a_column_where_there_is_one(page):
  record = a_tree()
  browser = page(export_made(record))
  assert text_of(browser, "#head") == "StepWhy it endsNQPriorVR"
  priority = np.full(record.count.shape, np.nan)
  priority[0, 1] = -1.25
  browser = page(export_made(record, priority))
  assert text_of(browser, "#head").endswith("VRf")
  last = "document.querySelector(arguments[0]).lastChild.textContent"
  assert browser.run(f"return {last}", "#step-1") == "-1.25"
  assert browser.run(f"return {last}", "#step-0") == "\u2013"


def test_branches_open_and_close(page):
  browser = page(export_made(a_tree()))
  browser.click("#step-0 .twisty")
  assert texts(browser) == ["b", "a", "g"]
  assert selected(browser) == "b"  # What was selected is not shown any more.
  browser.click("#step-1 .twisty")
  assert texts(browser) == ["b", "a", "e", "f 17", "g"]
  browser.click("#step-2 .twisty")  # Has nothing below.
  browser.click("#expand-all")
  assert texts(browser) == ["b", "d", "c", "a", "e", "x 17", "f 17", "g"]
  browser.click("#collapse-all")
  assert texts(browser) == ["b", "a", "g"]
  browser.click("#show-committed")
  assert texts(browser) == ["b", "d", "c", "a", "g"]
  assert selected(browser) == "d"


def test_a_step_that_is_clicked_is_told_of(page):
  browser = page(export_made(a_tree()))
  browser.click("#expand-all")
  browser.click("#body .row:nth-child(6) .text")
  assert selected(browser) == "x 17"
  assert text_of(browser, "#details h2") == "Step 3 not expanded"
  assert text_of(browser, "#details ol") == "aex 17"
  details = text_of(browser, "#details dl")
  assert "Prior1.0000" in details and "log p-1.0000" in details


def test_the_keyboard_alone_is_enough(page):
  browser = page(export_made(a_tree()))
  browser.press("/")
  for _ in range(8):  # Past the tools to the tree.
    browser.press("Tab")
    if browser.run("return document.activeElement.id") == "grid":
      break
  browser.press("Home")
  assert selected(browser) == "b"
  browser.press("Left")
  assert texts(browser) == ["b", "a", "g"]
  browser.press("Down", "Right", "Right")
  assert selected(browser) == "e"
  browser.press("Enter")
  assert texts(browser) == ["b", "a", "e", "x 17", "f 17", "g"]
  browser.press(" ")
  assert texts(browser) == ["b", "a", "e", "f 17", "g"]
  browser.press("End")
  assert selected(browser) == "g"
  browser.press("Up", "Left")
  assert selected(browser) == "a"
  active = "document.getElementById('grid').getAttribute"
  assert browser.run(f"return {active}('aria-activedescendant')") == "step-1"


def test_a_search_shows_where_its_matches_stand(page):
  browser = page(export_made(a_tree()))
  browser.press("/")
  browser.press("17")
  assert rows(browser) == [
    (1, "a", ""),
    (2, "e", ""),
    (3, "x 17", "not expanded"),
    (2, "f 17", "illegal"),
  ]
  assert text_of(browser, "#status") == "2 of 8 steps match"
  assert text_of(browser, "#step-1 mark") is None
  assert text_of(browser, "#body .row:nth-child(3) mark") == "17"
  assert browser.run(
    "return document.querySelectorAll('.row.aside').length"
  ) == len(["a", "e"])
  assert selected(browser) in ("x 17", "f 17")
  browser.click("#body .row:nth-child(4) .text")
  browser.run(
    "const query = document.getElementById('query'); query.value = '';"
    "query.dispatchEvent(new Event('input', {bubbles: true}))"
  )
  # As it was before, and what was selected.
  assert texts(browser) == ["b", "d", "c", "a", "e", "f 17", "g"]
  assert selected(browser) == "f 17"


@pytest.mark.parametrize(
  ("boxes", "shown", "num_matches"),
  [
    (["finished"], ["b", "d", "c"], 2),
    (["correct"], ["b", "d"], 1),
    (["expanded"], ["b", "a", "e"], 3),
    (["expanded", "finished"], [], 0),
  ],
)
def test_boxes_filter(page, boxes, shown, num_matches):
  browser = page(export_made(a_tree()))
  for box in boxes:
    browser.click(f"#only-{box}")
  assert texts(browser) == shown
  assert text_of(browser, "#status") == f"{num_matches} of 8 steps match"
  for box in boxes:
    browser.click(f"#only-{box}")
  assert text_of(browser, "#status").endswith("of 8 steps shown")


def test_a_search_takes_signs_as_they_are(page):
  record = make_record(
    [step("2 * (3 + 4) [x]"), step("2 3 4 É")], committed=[0]
  )
  browser = page(export_made(record))
  type_query(browser, "* (3 + 4) [")
  assert texts(browser) == ["2 * (3 + 4) [x]"]
  assert text_of(browser, "mark") == "* (3 + 4) ["
  browser = page(export_made(record))
  type_query(browser, "é")
  assert texts(browser) == ["2 3 4 É"]


def test_text_of_a_model_is_text(page):
  record = make_record([step(EVIL)], committed=[0], prompt=f"{EVIL}\n")
  browser = page(export_made(record, reason=EVIL))
  # An alert would make these fail.
  assert texts(browser) == [EVIL]
  for selector in ("title", "h1", "#answer", "#details ol"):
    assert EVIL in text_of(browser, selector)
  type_query(browser, "<img")
  assert text_of(browser, "mark") == "<img"
  assert browser.run(
    "return document.querySelectorAll('img, script').length"
  ) == len(["data", "script"])


def test_what_cannot_be_seen_is_shown_as_an_escape(page):
  record = make_record([step("a\u202eb\x1b\u2028\xa0 c\ue000é三🎲")], [0])
  browser = page(export_made(record))
  assert texts(browser) == [r"a\u{202e}b\u{1b}\u{2028}\u{a0} c\u{e000}é三🎲"]


def test_a_page_can_load_nothing(browser, tmp_path):
  path = tmp_path / "tree.html"
  path.write_text(to_page(export_made(a_tree())), encoding="utf-8")
  browser.open(path.as_uri())
  refused = browser.wait_for(
    "const done = arguments[0], refused = new Set();"
    "addEventListener('securitypolicyviolation', (event) => {"
    "  refused.add(event.effectiveDirective);"
    "  if (refused.size === 4) done([...refused].sort()); });"
    "fetch('http://localhost:9/').catch(() => {});"
    "new Image().src = 'http://localhost:9/';"
    "for (const [tag, name] of [['iframe', 'src'], ['script', 'src']]) {"
    "  const made = document.createElement(tag);"
    "  made[name] = 'http://localhost:9/'; document.body.append(made); }"
  )
  assert refused == ["connect-src", "frame-src", "img-src", "script-src-elem"]
  assert browser.requests().count(path.as_uri()) == 1


def assert_fast(work, *args):
  start = time.perf_counter()
  result = work(*args)
  assert time.perf_counter() - start < PATIENCE
  return result


def test_a_large_tree(page):
  num_nodes, width = 5000, 4
  num_candidates = num_nodes * width
  browser = assert_fast(page, export_made(large_record(num_nodes, width)))
  depth = len(
    browser.run("return [...document.querySelectorAll('.committed')]")
  )
  assert num_rows(browser) == width * depth
  assert_fast(browser.click, "#expand-all")
  assert num_rows(browser) == num_candidates
  assert len(rows(browser)) < 100
  assert text_of(browser, "#status") == "20,000 of 20,000 steps shown"
  browser.run("document.getElementById('grid').focus()")
  assert_fast(browser.press, "End")
  # The least visited of the least visited, and so on: nodes 1, 5, 21, ...
  assert rows(browser)[-1] == (7, "1365.0", "not expanded")
  assert_fast(type_query, browser, "4321.")
  assert sorted(t for t in texts(browser) if t.startswith("4321.")) == (
    ["4321.0", "4321.1", "4321.2", "4321.3"]
  )
  browser.click("#show-committed")
  assert_fast(browser.click, "#collapse-all")
  assert texts(browser) == ["0.3", "0.2", "0.1", "0.0"]


def test_a_deep_tree(page):
  browser = assert_fast(page, export_made(large_record(5000, 1)))
  assert num_rows(browser) == 5000
  assert selected(browser) == "4999.0"
  assert rows(browser)[-1] == (5000, "4999.0", "ended wrong")
  assert text_of(browser, "#details ol").startswith("4950.04951.0")
  browser.run("document.getElementById('grid').focus()")
  browser.press("Home")
  assert rows(browser)[0] == (1, "0.0", "")


def test_light_and_dark(page):
  browser = page(export_made(a_tree()))
  papers = set()
  for scheme in ("light", "dark"):
    browser.command(
      "Emulation.setEmulatedMedia",
      features=[{"name": "prefers-color-scheme", "value": scheme}],
    )
    papers.add(
      browser.run("return getComputedStyle(document.body).backgroundColor")
    )
  assert papers == {"rgb(255, 255, 255)", "rgb(20, 22, 26)"}


def test_a_tree_without_steps(page):
  exported = export_made(a_tree())
  browser = page(exported | {"candidates": []})
  assert num_rows(browser) == 0
  browser.run("document.getElementById('grid').focus()")
  browser.press("Down", "Enter", "Right")
  browser.click("#expand-all")
  browser.click("#show-committed")
  assert text_of(browser, "#status") == "0 of 0 steps shown"
