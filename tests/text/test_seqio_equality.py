"""Ids and texts equal those of seqio's vocabularies."""

import random

import pytest

from qstar_jax.text.training import train_sentencepiece
from qstar_jax.text.vocabulary import ByteVocabulary


@pytest.fixture(scope="module")
def texts():
  rng = random.Random(0)
  alphabets = ["0123456789", "0123456789 +-*/()=:left\n", "aé漢🙂 \t\0\n4"]
  random_texts = [
    "".join(rng.choices(rng.choice(alphabets), k=rng.randrange(40)))
    for _ in range(2000)
  ]
  return ["", " ", "\n", "</s> <pad> <0x0A>", "▁ ▁", *random_texts]


@pytest.fixture(scope="module")
def seqio():
  import seqio  # Loads TensorFlow, which takes seconds.

  return seqio


def test_bytes(seqio, texts):
  ours, theirs = ByteVocabulary(), seqio.ByteVocabulary()
  assert ours.size == theirs.vocab_size
  assert (ours.pad_id, ours.eos_id) == (theirs.pad_id, theirs.eos_id)
  for text in texts:
    tokens = ours.encode(text)
    assert tokens == theirs.encode(text)
    assert ours.decode(tokens) == theirs.decode(tokens)


def test_sentencepiece(seqio, texts, tmp_path):
  lines = [f"{i} + {i} = {2 * i} (left: {2 * i})" for i in range(50)]
  ours = train_sentencepiece(lines, 400)
  path = tmp_path / "vocabulary.model"
  path.write_bytes(ours.to_bytes())
  theirs = seqio.SentencePieceVocabulary(str(path))
  assert ours.size == theirs.vocab_size
  assert (ours.pad_id, ours.eos_id) == (theirs.pad_id, theirs.eos_id)
  for text in [*texts, *lines]:
    tokens = ours.encode(text)
    assert tokens == theirs.encode(text)
    assert ours.decode([*tokens, 1]) == theirs.decode([*tokens, 1])
