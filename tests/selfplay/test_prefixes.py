"""Plays that go on from the middle of a line."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from flax import nnx

from qstar_jax.errors import UserError
from qstar_jax.search.expand import PROBLEM
from qstar_jax.search.tree import NONE, line_index
from qstar_jax.selfplay import plays
from qstar_jax.selfplay.player import Job, text_for_prefixes
from qstar_jax.text.steps import encode_line

MODES = ["value", "outcome", "token_beam"]


def go_on(tiny, mode, prefixes, seed=0):
  """Plays from (problem, steps), in order."""
  player = tiny.player(mode, 1, text_for_prefixes(tiny.text))
  jobs = [
    Job(problem, seed + i, steps=steps)
    for i, (problem, steps) in enumerate(prefixes)
  ]
  return list(player.play(tiny.network()[1], jobs))


def encode(tiny, problem, steps):
  prompt, steps = encode_line(
    tiny.vocabulary, problem.prompt, steps, is_finished=False
  )
  return [*prompt, *itertools.chain(*steps)]


def tokens_to(tree, edge):
  """Tokens of the tree's own steps up to a candidate."""
  tokens = []
  while edge[0] != NONE:
    tokens = [*tree.tokens[edge][: tree.length[edge]].tolist(), *tokens]
    edge = int(tree.parent[edge[0]]), int(tree.candidate[edge[0]])
  return tokens


@pytest.fixture(scope="module")
def prefixes(tiny):
  """(problem, steps) and V after them, as trees from the problem have it."""
  found = {}
  for played in tiny.play("value", tiny.problems, tiny.seeds):
    tree, problem = played.tree, played.problem
    for edge in map(tuple, np.argwhere((tree.count > 0) & ~tree.is_terminal)):
      steps = played.judge.line(int(line_index(tree, *edge)))
      line = [*encode(tiny, problem, ()), *tokens_to(tree, edge)]
      is_text = "\N{REPLACEMENT CHARACTER}" not in "".join(steps)
      # A network may spell a step as no one else does.
      if is_text and encode(tiny, problem, steps) == line:
        found[problem.prompt, steps] = problem, steps, tree.value[edge]
  assert {len(steps) for _, steps in found} == {1, 2}
  return list(found.values())


def test_a_line_is_worth_the_same_wherever_its_tree_began(tiny, prefixes):
  """Scores are those of the tree from the problem, and of a full pass."""
  graphdef, params = tiny.network()
  text = tiny.text

  @jax.jit
  def full(tokens_BT):
    model = nnx.merge(graphdef, params)
    hidden = model.forward(tokens_BT)
    log_probs = jax.nn.log_softmax(model.logits(hidden))
    return log_probs, jax.nn.sigmoid(model.heads(hidden).value_logit)

  pairs = [(problem, steps) for problem, steps, _ in prefixes]
  for played, (problem, steps, value) in zip(
    go_on(tiny, "value", pairs), prefixes, strict=True
  ):
    tree = played.tree
    np.testing.assert_allclose(tree.problem_value, value, atol=1e-5)
    before = encode(tiny, problem, steps)
    edges = [*map(tuple, np.argwhere(tree.sampled > 0))]
    lines = [[*before, *tokens_to(tree, edge)] for edge in edges]
    rows = np.zeros((tree.count.size, text.max_line_tokens), np.int32)
    for row, line in zip(rows, lines, strict=False):
      row[: len(line)] = line
    log_probs, values = map(np.asarray, full(rows))
    for i, (edge, line) in enumerate(zip(edges, lines, strict=True)):
      at = np.arange(len(line) - tree.length[edge], len(line))
      log_prob = log_probs[i, at - 1, rows[i, at]].sum()
      np.testing.assert_allclose(tree.log_prob[edge], log_prob, atol=1e-4)
      np.testing.assert_allclose(tree.value[edge], values[i, at[-1]], atol=1e-4)
    spent = tree.tokens_used - len(before) - tree.length.sum()
    rerun = sum(
      tree.length[tree.parent[node], tree.candidate[node]]
      for node in np.flatnonzero(tree.parent != NONE)
    )
    assert spent == rerun


@pytest.mark.parametrize("mode", MODES)
def test_verdicts_are_of_whole_lines(tiny, prefixes, mode):
  pairs = [(problem, steps) for problem, steps, _ in prefixes]
  max_tokens = tiny.text.max_steps * tiny.text.max_step_tokens
  outcomes = set()
  for played, (problem, steps) in zip(
    go_on(tiny, mode, pairs), pairs, strict=True
  ):
    tree, judge = played.tree, played.judge
    assert judge.line(PROBLEM) == steps
    given = len(encode(tiny, problem, steps)) - len(encode(tiny, problem, ()))
    for edge in map(tuple, np.argwhere(tree.sampled > 0)):
      line = judge.line(int(line_index(tree, *edge)))
      assert line[: len(steps)] == steps
      assert given + len(tokens_to(tree, edge)) <= max_tokens
      if tree.outcome[edge] != -1:
        outcome = tiny.domain.verify(problem, line).outcome
        assert tree.outcome[edge] == outcome
        outcomes.add(outcome)
      is_whole = tiny.vocabulary.ends_step[tokens_to(tree, edge)[-1]]
      if is_whole:
        check = tiny.domain.check_step(problem, line[:-1], line[-1])
        assert tree.legal[edge] == check.is_legal
    result = plays.result(tiny.domain, played)
    assert result.steps[: len(steps)] == steps
    assert result.verdict == tiny.domain.verify(problem, result.steps)
  assert len(outcomes) > 1


@pytest.mark.parametrize("mode", ["value", "outcome"])
def test_a_line_has_no_more_steps_than_any_other(tiny, prefixes, mode):
  pairs = [(problem, steps) for problem, steps, _ in prefixes]
  num_last = num_others = 0
  for played, (_, steps) in zip(go_on(tiny, mode, pairs), pairs, strict=True):
    tree = played.tree
    last = tiny.text.max_steps - len(steps) - 1
    is_candidate = tree.sampled > 0
    is_last = is_candidate & (tree.depth == last)[:, None]
    assert tree.depth.max() <= last
    assert tree.is_terminal[is_last].all()
    if mode == "value":
      end = np.maximum(tree.length - 1, 0)[..., None]
      last_token = np.take_along_axis(tree.tokens, end, axis=-1)[..., 0]
      is_cut = ~tiny.vocabulary.ends_step[last_token]
      np.testing.assert_array_equal(
        tree.is_failed[is_candidate],
        (is_cut | (is_last & ~tree.ended))[is_candidate],
      )
    num_last += is_last.sum()
    num_others += (is_candidate & ~is_last).sum()
  assert num_last > 0
  assert num_others > 0


def test_a_play_from_a_prefix_does_not_depend_on_its_table(tiny, prefixes):
  pairs = [(problem, steps) for problem, steps, _ in prefixes]
  pairs = [*pairs, *((problem, ()) for problem in tiny.problems)]
  together = go_on(tiny, "value", pairs, seed=7)
  for i in (0, len(prefixes) - 1, len(pairs) - 1):
    (alone,) = go_on(tiny, "value", pairs[i : i + 1], seed=7 + i)
    nodes = alone.tree.depth != NONE
    for name in ("tokens", "parent", "candidate", "outcome", "steps_before"):
      one, other = alone.tree[name], together[i].tree[name]
      if one.ndim:
        one, other = one[nodes], other[nodes]
      np.testing.assert_array_equal(one, other, err_msg=name)


def test_nothing_is_legal_after_an_illegal_prefix(tiny):
  problem = tiny.problem("1 1 1 -> 3")
  step = tiny.domain.legal_steps(problem, ())[0]
  assert not tiny.domain.check_step(problem, (step,), step).is_legal
  (played,) = go_on(tiny, "outcome", [(problem, (step, step))])
  tree = played.tree
  assert (tree.sampled > 0).any()
  assert (tree.legal[tree.sampled > 0] == 0).all()
  assert not tree.score.any()


def test_nothing_follows_a_line_of_all_steps(tiny):
  problem = tiny.problem("1 1 1 -> 3")
  step = tiny.domain.legal_steps(problem, ())[0]
  text = dataclasses.replace(tiny.text, max_steps=2)
  player = tiny.player("value", 1, text_for_prefixes(text))
  job = Job(problem, 0, steps=(step, step))
  with pytest.raises(UserError, match="has 2 steps already: must be fewer"):
    list(player.play(tiny.network()[1], [job]))


def test_steps_do_not_fit_a_player_of_problems_alone(tiny):
  problem = tiny.problem("1 1 1 -> 3")
  step = tiny.domain.legal_steps(problem, ())[0]
  player = tiny.player("value", 1)
  job = Job(problem, 0, steps=(step, step))
  with pytest.raises(UserError, match="tokens, over") as raised:
    list(player.play(tiny.network()[1], [job]))
  assert repr(f"{problem.prompt}{step}\n{step}") in str(raised.value)
