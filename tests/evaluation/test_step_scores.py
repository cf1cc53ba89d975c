"""Scores of given lines are those that the search has of the same steps."""

import dataclasses

import numpy as np
import pytest

from qstar_jax.evaluation.step_scores import score_lines
from qstar_jax.records import LabelledLine
from qstar_jax.search.tree import NONE
from qstar_jax.text import windows
from qstar_jax.text.steps import encode_line
from tests.selfplay import conftest as tiny
from tests.text.bounds import bounds


def _line(prompt, steps, is_finished):
  return LabelledLine(
    domain="countdown",
    problem_key=prompt,
    prompt=prompt,
    steps=tuple(steps),
    is_finished=is_finished,
    label=np.ones(len(steps), np.float32),
    kind="hard",
    source="checked",
    params_version=0,
    tokens=0,
    origin="",
  )


def _score(
  lines,
  batch_size=4,
  text=tiny.TEXT,
  labelled_only=False,
):
  return score_lines(
    *tiny.network(),
    tiny.VOCABULARY,
    lines,
    text=text,
    batch_size=batch_size,
    labelled_only=labelled_only,
  )


def _lines_of(played):
  """Lines of a tree that encode to the tokens that were sampled, with the V
  and PRM of their steps in the tree."""
  tree, vocabulary = played.tree, tiny.VOCABULARY
  for edge in map(tuple, np.argwhere(tree.sampled > 0)):
    path = [edge]
    while tree.parent[path[0][0]] != NONE:
      node = path[0][0]
      path.insert(0, (tree.parent[node], tree.candidate[node]))
    sampled = [tree.tokens[edge][: tree.length[edge]].tolist() for edge in path]
    texts = [vocabulary.decode_step(step)[0] for step in sampled]
    prompt, is_finished = played.problem.prompt, bool(tree.ended[edge])
    if not any(set("\n\N{REPLACEMENT CHARACTER}") & set(t) for t in texts):
      tokens = encode_line(vocabulary, prompt, texts, is_finished=is_finished)
      if tokens[1] == sampled:
        scores = [[field[e] for e in path] for field in (tree.value, tree.prm)]
        line = _line(prompt, texts, is_finished)
        yield line, float(tree.problem_value), *scores


def test_scores_are_those_of_the_search():
  plays = tiny.play("value", tiny.PROBLEMS, range(8))
  searched = [found for played in plays for found in _lines_of(played)]
  lines, problem_values, values, prms = zip(*searched, strict=True)
  assert len(lines) > 100
  assert {len(line.steps) for line in lines} == {1, 2, 3}
  scored = list(_score(iter(lines)))
  assert tuple(line for line, _ in scored) == lines
  for i, (_, scores) in enumerate(scored):
    assert scores.prm.dtype == scores.value.dtype == np.float32
    assert scores.problem_value == pytest.approx(problem_values[i], abs=1e-5)
    np.testing.assert_allclose(scores.value, values[i], atol=1e-5)
    np.testing.assert_allclose(scores.prm, prms[i], atol=1e-5)
  # The heads say something, and not the same.
  assert np.ptp(np.concatenate(prms)) > 0.1
  assert not np.allclose(np.concatenate(prms), np.concatenate(values))


def test_a_line_scores_alike_in_any_batch():
  plays = tiny.play("value", tiny.PROBLEMS, range(8))
  lines = [line for played in plays for line, *_ in _lines_of(played)][:9]
  alone = [next(_score([line], batch_size=1))[1] for line in lines]
  together = [scores for _, scores in _score(lines, batch_size=5)]
  for a, b in zip(alone, together, strict=True):
    np.testing.assert_allclose(a.prm, b.prm, atol=1e-6)
    np.testing.assert_allclose(a.value, b.value, atol=1e-6)


@pytest.fixture
def note(monkeypatch):
  """The note of a window, of tokens that the vocabulary has."""
  monkeypatch.setattr(windows, "_NOTE", "->")
  return "->"


def test_a_line_that_is_too_long_is_read_in_windows(note):
  step = "1 2 3 1 2 3"
  prompt, (step_tokens,) = encode_line(
    tiny.VOCABULARY, "1 1 1 -> 3\n", [step], is_finished=False
  )
  note_length = len(tiny.VOCABULARY.encode_step(note, False))
  assert note_length < len(step_tokens)
  text = bounds(len(prompt), 2, len(step_tokens) + note_length)
  whole, one = (
    _line("1 1 1 -> 3\n", [step] * count, False) for count in (5, 1)
  )
  (_, of_whole), (_, of_one) = _score([whole, one], text=text)
  # Steps 0 and 1; then, after a note, one of context and one more.
  texts = [step, step], [note, step, step]
  lines = [_line(whole.prompt, steps, False) for steps in texts]
  wide = bounds(len(prompt), 3, 20)
  first, later = (found for _, found in _score(lines, text=wide))
  for name in ("prm", "value"):
    expected = [*getattr(first, name), *[getattr(later, name)[-1]] * 3]
    np.testing.assert_allclose(getattr(of_whole, name), expected, atol=1e-6)
    assert len(set(expected)) == 3
  np.testing.assert_allclose(of_one.prm, first.prm[:1], atol=1e-6)
  np.testing.assert_allclose(of_whole.problem_value, of_one.problem_value)
  # A window in which no step has a label need not be read.
  label = np.float32([-1, -1, -1, 1, -1])
  ((_, found),) = _score(
    [dataclasses.replace(whole, label=label)],
    text=text,
    labelled_only=True,
  )
  np.testing.assert_array_equal(np.isnan(found.prm), label < 0)
  np.testing.assert_allclose(found.prm[3], of_whole.prm[3], atol=1e-6)


@pytest.mark.usefixtures("note")
def test_a_step_that_does_not_fit_has_no_score():
  steps = ["1 2 3 1 2 3", "2"]
  line = _line("1 1 1 -> 3\n", steps, False)
  prompt, (_, short) = encode_line(
    tiny.VOCABULARY, line.prompt, line.steps, is_finished=False
  )
  text = bounds(len(prompt), 1, len(short))
  ((_, found),) = _score([line], text=text)
  assert np.isnan(found.prm).tolist() == [True, False]
  ((_, found),) = _score([line], text=bounds(1, 1, 1))
  assert found is None


def test_the_end_of_a_line_is_part_of_it():
  line = _line("1 1 -> 2\n", ["1 + 1 = 2 (left: 2)"], True)
  goes_on = dataclasses.replace(line, is_finished=False)
  (_, ended), (_, open_) = _score([line, goes_on])
  assert ended.problem_value == open_.problem_value
  assert ended.prm[0] != open_.prm[0]
