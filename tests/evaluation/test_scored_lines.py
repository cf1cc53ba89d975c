"""Scored lines of play against the oracle, and of states against roll-outs."""

import dataclasses

import numpy as np
import pytest

from qstar_jax.config import MeshConfig
from qstar_jax.distributed.mesh import make_mesh
from qstar_jax.evaluation.scored_lines import (
  State,
  labelled_lines,
  open_states,
  oracle_lines,
  value_lines,
)
from qstar_jax.evaluation.step_scores import LineScores
from qstar_jax.records import LabelledLine
from qstar_jax.search import searchers
from qstar_jax.search.tree import NONE
from qstar_jax.selfplay.player import Job, Player
from tests.selfplay import conftest as tiny


@pytest.fixture(scope="module")
def plays():
  search = dataclasses.replace(tiny.SEARCH, num_lines=5, beam_width=2)
  player = Player(
    tiny.network()[0],
    tiny.DOMAIN,
    tiny.VOCABULARY,
    model=tiny.MODEL,
    text=tiny.TEXT,
    search=searchers.for_evaluation(search, "best_of_n"),
    num_trees=tiny.NUM_TREES,
    mesh=make_mesh(MeshConfig()),
  )
  jobs = [Job(problem, i) for i, problem in enumerate(tiny.PROBLEMS)]
  return list(player.play(tiny.network()[1], jobs))


def _reachable(problem, steps):
  """Whether legal steps lead on from `steps` to a solution, by trying all."""
  for i, step in enumerate(steps):
    if not tiny.DOMAIN.check_step(problem, steps[:i], step).is_legal:
      return False
  if tiny.DOMAIN.verify(problem, steps).score == 1:
    return True
  after = tiny.DOMAIN.legal_steps(problem, steps)
  return any(_reachable(problem, (*steps, step)) for step in after)


def test_every_sampled_line_is_there_with_its_scores(plays):
  labels = []
  for played in plays:
    tree = played.tree
    lines = list(oracle_lines(tiny.DOMAIN, played))
    # A node has one candidate, and a line one node without one below.
    assert len(lines) == 5
    assert sum(len(line.score) for line in lines) == tree.sampled.sum()
    found = np.sort(np.concatenate([line.score for line in lines]))
    np.testing.assert_array_equal(found, np.sort(tree.prm[tree.sampled > 0]))
    for line in lines:
      assert line.problem_key == played.problem.key
      np.testing.assert_array_equal(line.depth, 1 + np.arange(len(line.score)))
      labels += line.label.tolist()
  assert {0.0, 1.0} == set(labels)


def test_scores_and_labels_follow_the_line(plays):
  for played in plays:
    tree, expected = played.tree, []
    for node in range(tree.depth.size):
      if tree.depth[node] == NONE or tree.child[node, 0] != NONE:
        continue
      path, at = [], node
      while at != NONE:
        path.append(at)
        at = tree.parent[at]
      path.reverse()
      texts = tuple(
        tiny.VOCABULARY.decode_step(tree.tokens[n, 0][: tree.length[n, 0]])[0]
        for n in path
      )
      labels = [
        _reachable(played.problem, texts[: i + 1])
        and tiny.VOCABULARY.ends_step[
          tree.tokens[path[i], 0, tree.length[path[i], 0] - 1]
        ]
        for i in range(len(path))
      ]
      expected.append(([tree.prm[n, 0] for n in path], labels))
    found = list(oracle_lines(tiny.DOMAIN, played))
    assert len(found) == len(expected)
    for line, (prm, labels) in zip(found, expected, strict=True):
      np.testing.assert_array_equal(line.score, prm)
      np.testing.assert_array_equal(line.label, labels)


def test_open_states_are_those_that_nodes_were_made_of(plays):
  """In a tree of samples there is a node for each, with its value."""
  for problem, played in zip(tiny.PROBLEMS, plays, strict=True):
    tree = played.tree
    root, *others = open_states(played)
    assert root == (problem, (), tree.problem_value)
    nodes = np.flatnonzero((tree.depth != NONE) & (tree.parent != NONE))
    found = sorted((len(state.steps), state.value) for state in others)
    expected = zip(tree.depth[nodes], tree.raw_value[nodes], strict=True)
    assert found == sorted(expected)
    assert all(state.problem == problem for state in others)


def test_a_state_is_played_from_once():
  problem, other = tiny.problem("1 1 1 -> 3"), tiny.problem("1 1 -> 2")
  step = tiny.DOMAIN.legal_steps(problem, ())[0]
  states = [
    State(problem, (), 0.5),
    State(problem, (step,), 0.75),
    State(other, (), 0.25),
    State(problem, (step,), 0.75),
  ]
  asked = []

  def success_rates(states):
    asked.append([(state.problem.key, state.steps) for state in states])
    return np.array([0.1, 0.2, 0.3])

  lines = value_lines(states, success_rates)
  assert asked == [[(problem.key, ()), (problem.key, (step,)), (other.key, ())]]
  assert [(*line.depth, *line.score, *line.label) for line in lines] == [
    *((0, 0.5, 0.1), (1, 0.75, 0.2), (0, 0.25, 0.3)),
  ]


def test_stored_labels_are_taken_as_they_are():
  line = LabelledLine(
    domain="circular",
    problem_key="key",
    prompt="key\n",
    steps=("a", "b", "c"),
    is_finished=False,
    label=np.array([1, -1, 0], np.float32),
    kind="hard",
    source="human",
    params_version=-1,
    tokens=0,
    origin="",
  )
  scores = LineScores(0.5, np.zeros(3), np.array([0.9, 0.8, 0.7]))
  (found,) = labelled_lines([(line, scores)])
  assert (found.problem_key, found.group) == ("key", "circular")
  np.testing.assert_array_equal(found.score, [0.9, 0.8, 0.7])
  np.testing.assert_array_equal(found.label, [1, -1, 0])
  np.testing.assert_array_equal(found.depth, [1, 2, 3])
