"""A search of today is the search of yesterday."""

import json

import numpy as np

from tools import regenerate_goldens

ADVICE = (
  "The search does not make the tree it used to make. If that is meant, run "
  "`python tools/regenerate_goldens.py` and look at what the diff says."
)


def test_search_makes_the_golden_tree():
  text = regenerate_goldens.SEARCH_TREE.read_text(encoding="utf-8")
  assert len(text) < 20_000
  golden = json.loads(text)
  tree = regenerate_goldens.search_tree()
  assert tree["committed"] == golden["committed"], ADVICE
  assert len(tree["nodes"]) == len(golden["nodes"]) > 12, ADVICE
  for found, expected in zip(tree["nodes"], golden["nodes"], strict=True):
    np.testing.assert_allclose(
      found.pop("q"), expected.pop("q"), atol=1e-4, err_msg=ADVICE
    )
    assert found == expected, ADVICE


def test_the_file_is_what_the_tool_writes():
  text = regenerate_goldens.SEARCH_TREE.read_text(encoding="utf-8")
  assert regenerate_goldens.write(json.loads(text)) == text
