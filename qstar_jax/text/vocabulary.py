"""Vocabularies: text to token ids and back, one step at a time.

Ids equal those of `seqio.ByteVocabulary` and `seqio.SentencePieceVocabulary`
(pad 0, end 1, unknown 2), which are not used here: importing seqio loads
TensorFlow and takes seconds.

Every prompt and every step is encoded on its own, so a step's tokens do not
depend on what stands before it and every number has one token wherever it
stands, be it the first of its step or not.
"""

import abc
import functools
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece

from qstar_jax.errors import UserError

DELIMITER = "\n"
PAD_ID = 0
EOS_ID = 1
UNK_ID = 2

# What a reader sees in place of bytes, or tokens, that are no text.
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()
# How SentencePiece writes a space.
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_BYTE_VOCABULARY = b"bytes"


class Vocabulary(abc.ABC):
  """Text to token ids and back.

  A step ends with the newline delimiter or, when it finishes its line, with the
  end token in the delimiter's place.

  Attributes:
    pieces: the UTF-8 bytes each of the V tokens stands for. The end token's are
      empty; padding and unknown read as U+FFFD, so that no verifier takes a
      step that holds them. A newline is only ever a piece's last byte.
    size: V.
    pad_id: the padding token, 0.
    eos_id: the end token, 1.
    ends_step: bool [V], true for the end token and for every token whose text
      ends with the delimiter.
    fingerprint: hash of the vocabulary; params trained with one vocabulary mean
      nothing with another.
  """

  pad_id = PAD_ID
  eos_id = EOS_ID

  def __init__(self, pieces: Sequence[bytes]):
    self.pieces = tuple(pieces)
    self.size = len(self.pieces)
    delimiter = DELIMITER.encode()
    if any(delimiter in piece[:-1] for piece in self.pieces):
      raise UserError(
        "The vocabulary has a token with a newline before its end; steps end at"
        " newlines, so train it on lines with none inside."
      )
    self.ends_step = np.array(
      [piece.endswith(delimiter) for piece in self.pieces], bool
    )
    self.ends_step[self.eos_id] = True

  @functools.cached_property
  def fingerprint(self) -> str:
    return hashlib.sha256(self.to_bytes()).hexdigest()

  @abc.abstractmethod
  def to_bytes(self) -> bytes:
    """What `from_bytes` makes the same vocabulary from."""

  @abc.abstractmethod
  def encode(self, text: str) -> list[int]:
    """Ids of a text, no end token added; equal to seqio's `encode`."""

  @abc.abstractmethod
  def _text_bytes(self, pieces: bytes) -> bytes:
    """The text's bytes, given those of its pieces one after another."""

  def encode_prompt(self, text: str) -> list[int]:
    """Ids of a prompt, its newline included.

    Raises:
      UserError: the text does not end in a newline, or holds another.
    """
    if text.find(DELIMITER) != len(text) - 1 or not text:
      raise UserError(
        f"Prompt {text!r} must end in a newline and hold no other newline."
      )
    return self.encode(text)

  def encode_step(self, text: str, is_last: bool) -> list[int]:
    """Ids of a step with its delimiter, or the end token if it is the last.

    With a vocabulary of Game of 24, `10 - 4 = 6 (left: 9 13 6)` becomes the ten
    tokens (a low line is a space)
    `_10` `_-` `_4` `_=` `_6` `_(left:` `_9` `_13` `_6` `)\\n`, and as the last
    step of its line the eleven that end with `)` and the end token.

    Raises:
      UserError: the text holds a newline.
    """
    if DELIMITER in text:
      raise UserError(
        f"Step {text!r} must hold no newline: it is the delimiter of steps."
      )
    if is_last:
      return [*self.encode(text), self.eos_id]
    return self.encode(text + DELIMITER)

  def decode(self, tokens: Iterable[int]) -> str:
    """The text of tokens, up to the first end token. Never raises.

    Invalid UTF-8, padding, unknown tokens and ids outside 0..V-1 read as
    U+FFFD.
    """
    pieces = []
    for token in tokens:
      if token == self.eos_id:
        break
      in_range = 0 <= token < self.size
      pieces.append(self.pieces[token] if in_range else _REPLACEMENT)
    return self._text_bytes(b"".join(pieces)).decode("utf-8", errors="replace")

  def decode_step(self, tokens: Iterable[int]) -> tuple[str, bool]:
    """The text of one step, and whether it finishes its line. Never raises.

    Args:
      tokens: of one step, its last token (delimiter or end) included if it has
        one; nothing after it.

    Returns:
      The text without delimiter, and true if the last token is the end token.
    """
    tokens = list(tokens)
    ended = bool(tokens) and tokens[-1] == self.eos_id
    return self.decode(tokens).removesuffix(DELIMITER), ended


class ByteVocabulary(Vocabulary):
  """UTF-8 bytes, as ByT5: byte b is token b + 3 (Xue et al. 2021).

  `"4 9"` is `[55, 35, 60]`.
  """

  _OFFSET = 3

  def __init__(self):
    special = [_REPLACEMENT, b"", _REPLACEMENT]
    super().__init__([*special, *(bytes([value]) for value in range(256))])

  def to_bytes(self) -> bytes:
    """A name: there is one byte vocabulary."""
    return _BYTE_VOCABULARY

  def encode(self, text: str) -> list[int]:
    return [value + self._OFFSET for value in text.encode()]

  def _text_bytes(self, pieces: bytes) -> bytes:
    return pieces


class SentencePieceVocabulary(Vocabulary):
  """A SentencePiece model; `training.train_sentencepiece` makes one.

  A text decodes to itself, but for U+2581, which SentencePiece takes for a
  space.
  """

  def __init__(self, model_proto: bytes):
    """Reads a serialized `sentencepiece.ModelProto`.

    Raises:
      UserError: the bytes are no such model, or its ids of padding, end and
        unknown are not 0, 1 and 2.
    """
    try:
      self._processor = sentencepiece.SentencePieceProcessor(
        model_proto=model_proto
      )
    except RuntimeError as error:
      raise UserError(
        f"The {len(model_proto)} bytes given are not a SentencePiece model;"
        " check where the vocabulary was read from."
      ) from error
    self._model_proto = model_proto
    processor = self._processor
    special = (processor.pad_id(), processor.eos_id(), processor.unk_id())
    if special != (PAD_ID, EOS_ID, UNK_ID):
      raise UserError(
        f"The SentencePiece model has (pad, eos, unk) ids {special}; they must"
        f" be {(PAD_ID, EOS_ID, UNK_ID)}."
      )
    super().__init__([self._piece(i) for i in range(len(processor))])

  def _piece(self, token: int) -> bytes:
    if token == EOS_ID:
      return b""
    if self._processor.is_control(token) or self._processor.is_unknown(token):
      return _REPLACEMENT
    piece = self._processor.id_to_piece(token)
    if self._processor.is_byte(token):
      return bytes([int(piece.removeprefix("<0x").removesuffix(">"), 16)])
    return piece.replace(_SPACE, " ").encode()

  def to_bytes(self) -> bytes:
    """The serialized `sentencepiece.ModelProto`."""
    return self._model_proto

  def encode(self, text: str) -> list[int]:
    return self._processor.encode(text)

  def _text_bytes(self, pieces: bytes) -> bytes:
    return pieces.removeprefix(b" ")  # Encoding put it before the first word.


def from_bytes(data: bytes) -> Vocabulary:
  """The vocabulary that `Vocabulary.to_bytes` wrote.

  Raises:
    UserError: the bytes are no vocabulary.
  """
  if data == _BYTE_VOCABULARY:
    return ByteVocabulary()
  return SentencePieceVocabulary(data)
