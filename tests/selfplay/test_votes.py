"""Votes over the finished lines of a tree."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qstar_jax.search import tree as tree_lib
from qstar_jax.search.tree import NONE
from qstar_jax.selfplay import votes

A = 6
KINDS = ["majority", "weighted_majority", "shortest"]


def tree_of(lines):
  """A tree whose candidates are lines: (steps, samples, score), two nodes.

  Lines of one step stand at the problem, the others at the node after them.
  """
  tree = tree_lib.new_tree(
    num_nodes=2,
    num_candidates=A,
    max_step_tokens=2,
    problem_value_B=jnp.zeros(1),
    prompt_length_B=jnp.zeros(1, jnp.int32),
  )
  tree = jax.tree.map(lambda x: np.array(x[0]), tree)
  tree.depth[:] = 0, 1
  tree.parent[1], tree.candidate[1] = 0, A - 1
  for a, (steps, samples, score) in enumerate(lines):
    edge = (steps - 1, a)
    tree.count[edge] = tree.sampled[edge] = samples
    tree.is_terminal[edge] = True
    tree.line_score[edge] = score
  return tree.replace(root_parent=np.int32(0), root_candidate=np.int32(A - 1))


def elected(lines, answers, kind):
  """Index of the line that is committed."""
  tree = votes.elect(tree_of(lines), lambda index: answers[index % A], kind)
  assert tree.root_node == NONE
  assert tree.root_depth == 1 + tree.root_parent
  return int(tree.root_candidate)


# Two samples of x, one of them good; three of y, all bad; one z, the best.
LINES = [(1, 1, 0.6), (2, 1, 0.5), (2, 2, 0.1), (1, 1, 0.05), (1, 1, 0.9)]
ANSWERS = ["x", "x", "y", "y", "z", ""]


@pytest.mark.parametrize(
  ("kind", "expected"),
  # y has 3 samples; x has 1.1 of score, and its best line is 0.
  [("majority", 2), ("weighted_majority", 0), ("shortest", 3)],
)
def test_by_hand(kind, expected):
  assert elected(LINES, ANSWERS, kind) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_lines_without_an_answer_or_that_failed_have_no_vote(kind):
  assert elected(LINES, ["", "", "", "", "z", ""], kind) == 4
  tree = tree_of(LINES)
  tree.is_failed[1, 2] = True
  chosen = votes.elect(tree, lambda index: ANSWERS[index % A], kind)
  assert (int(chosen.root_parent), int(chosen.root_candidate)) == (0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_votes(kind):
  tree = tree_of(LINES)
  assert votes.elect(tree, lambda index: "", kind) is tree


@given(
  lines=st.lists(
    st.tuples(
      st.integers(1, 2), st.integers(1, 4), st.sampled_from([0.1, 0.3, 0.7])
    ),
    min_size=1,
    max_size=A - 1,
  ),
  answers=st.lists(st.sampled_from("xyz"), min_size=A, max_size=A),
)
def test_the_majority_is_that_of_a_count(lines, answers):
  counts = collections.Counter()
  for answer, (_, samples, _) in zip(answers, lines, strict=False):
    counts[answer] += samples
  chosen = answers[elected(lines, answers, "majority")]
  assert counts[chosen] == max(counts.values())
  # The best line of the answer, and the shortest of it.
  own = [line for line, a in zip(lines, answers, strict=False) if a == chosen]
  best = lines[elected(lines, answers, "majority")]
  assert best[2] == max(score for _, _, score in own)
  short = lines[elected(lines, answers, "shortest")]
  assert short[0] == min(steps for steps, _, _ in own)
