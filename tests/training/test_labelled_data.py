"""What is drawn from labelled lines: each once an epoch, none held out."""

import collections
import dataclasses
import itertools
import json
import types

import numpy as np
import pytest
from etils import epath

from qstar_jax.config import (
  DataConfig,
  ExperimentConfig,
  LearnerConfig,
  SelfPlayConfig,
)
from qstar_jax.domains import make_domain
from qstar_jax.domains.splits import TrainingProblems
from qstar_jax.errors import UserError
from qstar_jax.labels.codec import LINES
from qstar_jax.store.reader import StoreReader
from qstar_jax.store.writer import StoreWriter
from qstar_jax.text.vocabulary import ByteVocabulary
from qstar_jax.training import labelled_data, lessons
from qstar_jax.training.labelled_data import LabelledData, import_outside
from tests.labels.conftest import line_of
from tests.text.bounds import bounds

_VOCABULARY = ByteVocabulary()
_TEXT = bounds(20, 3, 24)
_PROBLEMS = TrainingProblems(make_domain("text"), frozenset())
_NUM_LINES = 300


def _lines():
  """Lines that their labels tell apart; two of a problem."""
  for i in range(_NUM_LINES):
    label = np.float32([-1, (i + 1) / (_NUM_LINES + 1)])
    yield line_of(i, 2, label=label, problem_key=str(i // 2), domain="other")


@pytest.fixture
def dataset(tmp_path):
  with StoreWriter(tmp_path / "labels", LINES, shard_records=32) as writer:
    writer.extend([])
    for line in _lines():
      writer.extend([line])
  return tmp_path / "labels"


def _open(dataset, problems=_PROBLEMS, seed=0, **changes):
  data = DataConfig(labels=str(dataset), **changes)
  return LabelledData(dataset, data, problems, seed=seed)


def _drawn_labels(rows):
  return [row.label[-1] for row in rows]


def test_an_epoch_has_every_line_once_and_is_shuffled(dataset):
  data = _open(dataset, held_out_share=0.0)
  assert data.held_out == []
  drawn = data.draw(0, _NUM_LINES, _VOCABULARY, _TEXT)
  assert (drawn.num_lines, drawn.num_too_long) == (_NUM_LINES, 0)
  stored = [float(line.label[1]) for line in _lines()]
  first = _drawn_labels(drawn.rows)
  assert sorted(first) == stored and first != stored
  second = _drawn_labels(data.draw(300, 300, _VOCABULARY, _TEXT).rows)
  assert sorted(second) == stored and second != first
  # Whatever the parts that it is drawn in, and by whom.
  parts, position = [], 0
  while position < 450:
    drawn = _open(dataset, held_out_share=0.0).draw(
      position, 90, _VOCABULARY, _TEXT
    )
    position += drawn.num_lines
    parts += _drawn_labels(drawn.rows)
  assert parts == (first + second)[:450]
  other = _open(dataset, held_out_share=0.0, seed=1)
  assert _drawn_labels(other.draw(0, 300, _VOCABULARY, _TEXT).rows) != first


def test_held_out_problems_are_never_drawn(dataset):
  data = _open(dataset, held_out_share=0.2)
  held_out = {line.problem_key for line in data.held_out}
  assert 15 <= len(held_out) <= 50
  # Both lines of a problem.
  assert len(data.held_out) == 2 * len(held_out)
  num_left = _NUM_LINES - len(data.held_out)
  drawn = data.draw(0, num_left, _VOCABULARY, _TEXT)
  labels = {float(line.label[1]) for line in data.held_out}
  assert not labels & set(_drawn_labels(drawn.rows))
  assert len(set(_drawn_labels(drawn.rows))) == num_left
  prompts = {line.prompt for line in data.held_out}
  assert not prompts & set(data.corpus(_NUM_LINES))
  assert len(data.corpus(_NUM_LINES)) == 3 * num_left
  # A larger share holds out these and others, whatever the seed.
  more = _open(dataset, held_out_share=0.4, seed=5)
  assert held_out < {line.problem_key for line in more.held_out}
  few = _open(dataset, held_out_share=0.4, held_out_lines=7)
  assert len(few.held_out) == 7


def test_problems_that_the_domain_holds_out_are_never_drawn(dataset):
  domain = make_domain("countdown")
  out = domain.parse("9 3 5 -> 8")
  problems = TrainingProblems.without(domain, [out])
  folder = dataset.with_name("countdown")
  with StoreWriter(folder, LINES, shard_records=32) as writer:
    writer.extend(
      [line_of(i, label=np.float32([1] * 3), kind="hard") for i in range(1, 11)]
    )
  data = _open(folder, problems, held_out_share=0.0)
  drawn = data.draw(0, 9, _VOCABULARY, _TEXT)
  prompts = {bytes(t - 3 for t in row.prompt).decode() for row in drawn.rows}
  assert prompts == {f"{i} 3 5 -> 8\n" for i in range(1, 11) if i != 9}


def test_a_long_line_gives_windows_that_hold_each_label_once(dataset):
  line = line_of(1, 9, label=np.linspace(0.1, 0.9, 9, dtype=np.float32))
  line = dataclasses.replace(line, steps=(*line.steps[:8], "x" * 99))
  rows, num_too_long = labelled_data.tokenise(
    line, _VOCABULARY, bounds(14, 2, 13)
  )
  assert num_too_long == 1 and len(rows) > 2
  assert all(len(row.prompt) + sum(map(len, row.steps)) <= 40 for row in rows)
  labels = itertools.chain.from_iterable(row.label for row in rows)
  np.testing.assert_array_equal([x for x in labels if x >= 0], line.label[:8])
  text = {_VOCABULARY.decode(step): i for i, step in enumerate(rows[0].steps)}
  assert text["1 + 0 = 1\n"] == 0
  assert _VOCABULARY.decode(rows[-1].steps[-1]) == "1 + 7 = 8\n"


def test_nothing_that_fits_is_told(dataset):
  with pytest.raises(UserError, match="none of its 300 lines has a labelled"):
    _open(dataset).draw(0, 1, _VOCABULARY, bounds(1, 1, 9))


_RATED = [
  {
    "instruction": f"What is {i}?",
    "responses": ["First."],
    "next_response": f"So {i}.",
    "answer": None,
    "rating": rating,
  }
  for i, rating in enumerate([1, -1, 0, None, 1])
]


def test_an_outside_file_is_imported_once(tmp_path):
  bad = {**_RATED[0], "rating": 7}
  path = tmp_path / "rated.jsonl"
  path.write_text("".join(json.dumps(x) + "\n" for x in [*_RATED, bad]))
  out = epath.Path(tmp_path / "run/labels")
  data = DataConfig(labels=f"prm800k:{path}", on_error="skip")

  calls = itertools.count()

  def stop_later():
    if next(calls) == 3:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    import_outside(data, out, stop_later)
  found = import_outside(data, out, lambda: None)
  assert (found["records"], found["refused"]) == (5, 1)
  assert "1 label outside its values; " in found["message"]
  assert "refused_records.txt names them" in found["message"]
  (refused,) = (out.parent / "refused_records.txt").read_text().splitlines()
  assert refused.startswith(f"{path}, record 6: label outside its values")
  lines = list(StoreReader(out, LINES))
  assert [float(x.label[-1]) for x in lines] == [1, 0, 1, 1]
  path.unlink()
  assert import_outside(data, out, lambda: None) == found
  refuse = dataclasses.replace(data, on_error="refuse", labels="prm800k:none")
  with pytest.raises(UserError, match=r"no file .*none"):
    import_outside(refuse, out.parent / "other", lambda: None)


def test_only_the_shards_that_are_needed_are_read(dataset, monkeypatch):
  """Memory is that of a read, however long the dataset is."""
  data = _open(dataset, held_out_share=0.0)
  monkeypatch.setattr(labelled_data, "_LINES_PER_READ", 10)
  read = collections.Counter()
  original = StoreReader.__getitem__

  def counting(self, index):
    read[index] += 1
    return original(self, index)

  monkeypatch.setattr(StoreReader, "__getitem__", counting)
  data.draw(0, 25, _VOCABULARY, _TEXT)
  assert sum(read.values()) == 30


def test_an_iteration_goes_on_where_the_last_one_ended():
  positions = []

  def draw(position, num_rows, vocabulary, text):
    del vocabulary, text
    positions.append((position, num_rows))
    return labelled_data.Drawn([], num_lines=5, num_too_long=1)

  config = ExperimentConfig(
    learner=LearnerConfig(steps_per_iteration=3, batch_size=4),
    self_play=SelfPlayConfig(problems_per_iteration=0),
  )
  told = [{"labelled_lines": 0}]
  for _ in range(3):
    _, figures = lessons.make_batches(
      config,
      window=None,
      labelled=types.SimpleNamespace(draw=draw),
      first_line=told[-1]["labelled_lines"],
      vocabulary=None,
      rng=None,
      random_play=None,
    )
    told.append(figures)
  assert positions == [(0, 12), (5, 12), (10, 12)]
  assert [figures["labelled_lines"] for figures in told] == [0, 5, 10, 15]
  assert told[1]["labels_too_long"] == 1


@pytest.mark.parametrize("num_lines", [0, 1, 5000, 49_152, 49_153, 200_000])
def test_every_line_comes_once_and_few_shards_are_read_at_a_time(num_lines):
  order, other = (
    labelled_data.shuffled(num_lines, np.random.default_rng(seed))
    for seed in (0, 1)
  )
  np.testing.assert_array_equal(np.sort(order), np.arange(num_lines))
  assert num_lines < 2 or (order != other).mean() > 0.9
  # Shards that are opened by a reader that keeps 64 open: each once.
  opened, num_opened = collections.OrderedDict(), 0
  for start in range(0, num_lines, 1024):
    for shard in sorted(set(order[start : start + 1024] // 1024)):
      num_opened += shard not in opened
      opened[shard] = opened.pop(shard, None)
      if len(opened) > 64:
        opened.popitem(last=False)
  assert num_opened <= 1.1 * num_lines / 1024 + 1


def test_neighbours_are_torn_apart():
  order = labelled_data.shuffled(200_000, np.random.default_rng(0))
  place = np.argsort(order)
  distance = np.abs(np.diff(place))
  assert np.median(distance) > 5000
