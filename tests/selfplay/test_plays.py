"""What a finished play says of itself, and what replay gets of it."""

import dataclasses

import numpy as np
import pytest

from qstar_jax.replay import ReplayReader, ReplayWriter
from qstar_jax.search.tree import NONE
from qstar_jax.selfplay import plays

MODES = ["value", "outcome"]


@pytest.fixture(scope="module")
def played(tiny):
  return {mode: tiny.play(mode, tiny.problems, tiny.seeds) for mode in MODES}


def make_record(tiny, played, mode, row):
  return tiny.record(
    mode, played[mode][row], actor_id=3, sequence=row, params_version=7
  )


@pytest.fixture(scope="module")
def records(tiny, played):
  return {
    mode: [
      make_record(tiny, played, mode, row) for row in range(tiny.num_trees)
    ]
    for mode in MODES
  }


@pytest.mark.parametrize("mode", MODES)
def test_record_is_a_tree(tiny, records, mode):
  for record in records[mode]:
    n, a = record.count.shape
    assert a == 8
    assert record.node_parent[0] == record.node_candidate[0] == -1
    assert (record.node_parent[1:] < np.arange(1, n)).all()
    assert (record.node_parent[1:] >= 0).all()
    edges = list(zip(record.node_parent, record.node_candidate, strict=True))
    assert len(set(edges)) == n
    for parent, candidate in edges[1:]:
      assert record.count[parent, candidate] > 0
      assert not record.ended[parent, candidate]
    # All samples are accounted for, merged or not.
    np.testing.assert_array_equal(record.count.sum(axis=1), a)
    assert record.length[record.count == 0].sum() == 0
    assert (record.length[record.count > 0] > 0).all()
    assert record.length.sum() == len(record.tokens)
    for shares in (record.node_value, record.value, record.prm, record.score):
      assert (shares >= 0).all() and (shares <= 1).all()
    is_candidate = record.count > 0
    q = record.q[is_candidate]
    assert (q >= 0).all() and (q <= 1).all()
    assert (record.log_prob[is_candidate] <= 0).all()
    np.testing.assert_allclose(record.log_prob, record.proposal_log_prob)
    assert (record.legal[is_candidate] >= 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_record_has_the_committed_line(tiny, played, records, mode):
  for row, record in enumerate(records[mode]):
    nodes, candidates = record.committed_node, record.committed_candidate
    assert nodes[0] == 0
    for i in range(1, len(nodes)):
      assert record.node_parent[nodes[i]] == nodes[i - 1]
      assert record.node_candidate[nodes[i]] == candidates[i - 1]
    # Its tokens, read from the flat array, are the texts of the result.
    end = np.cumsum(record.length).reshape(record.length.shape)
    texts = []
    for edge in zip(nodes, candidates, strict=True):
      tokens = record.tokens[end[edge] - record.length[edge] : end[edge]]
      texts.append(tiny.vocabulary.decode_step(tokens.tolist())[0])
    result = plays.result(tiny.domain, played[mode][row])
    assert [
      step.rstrip("\N{HORIZONTAL ELLIPSIS}") for step in result.steps
    ] == (texts)
    assert record.final_outcome == result.verdict.outcome
    assert record.final_score == result.verdict.score
    assert len(nodes) <= tiny.text.max_steps


@pytest.mark.parametrize("mode", MODES)
def test_result_sums_up_the_tree(tiny, played, records, mode):
  num_right = 0
  for row, record in enumerate(records[mode]):
    result = plays.result(tiny.domain, played[mode][row])
    assert result.expansions == len(record.node_parent)
    assert result.tokens == played[mode][row].tree.tokens_used
    verdict = tiny.domain.verify(tiny.problems[row], result.steps)
    assert result.verdict == verdict
    finished = (record.count > 0) & (record.outcome >= 0)
    scores = np.repeat(record.score[finished], record.count[finished])
    expected = scores.mean() if scores.size else verdict.score
    assert result.mean_score == pytest.approx(expected)
    assert result.any_score == max([verdict.score, *scores])
    assert result.any_score >= result.verdict.score
    num_right += result.any_score > 0
  assert 0 < num_right < tiny.num_trees


@pytest.mark.parametrize("mode", MODES)
def test_replay_keeps_the_record(records, tmp_path, same_record, mode):
  with ReplayWriter(tmp_path, 3, shard_trees=3) as writer:
    for record in records[mode]:
      writer.append(record)
    writer.flush()
  read = list(ReplayReader(tmp_path))
  assert len(read) == len(records[mode])
  for one, other in zip(records[mode], read, strict=True):
    assert same_record(one, other)


@pytest.fixture
def same_record():
  def is_same(one, other):
    for field in dataclasses.fields(one):
      left, right = getattr(one, field.name), getattr(other, field.name)
      if isinstance(left, np.ndarray):
        assert left.dtype == right.dtype, field.name
      np.testing.assert_array_equal(left, right, err_msg=field.name)
    return True

  return is_same


def test_holes_leave_no_trace_in_the_record(tiny, played, records):
  """Records name nodes by their rows, not by their places in the tree."""
  trees = [play.tree for play in played["value"]]
  has_hole = [
    (np.diff(np.flatnonzero(tree.depth != NONE)) > 1).any() for tree in trees
  ]
  assert any(has_hole)
  for tree, record in zip(trees, records["value"], strict=True):
    places = np.flatnonzero(tree.depth != NONE)
    np.testing.assert_array_equal(
      places[record.node_parent[1:]], tree.parent[places[1:]]
    )
