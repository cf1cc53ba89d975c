"""Training of a SentencePiece vocabulary on a domain's own lines."""

import collections
import io
import re
from collections.abc import Iterable

import sentencepiece

from qstar_jax.errors import UserError
from qstar_jax.text import vocabulary

# A word is a number (with its sign, and its denominator) or a run of anything
# else, with the space before it and, unless it is a number, the delimiter that
# ends its line. Digits are ASCII: others are not numbers.
_WORD = re.compile(r" ?-?[0-9]+(?:/[0-9]+)?| ?[^0-9\s]+\n?|\n")
# The same with a word for every digit; a sign is of the first one.
_WORD_OF_DIGITS = re.compile(r" ?-?[0-9]| ?[^0-9\s]+\n?|\n")
# SentencePiece writes a space as U+2581, and its pieces end at a NUL.
_NO_PIECE = str.maketrans("\u2581\0", "  ")
# Padding, end and unknown, and the 256 bytes that spell whatever is no word.
_NUM_BASE_PIECES = 3 + 256


def train_sentencepiece(
  lines: Iterable[str], size: int, *, split_digits: bool = False
) -> vocabulary.SentencePieceVocabulary:
  r"""A vocabulary of the words of `lines`, the most frequent first.

  Numbers and operators are whole pieces; a word that is no piece is spelt with
  shorter pieces, characters or bytes, so every text can be encoded. The
  delimiter is joined to the word before it unless that is a number. For
  example, with _ for the space that a piece begins with, `4 9 10 13 -> 24\n` is
  `_4` `_9` `_10` `_13` `_->` `_24` `\n`, and `10 - 4 = 6 (left: 9 13 6)\n` is
  `_10` `_-` `_4` `_=` `_6` `_(left:` `_9` `_13` `_6` `)\n`.

  The same lines give the same bytes.

  Args:
    lines: prompts and steps, each one line; a newline at its end may be left
      out.
    size: most pieces to make. There are fewer if the lines have fewer words.
    split_digits: every digit is a piece of its own, with the space or sign
      before it: `_1` `3` `_-` `_4` `_=` `_9`.

  Raises:
    UserError: there is no text in `lines`, or `size` is not enough for their
      characters.
  """
  word = _WORD_OF_DIGITS if split_digits else _WORD
  word_counts = collections.Counter()
  for line in lines:
    text = " " + line.removesuffix(vocabulary.DELIMITER).translate(_NO_PIECE)
    # The last step of a line has the end token in place of the delimiter.
    word_counts.update(word.findall(text))
    word_counts.update(word.findall(text + vocabulary.DELIMITER))
  characters = sorted(set("".join(word_counts)) | {" ", vocabulary.DELIMITER})
  if not set(characters) - {" ", vocabulary.DELIMITER}:
    raise UserError(
      "There is no text to train a vocabulary on; give it lines of random play."
    )
  smallest = _NUM_BASE_PIECES + len(characters)
  if size < smallest:
    raise UserError(
      f"text.vocabulary_size is {size} but the domain's lines need at least"
      f" {smallest} ({len(characters)} characters, 256 bytes and 3 special"
      f" tokens); use {smallest} or more."
    )
  frequent = sorted(word_counts, key=lambda w: (-word_counts[w], w))
  pieces = list(dict.fromkeys([*characters, *frequent]))
  return vocabulary.SentencePieceVocabulary(
    _model_proto(pieces[: size - _NUM_BASE_PIECES])
  )


def _model_proto(pieces: list[str]) -> bytes:
  """The SentencePiece model of these pieces; matching takes the longest."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    # All that there is to learn is given, so the pieces are the corpus too.
    sentence_iterator=iter(pieces),
    model_writer=model,
    model_type="bpe",
    vocab_size=_NUM_BASE_PIECES + len(pieces),
    user_defined_symbols=[piece.replace(" ", "\u2581") for piece in pieces],
    byte_fallback=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    pad_id=vocabulary.PAD_ID,
    eos_id=vocabulary.EOS_ID,
    unk_id=vocabulary.UNK_ID,
    bos_id=-1,
    num_threads=1,
    minloglevel=2,
  )
  return model.getvalue()
