"""Which lines of trees and samples are to be labelled."""

import dataclasses

import numpy as np
import pytest

from qstar_jax.config import MeshConfig
from qstar_jax.distributed.mesh import make_mesh
from qstar_jax.domains.countdown import Countdown
from qstar_jax.errors import UserError
from qstar_jax.labels.step_tree import read_steps
from qstar_jax.labels.tree_lines import make_sample_fn, tree_lines
from tests.selfplay import conftest as tiny

PROMPT = "2 3 5 -> 10\n"
SUM, PRODUCT = "2 + 3 = 5 (left: 5 5)", "2 * 3 = 6 (left: 5 6)"


@pytest.fixture
def tree(make_tree):
  return make_tree(
    PROMPT,
    [
      (None, [(PRODUCT + "\n", {}), (SUM + "\n", {}), ("2 + 5", {})]),
      ((0, 1), [("5 + 5 = 10$", {}), ("5 - 5 = 0\n", {}), ("5 + 5 = 10$", {})]),
      ((1, 1), [("0\n", {}), ("1\n", {}), ("cut", {})]),
    ],
    committed_node=np.array([0, 1, 2], np.int32),
    committed_candidate=np.array([1, 1, 0], np.int32),
  )


def lines_of(tree, vocabulary, which, number=0):
  return list(
    tree_lines(tree, vocabulary, Countdown(), which=which, number=number)
  )


def shown(lines):
  return [(line.steps, line.is_finished, line.begin) for line in lines]


def test_all_lines_are_to_label_every_step_once(tree, vocabulary):
  assert shown(lines_of(tree, vocabulary, "all")) == [
    ((PRODUCT,), False, 0),
    ((SUM, "5 + 5 = 10"), True, 0),
    ((SUM, "5 - 5 = 0", "0"), False, 1),
    ((SUM, "5 - 5 = 0", "1"), False, 2),
  ]


def test_the_committed_line(tree, vocabulary):
  (line,) = lines_of(tree, vocabulary, "committed")
  assert shown([line]) == [((SUM, "5 - 5 = 0", "0"), False, 0)]
  assert line.problem == Countdown().parse(PROMPT)
  assert line.origin == "actor 3, tree 14"
  cut = np.array([1, 1, 2], np.int32)
  (line,) = lines_of(
    dataclasses.replace(tree, committed_candidate=cut), vocabulary, "committed"
  )
  assert shown([line]) == [((SUM, "5 - 5 = 0"), False, 0)]
  one = np.array([0], np.int32)
  nothing = dataclasses.replace(
    tree, committed_node=one, committed_candidate=one + 2
  )
  assert lines_of(nothing, vocabulary, "committed") == []


def test_no_two_lines_share_an_index(tree, vocabulary):
  found = [
    line.index
    for number in range(3)
    for line in lines_of(tree, vocabulary, "all", number)
  ]
  assert len(set(found)) == 12
  assert found == sorted(found)


def test_another_domain_is_refused(tree, vocabulary):
  tree = dataclasses.replace(tree, domain="arithmetic")
  with pytest.raises(UserError, match="give the run that made the tree"):
    lines_of(tree, vocabulary, "all")


@pytest.fixture(scope="module")
def sample_fn():
  return make_sample_fn(
    *(*tiny.network(), tiny.DOMAIN, tiny.VOCABULARY),
    model=tiny.MODEL,
    text=tiny.TEXT,
    search=dataclasses.replace(tiny.SEARCH, num_lines=6, beam_width=3),
    num_trees=tiny.NUM_TREES,
    mesh=make_mesh(MeshConfig()),
    seed=5,
    params_version=9,
  )


def test_samples_are_the_same_whatever_is_sampled_beside(sample_fn):
  together = list(sample_fn(tiny.PROBLEMS, 0))
  assert [tree.prompt for tree in together] == [
    problem.prompt for problem in tiny.PROBLEMS
  ]
  apart = list(sample_fn(tiny.PROBLEMS[5:], 5))
  for one, other in zip(together[5:], apart, strict=True):
    assert (one.sequence, one.params_version) == (other.sequence, 9)
    np.testing.assert_array_equal(one.tokens, other.tokens)
  # The same problem again is played anew.
  (again,) = sample_fn([tiny.PROBLEMS[5]], 6)
  assert not np.array_equal(again.tokens, apart[0].tokens)


def test_samples_are_as_many_lines_as_asked_for(sample_fn):
  for tree in sample_fn(tiny.PROBLEMS[:3], 0):
    assert tree.length.shape[1] == 1
    has_child = np.isin(np.arange(len(tree.length)), tree.node_parent)
    assert (~has_child).sum() == 6
    lines = list(
      tree_lines(tree, tiny.VOCABULARY, tiny.DOMAIN, which="all", number=0)
    )
    num_labels = sum(len(line.steps) - line.begin for line in lines)
    assert num_labels == len(read_steps(tree, tiny.VOCABULARY)) > 0
