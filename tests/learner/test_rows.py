"""Trees in rows: what stands where, what is seen, and what is learned once."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from qstar_jax.config import ModelConfig
from qstar_jax.errors import UserError
from qstar_jax.learner import rows
from qstar_jax.model.transformer import Transformer
from qstar_jax.records import TrainBatch

_TARGETS = ("policy_weight", "value_weight", "prm_weight", "action_weight")


def random_lesson(rng, max_pieces=12, num_trees=2):
  """Random trees of pieces of 1 to 3 tokens, each token a number of its own."""
  above, length = [], []
  for _ in range(num_trees):
    path = [len(above)]
    above.append(-1)
    for _ in range(rng.integers(max_pieces)):
      path = path[: rng.integers(1, min(len(path), 3) + 1)]
      above.append(path[-1])
      path.append(len(above) - 1)
  length = rng.integers(1, 4, len(above))
  is_step = np.array(above) >= 0

  def some():
    return rng.random(len(above)) * (rng.random(len(above)) < 0.7)

  lesson = rows.Lesson(
    above=np.array(above),
    offset=np.cumsum(length) - length,
    length=length,
    policy_weight=some() * is_step,
    value_target=some(),
    value_weight=some(),
    prm_target=some(),
    prm_weight=some() * is_step,
    reward=some() * is_step,
    discount=some(),
    action_weight=some() * is_step,
  )
  return np.arange(1, 1 + length.sum()), lesson


def line_of(lesson, tokens, piece):
  """The tokens of the line that ends in a piece."""
  line = []
  while piece >= 0:
    start = lesson.offset[piece]
    line = [*tokens[start : start + lesson.length[piece]].tolist(), *line]
    piece = lesson.above[piece]
  return line


def seen_from(batch, row, place):
  """The places that attention lets a place look at."""
  return [s for s in range(place + 1) if s <= place <= int(batch.last[row, s])]


def check_rows(tokens, lesson, batch):
  """Every line is whole wherever it stands; every target stands once."""
  piece_of = np.repeat(np.arange(len(lesson.length)), lesson.length)
  found = np.zeros(len(tokens), int)
  for row, place in np.argwhere(batch.tokens > 0):
    token = batch.tokens[row, place]
    found[token - 1] += 1
    # Of the piece's line, up to here.
    line = line_of(lesson, tokens, piece_of[token - 1])
    line = line[: line.index(token) + 1]
    seen = seen_from(batch, row, place)
    assert batch.tokens[row, seen].tolist() == line
    assert batch.position[row, seen].tolist() == list(range(len(line)))
    if len(seen) > 1:
      assert batch.previous[row, place] == seen[-2]
  assert (found > 0).all()
  for name in _TARGETS:
    of_piece = getattr(lesson, name)
    values = getattr(batch, name)
    at_every = name in ("policy_weight", "action_weight")
    for piece, value in enumerate(of_piece):
      first = lesson.offset[piece]
      of_tokens = tokens[first : first + lesson.length[piece]]
      for i, token in enumerate(of_tokens):
        is_target = at_every or i == len(of_tokens) - 1
        total = values[batch.tokens == token].sum()
        assert total == pytest.approx(value if is_target else 0, abs=1e-6)
        is_there = (batch.tokens == token) & (values > 0)
        assert is_there.sum() == (is_target and value > 0)


@given(st.integers(0, 2**32 - 1), st.integers(12, 40))
def test_trees_in_rows(seed, row_tokens):
  tokens, lesson = random_lesson(np.random.default_rng(seed))
  batch = rows.assemble(tokens, lesson, row_tokens)
  assert batch.tokens.shape[1] == row_tokens
  check_rows(tokens, lesson, batch)


def test_a_tree_stands_once_where_it_fits():
  tokens, lesson = random_lesson(np.random.default_rng(3))
  batch = rows.assemble(tokens, lesson, 80)
  assert sorted(batch.tokens[batch.tokens > 0].tolist()) == tokens.tolist()
  assert len(batch.tokens) == 1


def test_a_cut_tree_by_hand():
  """Prompt 1 2, below it 3 and 4 5, below that 6 and 7."""
  zeros = np.zeros(5)
  lesson = rows.Lesson(
    above=np.array([-1, 0, 0, 2, 2]),
    offset=np.array([0, 2, 3, 5, 6]),
    length=np.array([2, 1, 2, 1, 1]),
    policy_weight=np.array([0, 1, 1, 1, 1]),
    value_target=zeros,
    value_weight=np.ones(5),
    prm_target=zeros,
    prm_weight=zeros,
    rival=np.array([-1, 2, -1, -1, 3]),
    rival_weight=np.array([0, 2, 0, 0, 3]),
  )
  batch = rows.assemble(np.arange(1, 8), lesson, 6)
  # 4 5 is a better step than 3, and is there for the pair before its own turn.
  expected = {
    "tokens": [[1, 2, 4, 5, 6, 7], [1, 2, 4, 5, 3, 0]],
    "position": [[0, 1, 2, 3, 4, 4], [0, 1, 2, 3, 2, 0]],
    "previous": [[0, 0, 1, 2, 3, 3], [0, 0, 1, 2, 1, 0]],
    "last": [[5, 5, 5, 5, 4, 5], [4, 4, 3, 3, 4, 0]],
    "policy_weight": [[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 0]],
    "value_weight": [[0, 0, 0, 1, 1, 1], [0, 1, 0, 0, 1, 0]],
    "rival": [[0, 0, 0, 0, 0, 4], [0, 0, 0, 0, 3, 0]],
    "rival_weight": [[0, 0, 0, 0, 0, 3], [0, 0, 0, 0, 2, 0]],
  }
  for name, values in expected.items():
    np.testing.assert_array_equal(getattr(batch, name), values, err_msg=name)


def test_pairs_stay_together():
  """Of many siblings all have the last one as their rival, in every row."""
  num_steps = 9
  zeros = np.zeros(1 + num_steps)
  weight = np.append(0, np.ones(num_steps))
  weight[-1] = 0
  lesson = rows.Lesson(
    above=np.array([-1, *[0] * num_steps]),
    offset=np.arange(1 + num_steps),
    length=np.ones(1 + num_steps, np.int64),
    policy_weight=zeros,
    value_target=zeros,
    value_weight=zeros,
    prm_target=zeros,
    prm_weight=weight,
    rival=np.where(weight > 0, num_steps, -1),
    rival_weight=weight,
  )
  tokens = np.arange(1, 2 + num_steps)
  for row_tokens in (3, 4, 7, 20):
    batch = rows.assemble(tokens, lesson, row_tokens)
    assert batch.rival_weight.sum() == num_steps - 1
    for row, place in np.argwhere(batch.rival_weight):
      assert batch.tokens[row, batch.rival[row, place]] == tokens[-1]
  # There is room for a step after the prompt, and not for two.
  assert not rows.assemble(tokens, lesson, 2).rival_weight.any()


@pytest.mark.parametrize("name", ["policy_weight", "action_weight"])
def test_a_prompt_is_not_predicted(name):
  tokens, lesson = random_lesson(np.random.default_rng(1))
  lesson = dataclasses.replace(lesson, **{name: np.ones(len(lesson.length))})
  with pytest.raises(ValueError, match="prompt"):
    rows.assemble(tokens, lesson, 40)


def test_the_network_says_of_a_line_what_it_says_of_it_alone():
  tokens, lesson = random_lesson(np.random.default_rng(3))
  batch = rows.assemble(tokens, lesson, 12)
  assert len(batch.tokens) > 1
  config = ModelConfig(
    num_layers=2, model_dim=16, num_heads=2, num_kv_heads=1, head_dim=8
  )
  model = Transformer(config, len(tokens) + 1, rngs=nnx.Rngs(0))
  packed = model.forward(
    jnp.asarray(batch.tokens),
    position_BT=jnp.asarray(batch.position),
    last_BT=jnp.asarray(batch.last),
  )
  for piece in range(len(lesson.length)):
    line = line_of(lesson, tokens, piece)
    alone = model.forward(jnp.asarray([line]))[0, -1]
    for row, place in np.argwhere(batch.tokens == line[-1]):
      np.testing.assert_allclose(packed[row, place], alone, atol=1e-5)


def test_no_trees_are_no_rows():
  lesson = rows.Lesson(*[np.zeros(0, np.int64)] * 3, *[np.zeros(0)] * 5)
  batch = rows.assemble(np.zeros(0, np.int32), lesson, 8)
  assert batch.tokens.shape == (0, 8)


def test_line_too_long():
  tokens, lesson = random_lesson(np.random.default_rng(1))
  with pytest.raises(UserError, match=r"tokens does not fit .* 3;"):
    rows.assemble(tokens, lesson, 3)


def some_rows(seed=0, num_rows=3):
  rng = np.random.default_rng(seed)
  fields = dataclasses.fields(TrainBatch)[:6]
  return TrainBatch(
    *[
      rng.integers(1, 9, (num_rows, 4)).astype(
        np.int32 if field.name == "tokens" else np.float32
      )
      for field in fields
    ]
  )


def test_batch_is_filled_with_empty_rows():
  every = some_rows()
  batch = rows.take(every, np.array([2, 1]), 4)
  for name, values in vars(batch).items():
    if values is not None:
      of_all = getattr(every, name)
      assert values.dtype == of_all.dtype
      np.testing.assert_array_equal(values[:2], of_all[[2, 1]])
      assert values.shape[0] == 4
      assert not values[2:].any()


def test_batch_too_small():
  with pytest.raises(ValueError, match="2 rows do not fit a batch of 1"):
    rows.take(some_rows(), np.array([0, 1]), 1)


def test_joined_rows_weigh_nothing_where_a_part_knows_nothing():
  first, second = some_rows(0), some_rows(1)
  second = dataclasses.replace(second, reward=np.ones((3, 4), np.float32))
  both = rows.join([first, second])
  np.testing.assert_array_equal(both.reward, [[0] * 4] * 3 + [[1] * 4] * 3)
  assert both.reward.dtype == np.float32
  for name, values in vars(first).items():
    if values is not None:
      np.testing.assert_array_equal(
        getattr(both, name), np.concatenate([values, getattr(second, name)])
      )


def test_rows_of_unlike_kinds_are_not_joined():
  lines = some_rows()
  trees = dataclasses.replace(lines, last=np.zeros((3, 4), np.int32))
  with pytest.raises(ValueError, match="joined"):
    rows.join([lines, trees])
