"""Vocabularies: exact ids, exact texts, and no exception on any tokens."""

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from qstar_jax.errors import UserError
from qstar_jax.text import vocabulary as vocabulary_lib
from qstar_jax.text.training import train_sentencepiece

PROMPT = "4 9 10 13 -> 24"
STEPS = (
  "10 - 4 = 6 (left: 9 13 6)",
  "13 - 9 = 4 (left: 6 4)",
  "6 * 4 = 24 (left: 24)",
)
BYTES = vocabulary_lib.ByteVocabulary()
PIECES = train_sentencepiece([PROMPT, *STEPS], 512)

any_vocabulary = pytest.mark.parametrize(
  "vocabulary", [BYTES, PIECES], ids=["bytes", "sentencepiece"]
)
# Every text but for the character that SentencePiece reads as a space.
texts = st.text(
  st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")
)
domain_texts = st.text("0123456789 +-*/()=:left\n", max_size=40)


def pieces_of(vocabulary, tokens):
  return [vocabulary.pieces[token].decode() for token in tokens]


def test_byte_example():
  assert BYTES.encode("4 9") == [55, 35, 60]
  assert BYTES.size == 259


def test_prompt_is_seven_tokens():
  tokens = PIECES.encode_prompt(PROMPT + "\n")
  assert pieces_of(PIECES, tokens) == [
    *(" 4", " 9", " 10", " 13", " ->", " 24", "\n")
  ]


def test_step_is_ten_tokens():
  tokens = PIECES.encode_step(STEPS[0], is_last=False)
  assert pieces_of(PIECES, tokens) == [
    *(" 10", " -", " 4", " =", " 6", " (left:", " 9", " 13", " 6", ")\n")
  ]


def test_last_step_ends_with_the_end_token():
  tokens = PIECES.encode_step(STEPS[2], is_last=True)
  assert pieces_of(PIECES, tokens) == [
    *(" 6", " *", " 4", " =", " 24", " (left:", " 24", ")", "")
  ]
  assert tokens[-1] == PIECES.eos_id == 1


def test_negative_numbers_and_fractions_are_whole():
  lines = ["3 - 5 = -2 (left: 8/3 -2)"]
  vocabulary = train_sentencepiece(lines, 512)
  tokens = vocabulary.encode_step(lines[0], is_last=False)
  assert pieces_of(vocabulary, tokens) == [
    *(" 3", " -", " 5", " =", " -2", " (left:", " 8/3", " -2", ")\n")
  ]


def test_unseen_numbers_are_spelt():
  tokens = PIECES.encode_step("1017 + 58", is_last=False)
  assert pieces_of(PIECES, tokens) == [
    *(" 10", "1", "7", " ", "+", " ", "5", "8", "\n")
  ]


@any_vocabulary
@given(text=texts | domain_texts, is_last=st.booleans())
def test_steps_round_trip(vocabulary, text, is_last):
  text = text.replace("\n", " ")
  tokens = vocabulary.encode_step(text, is_last)
  assert vocabulary.decode_step(tokens) == (text, is_last)
  assert vocabulary.decode_step(np.array(tokens, np.int32)) == (text, is_last)
  ends = vocabulary.ends_step[tokens]
  assert ends[-1] and not ends[:-1].any()


@any_vocabulary
@given(text=texts | domain_texts)
def test_texts_with_newlines_round_trip(vocabulary, text):
  tokens = vocabulary.encode(text)
  assert vocabulary.decode(tokens) == text
  assert vocabulary.ends_step[tokens].sum() == text.count("\n")


@any_vocabulary
@given(tokens=st.lists(st.integers(-300, 600)))
def test_any_tokens_decode(vocabulary, tokens):
  text, ended = vocabulary.decode_step(tokens)
  assert ended == (tokens[-1:] == [vocabulary.eos_id])
  before_end = tokens[: tokens.index(1)] if 1 in tokens else tokens
  is_text = all(3 <= token < vocabulary.size for token in before_end)
  assert is_text or "\ufffd" in text


def test_invalid_utf8_becomes_replacement_characters():
  tokens = [*BYTES.encode("4"), 0xE2 + 3, 0x96 + 3, *BYTES.encode(" 9")]
  assert BYTES.decode_step(tokens) == ("4\ufffd 9", False)


@any_vocabulary
def test_padding_and_unknown_are_not_silent(vocabulary):
  step = vocabulary.encode_step("4", is_last=False)
  assert vocabulary.decode_step([*step[:-1], 0, 2]) == ("4\ufffd\ufffd", False)


@any_vocabulary
def test_ends_step_is_the_text(vocabulary):
  for token, piece in enumerate(vocabulary.pieces):
    expected = token == vocabulary.eos_id or piece.endswith(b"\n")
    assert vocabulary.ends_step[token] == expected
    assert b"\n" not in piece[:-1]


def test_every_way_to_write_the_delimiter_ends_a_step():
  ending = [PIECES.pieces[i] for i in np.flatnonzero(PIECES.ends_step)]
  # The end token, the newline piece, the joined one and the newline's byte.
  assert ending == [b"", b"\n", b")\n", b"\n"]


@any_vocabulary
def test_bytes_round_trip(vocabulary):
  copy = vocabulary_lib.from_bytes(vocabulary.to_bytes())
  assert type(copy) is type(vocabulary)
  assert copy.pieces == vocabulary.pieces
  assert copy.fingerprint == vocabulary.fingerprint


def test_fingerprint_tells_vocabularies_apart():
  other = train_sentencepiece([PROMPT, *STEPS, "14"], 512)
  assert len({v.fingerprint for v in (BYTES, PIECES, other)}) == 3


@pytest.mark.parametrize("data", [b"", b"junk", PIECES.to_bytes()[:-100]])
def test_damaged_bytes_are_refused(data):
  with pytest.raises(UserError, match="SentencePiece model"):
    vocabulary_lib.from_bytes(data)


@any_vocabulary
@pytest.mark.parametrize("text", ["", "4 9", "4\n9\n", "\n4", "4\n\n"])
def test_prompt_must_be_one_line(vocabulary, text):
  with pytest.raises(UserError, match="must end in a newline"):
    vocabulary.encode_prompt(text)


@any_vocabulary
def test_step_must_hold_no_newline(vocabulary):
  with pytest.raises(UserError, match="must hold no newline"):
    vocabulary.encode_step("4\n", is_last=False)


def test_newline_inside_a_piece_is_refused():
  class Bad(vocabulary_lib.ByteVocabulary):
    def __init__(self):
      vocabulary_lib.Vocabulary.__init__(self, [b"", b"", b"", b"\n4"])

  with pytest.raises(UserError, match="newline before its end"):
    Bad()


def test_digits_may_be_pieces():
  lines = ["13 - 47 = -34 (left: 208/3 -34)"]
  vocabulary = train_sentencepiece(lines, 512, split_digits=True)
  tokens = vocabulary.encode_step(lines[0], is_last=False)
  assert pieces_of(vocabulary, tokens) == [
    *(" 1", "3", " -", " 4", "7", " =", " -3", "4"),
    *(" (left:", " 2", "0", "8", "/", "3", " -3", "4", ")\n"),
  ]


@given(lines=st.lists(texts, max_size=5), extra=st.integers(0, 40))
def test_training_takes_any_lines(lines, extra):
  """Every text can be encoded, whatever the vocabulary was trained on."""
  try:
    vocabulary = train_sentencepiece(lines, 330 + extra)
  except UserError as error:
    assert "no text" in str(error) or "needs at least" in str(error)
    return
  assert vocabulary.size <= 330 + extra
  for text in [*lines, *STEPS]:
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_training_is_deterministic():
  lines = [f"{i} + {j}" for i in range(30) for j in range(30)]
  first = train_sentencepiece(iter(lines), 300).to_bytes()
  assert train_sentencepiece(lines[::-1], 300).to_bytes() == first


def test_most_frequent_words_come_first():
  lines = ["7 8"] * 3 + ["8 9"] * 2
  # Five character pieces: delimiter, space, 7, 8 and 9; then ` 8` and ` 7`.
  vocabulary = train_sentencepiece(lines, 259 + 5 + 2)
  assert {b" 8", b" 7"} < set(vocabulary.pieces)
  assert b" 9" not in vocabulary.pieces
  assert vocabulary.decode(vocabulary.encode("9 8")) == "9 8"


def test_size_is_an_upper_bound():
  assert train_sentencepiece(["7 8"], 10_000).size == 259 + 4 + 2


@pytest.mark.parametrize("size", [-1, 0, 262])
def test_too_small_a_vocabulary(size):
  with pytest.raises(UserError, match=rf"is {size} but .* use 263 or more"):
    train_sentencepiece(["7 8"], size)


@pytest.mark.parametrize("lines", [[], [""], ["\n", "  "]])
def test_no_text_to_train_on(lines):
  with pytest.raises(UserError, match="no text to train"):
    train_sentencepiece(lines, 512)


def test_foreign_special_ids_are_refused(tmp_path):
  prefix = str(tmp_path / "foreign")
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["4 9 10 13"]),
    model_prefix=prefix,
    vocab_size=300,
    hard_vocab_limit=False,
    byte_fallback=True,
    minloglevel=2,
  )
  with open(prefix + ".model", "rb") as model_file:
    data = model_file.read()
  with pytest.raises(UserError, match=r"ids \(-1, 2, 0\)"):
    vocabulary_lib.from_bytes(data)
