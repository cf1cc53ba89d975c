"""Trees written by hand, and lines to store."""

import dataclasses

import numpy as np
import pytest

from qstar_jax.domains.countdown import Countdown
from qstar_jax.records import LabelledLine, TreeRecord
from qstar_jax.text.vocabulary import ByteVocabulary

VOCABULARY = ByteVocabulary()

# What is not said of a candidate.
_UNSAID = {
  "log_prob": (-1.0, np.float32),
  "proposal_log_prob": (-1.0, np.float32),
  "value": (0.5, np.float32),
  "prm": (0.5, np.float32),
  "ended": (False, np.bool_),
  "visits": (0, np.int32),
  "q": (0.5, np.float32),
  "legal": (-1, np.int8),
  "outcome": (-1, np.int8),
  "score": (0.0, np.float32),
}


def tree_of(prompt, nodes, domain=None, **changes) -> TreeRecord:
  r"""A tree of texts, in bytes.

  Args:
    prompt: of the problem.
    nodes: each `((parent, candidate), candidates)`, the root's with None; a
      candidate is its text, with its `\n`, `$` for the end token or nothing,
      and fields of the record.
    domain: of the problem; countdown if None.
    **changes: other fields of the record.
  """
  domain = domain or Countdown()
  width = max(len(candidates) for _, candidates in nodes)
  shape = (len(nodes), width)
  arrays = {
    name: np.full(shape, value, dtype)
    for name, (value, dtype) in _UNSAID.items()
  }
  length, count = np.zeros((2, *shape), np.int32)
  tokens = []
  for row, (_, candidates) in enumerate(nodes):
    for a, (text, fields) in enumerate(candidates):
      encoded = VOCABULARY.encode(text.removesuffix("$"))
      encoded += [VOCABULARY.eos_id] * text.endswith("$")
      tokens += encoded
      length[row, a], count[row, a] = len(encoded), 1
      for name, value in fields.items():
        arrays[name][row, a] = value
  into = np.array([above or (-1, -1) for above, _ in nodes], np.int32)
  record = TreeRecord(
    domain=domain.name,
    domain_version=domain.version,
    problem_key=domain.parse(prompt).key,
    prompt=prompt,
    actor_id=3,
    sequence=14,
    params_version=15,
    terminal_value="value",
    temperature=1.0,
    prompt_tokens=np.array(VOCABULARY.encode_prompt(prompt), np.int32),
    node_parent=into[:, 0],
    node_candidate=into[:, 1],
    node_value=np.full(len(nodes), 0.5, np.float32),
    tokens=np.array(tokens, np.int32),
    length=length,
    count=count,
    **arrays,
    committed_node=np.zeros(1, np.int32),
    committed_candidate=np.zeros(1, np.int32),
    final_outcome=1,
    final_score=0.0,
  )
  return dataclasses.replace(record, **changes)


def line_of(index: int, num_steps: int = 3, **changes) -> LabelledLine:
  """A line that its arguments determine, with noise for labels."""
  rng = np.random.default_rng(index)
  label = rng.random(num_steps, np.float32)
  label[rng.random(num_steps) < 0.3] = -1
  line = LabelledLine(
    domain="countdown",
    problem_key=f"{index} 3 5",
    prompt=f"{index} 3 5 -> 8\n",
    steps=tuple(f"{index} + {i} = {index + i}" for i in range(num_steps)),
    is_finished=bool(index % 2),
    label=label,
    kind="soft",
    source="judge",
    params_version=7,
    tokens=index % 100,
    origin=f"item {index}",
  )
  return dataclasses.replace(line, **changes)


def is_same(one: LabelledLine, other: LabelledLine) -> bool:
  """Equal in every type, dtype and bit."""
  for field in dataclasses.fields(LabelledLine):
    left, right = getattr(one, field.name), getattr(other, field.name)
    if type(left) is not type(right):
      return False
    if isinstance(left, np.ndarray):
      left, right = ((a.dtype, a.shape, a.tobytes()) for a in (left, right))
    if left != right:
      return False
  return True


@pytest.fixture(scope="session")
def make_tree():
  return tree_of


@pytest.fixture(scope="session")
def make_line():
  return line_of


@pytest.fixture(scope="session")
def same_line():
  return is_same


@pytest.fixture(scope="session")
def vocabulary():
  return VOCABULARY
