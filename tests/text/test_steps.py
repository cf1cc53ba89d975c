"""Segmentation of lines into steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qstar_jax.errors import UserError
from qstar_jax.text import steps as steps_lib
from qstar_jax.text.training import train_sentencepiece
from qstar_jax.text.vocabulary import ByteVocabulary

BYTES = ByteVocabulary()
PIECES = train_sentencepiece(["4 9 -> 13", "4 + 9 = 13 (left: 13)"], 512)

any_vocabulary = pytest.mark.parametrize(
  "vocabulary", [BYTES, PIECES], ids=["bytes", "sentencepiece"]
)
line_texts = st.text("0123456789 +-*/()=:left", max_size=30)


def test_docstring_example():
  line = [*BYTES.encode("4 9\n"), *BYTES.encode("4+9"), BYTES.eos_id]
  assert line == [55, 35, 60, 13, 55, 46, 60, 1]
  assert steps_lib.split_steps(line, BYTES.ends_step) == [
    [55, 35, 60, 13],
    [55, 46, 60, 1],
  ]


@any_vocabulary
@given(
  prompt=line_texts,
  steps=st.lists(line_texts, min_size=1, max_size=4),
  is_finished=st.booleans(),
)
def test_lines_round_trip(vocabulary, prompt, steps, is_finished):
  prompt_tokens, step_tokens = steps_lib.encode_line(
    vocabulary, prompt + "\n", steps, is_finished=is_finished
  )
  line = [*prompt_tokens, *(token for step in step_tokens for token in step)]
  assert steps_lib.split_steps(line, vocabulary.ends_step) == [
    prompt_tokens,
    *step_tokens,
  ]
  decoded = steps_lib.decode_line(vocabulary, line)
  assert decoded == (prompt + "\n", tuple(steps), is_finished)


def test_unfinished_step_is_kept():
  line = BYTES.encode("4 9\n4+9\n13")
  steps = steps_lib.split_steps(line, BYTES.ends_step)
  assert [len(step) for step in steps] == [4, 4, 2]
  assert steps_lib.decode_line(BYTES, line) == ("4 9\n", ("4+9", "13"), False)


def test_nothing_is_no_steps():
  assert steps_lib.split_steps([], BYTES.ends_step) == []
  assert steps_lib.decode_line(BYTES, []) == ("", (), False)


def test_what_follows_the_end_is_ignored():
  line = [*BYTES.encode("4\n9"), 1, *BYTES.encode("8\n")]
  assert steps_lib.decode_line(BYTES, line) == ("4\n", ("9",), True)


@pytest.mark.parametrize(
  ("prompt", "steps"), [("4", ["9"]), ("4\n", ["9\n", "8"])]
)
def test_newline_out_of_place(prompt, steps):
  with pytest.raises(UserError, match="newline"):
    steps_lib.encode_line(BYTES, prompt, steps)
