"""Plays of a real network: batches, judges, modes, and the token meter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qstar_jax.errors import UserError
from qstar_jax.records import Outcome
from qstar_jax.search.tree import NONE
from qstar_jax.selfplay.judge import LineJudge, judge_afterwards
from qstar_jax.selfplay.player import Job, Player

MODES = ["value", "outcome"]


@pytest.fixture(scope="module")
def trees(tiny):
  """Of all problems, a batch by mode."""
  return {
    mode: tiny.stacked(tiny.play(mode, tiny.problems, tiny.seeds))
    for mode in MODES
  }


def assert_same_row(one, row, other, other_row):
  """The same choices, and the same values but for rounding."""
  nodes = one.depth[row] != NONE
  np.testing.assert_array_equal(nodes, other.depth[other_row] != NONE)
  assert nodes.any()
  for name in one:
    left, right = one[name][row], other[name][other_row]
    if left.shape[:1] == nodes.shape:
      left, right = left[nodes], right[nodes]
    if left.dtype == np.float32:
      np.testing.assert_allclose(left, right, atol=1e-5, err_msg=name)
    else:
      np.testing.assert_array_equal(left, right, err_msg=name)


@pytest.mark.parametrize("mode", MODES)
def test_a_play_does_not_depend_on_its_table(tiny, trees, mode):
  # Other rows, other neighbours.
  order = [5, 2, 7, 0]
  others = tiny.play(
    mode,
    [tiny.problem("1 1 -> 3"), *(tiny.problems[i] for i in order)],
    [1, *(tiny.seeds[i] for i in order)],
  )
  others = tiny.stacked(others)
  for row, i in enumerate(order, 1):
    assert_same_row(others, row, trees[mode], i)
  # The seed matters.
  (again,) = tiny.play(mode, tiny.problems[:1], [1])
  assert (again.tree.tokens != trees[mode].tokens[0]).any()


@pytest.mark.parametrize("mode", MODES)
def test_trees_that_take_the_place_of_others_are_as_if_alone(tiny, trees, mode):
  """Tables several times full: the store's blocks come round again."""
  times = 8
  problems = [*tiny.problems] * times
  seeds = [*tiny.seeds] * times
  plays = tiny.play(mode, problems, seeds)
  assert [play.problem for play in plays] == problems
  many = tiny.stacked(plays)
  for row in range(len(problems)):
    assert_same_row(many, row, trees[mode], row % tiny.num_trees)
  search, usage = tiny.searches[mode], tiny.player(mode, 1).usage
  rounds = many.num_nodes // search.leaves_per_round
  num_lanes = usage.lane_rounds // tiny.num_trees
  assert num_lanes * search.leaves_per_round > many.depth.shape[1]
  # Nobody waits for the longest play of a table.
  assert rounds.sum() > 0.7 * usage.lane_rounds
  longest = rounds.reshape(-1, tiny.num_trees).max(axis=1).sum()
  assert usage.lane_rounds < longest * tiny.num_trees


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_eight_devices_play_as_one(tiny, trees, mode):
  plays = tiny.play(
    mode, [*tiny.problems] * 2, [*tiny.seeds] * 2, num_devices=8
  )
  split = tiny.stacked(plays)
  for row in range(2 * tiny.num_trees):
    assert_same_row(split, row, trees[mode], row % tiny.num_trees)


def lines_of(tiny, tree, row):
  """Texts of the steps up to every candidate, by (node, candidate)."""
  lines = {}
  for node in np.flatnonzero(tree.depth[row] != NONE):
    above = (tree.parent[row, node], tree.candidate[row, node])
    steps = lines[above] if above[0] != NONE else ()
    for a in np.flatnonzero(tree.sampled[row, node] > 0):
      tokens = tree.tokens[row, node, a, : tree.length[row, node, a]].tolist()
      text, _ = tiny.vocabulary.decode_step(tokens)
      is_cut = not tiny.vocabulary.ends_step[tokens[-1]]
      lines[node, a] = (*steps, f"{text} (cut)" if is_cut else text)
  return lines


@pytest.mark.parametrize("mode", MODES)
def test_legality_and_outcomes_are_the_domains(tiny, trees, mode):
  tree = trees[mode]
  num_legal = num_finished = num_correct = 0
  for row, problem in enumerate(tiny.problems):
    for (node, a), line in lines_of(tiny, tree, row).items():
      at = (row, node, a)
      check = tiny.domain.check_step(problem, line[:-1], line[-1])
      assert tree.legal[at] == check.is_legal
      num_legal += check.is_legal
      if not (tree.ended[at] or check.is_terminal):
        assert tree.outcome[at] == -1
        continue
      verdict = tiny.domain.verify(problem, line)
      assert tree.outcome[at] == verdict.outcome
      assert tree.score[at] == verdict.score
      num_finished += 1
      num_correct += verdict.outcome == Outcome.CORRECT
  assert num_legal > 0
  assert num_finished > num_correct > 0


def test_judging_afterwards_is_judging_at_once(tiny):
  for play in tiny.play("outcome", tiny.problems, tiny.seeds):
    judge = LineJudge(tiny.domain, play.problem, tiny.vocabulary)
    unjudged = play.tree.replace(
      legal=np.zeros_like(play.tree.legal) - 1,
      outcome=np.zeros_like(play.tree.outcome) - 1,
      score=np.zeros_like(play.tree.score),
    )
    again = judge_afterwards(judge, unjudged)
    is_candidate = play.tree.sampled > 0
    for name in ("legal", "outcome", "score"):
      np.testing.assert_array_equal(
        again[name][is_candidate], play.tree[name][is_candidate]
      )


def test_outcomes_drive_the_search(trees):
  tree = trees["outcome"]
  has_verdict = (tree.sampled > 0) & (tree.outcome >= 0)
  np.testing.assert_array_equal(
    tree.utility[has_verdict], tree.score[has_verdict]
  )
  # Pruned: no illegal candidate has a visit, or is committed but for want of
  # any other.
  is_illegal = (tree.sampled > 0) & (tree.legal == 0)
  assert is_illegal.any()
  assert not tree.visits[is_illegal].any()
  assert (tree.child[is_illegal] == NONE).all()
  assert not tree.count[is_illegal].any()
  for row in range(len(tree.parent)):
    last = (row, tree.root_parent[row])
    if (tree.count[last] > 0).any():
      assert tree.legal[last][tree.root_candidate[row]] == 1


def test_values_drive_the_other_search(trees):
  tree = trees["value"]
  is_failed = ~tree.ended & tree.is_terminal
  is_candidate = tree.sampled > 0
  np.testing.assert_array_equal(
    tree.utility[is_candidate],
    np.where(is_failed, 0, tree.value)[is_candidate],
  )


@pytest.mark.parametrize("mode", MODES)
def test_token_meter_counts_every_token(tiny, trees, mode):
  tree = trees[mode]
  for row, problem in enumerate(tiny.problems):
    count = len(tiny.vocabulary.encode_prompt(problem.prompt))
    for node in np.flatnonzero(tree.depth[row] != NONE):
      # Duplicates were generated like any other.
      assert (tree.length[row, node] > 0).all()
      count += tree.length[row, node].sum()
      if tree.parent[row, node] != NONE:
        above = (row, tree.parent[row, node], tree.candidate[row, node])
        count += tree.length[above]
    assert tree.tokens_used[row] == count


@pytest.mark.parametrize("mode", MODES)
def test_jobs_are_drawn_as_there_is_room(tiny, mode):
  drawn = []

  def jobs():
    for i in range(50):
      drawn.append(i)
      # All alike: they are done at the same time.
      yield Job(tiny.problems[0], seed=0)

  _, params = tiny.network()
  plays = tiny.player(mode, 1).play(params, jobs())
  next(plays)
  num_tables = 1 if mode == "value" else 2
  assert len(drawn) <= 2 * num_tables * tiny.num_trees
  assert len(list(plays)) == 49
  assert drawn == list(range(50))


@pytest.mark.parametrize("mode", MODES)
def test_nothing_to_play(tiny, mode):
  _, params = tiny.network()
  player = tiny.player(mode, 1)
  assert list(player.play(params, [])) == []
  player.compile(params)
  assert len(tiny.play(mode, tiny.problems[:1], [0])) == 1


def test_prompt_too_long(tiny):
  problem = tiny.problem("1 1 1 1 1 1 -> 2")
  with pytest.raises(UserError) as error:
    tiny.play("value", [tiny.problems[0], problem], [0, 1])
  message = str(error.value)
  assert "17 tokens" in message
  assert "text.max_prompt_tokens = 12" in message
  assert problem.prompt.strip() in message


def test_shared_statistics_are_those_of_the_lines(tiny):
  num_twins = 0
  for played in tiny.play("shared", tiny.problems, tiny.seeds):
    tree = played.tree
    num_candidates = tree.count.shape[1]
    keys = {}
    for node, a in np.argwhere(tree.count > 0):
      line = played.judge.line(int(node) * num_candidates + int(a))
      check = tiny.domain.check_step(played.problem, line[:-1], line[-1])
      state = tree.state[node, a]
      goes_on = check.is_legal and tree.outcome[node, a] < 0
      assert (state != NONE) == goes_on
      if goes_on:
        key = tiny.domain.state_key(played.problem, line)
        assert keys.setdefault(state, key) == key
        num_twins += 1
    assert len(set(keys.values())) == len(keys)
    num_twins -= len(keys)
    q = tiny.record("shared", played).q
    nodes = tree.depth != NONE
    states, is_open = tree.state[nodes], tree.is_open[nodes]
    for state in np.unique(states[is_open]):
      assert np.ptp(q[is_open & (states == state)]) == 0
  assert num_twins > 0


def test_a_domain_that_names_no_states_shares_no_statistics(tiny):
  class Nameless:
    name = "nameless"

  graphdef, _ = tiny.network()
  with pytest.raises(UserError, match="nameless has no method state_key"):
    Player(
      graphdef,
      Nameless(),
      tiny.vocabulary,
      model=None,
      text=tiny.text,
      search=tiny.searches["shared"],
      num_trees=1,
      mesh=None,
    )


def test_a_beam_proposes_no_candidate_twice(tiny, trees):
  assert trees["value"].sampled.max() > 1
  tree = tiny.stacked(tiny.play("distinct", tiny.problems, tiny.seeds))
  is_node = tree.depth != NONE
  np.testing.assert_array_equal(tree.sampled[is_node], 1)
  alone = tiny.play("distinct", tiny.problems[3:4], tiny.seeds[3:4])
  assert_same_row(tiny.stacked(alone), 0, tree, 3)


def test_greedy_is_the_most_likely_token_each_time(tiny):
  plays = tiny.play("greedy", tiny.problems, tiny.seeds)
  graphdef, params = tiny.network()
  text, vocabulary = tiny.text, tiny.vocabulary

  @jax.jit
  def most_likely(tokens_T, length):
    model = nnx.merge(graphdef, params)
    hidden_TM = model.forward(tokens_T[None])[0]
    return jnp.argmax(model.logits(hidden_TM)[length - 1])

  for play in plays:
    line = vocabulary.encode_prompt(play.problem.prompt)
    steps = []
    while len(steps) < text.max_steps:
      step = []
      while len(step) < text.max_step_tokens:
        padded = np.zeros(text.max_line_tokens, np.int32)
        padded[: len(line) + len(step)] = [*line, *step]
        step.append(int(most_likely(padded, len(line) + len(step))))
        if vocabulary.ends_step[step[-1]]:
          break
      steps.append(step)
      line += step
      is_cut = not vocabulary.ends_step[step[-1]]
      if is_cut or step[-1] == vocabulary.eos_id:
        break
    tree = play.tree
    found = [
      tree.tokens[node, 0, : tree.length[node, 0]].tolist()
      for node in np.flatnonzero(tree.depth != NONE)
    ]
    assert found == steps
