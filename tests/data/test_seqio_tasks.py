"""Tasks iterate, in shards without overlap or loss, as the learner's rows."""

import dataclasses
import gzip
import itertools

import numpy as np
import pytest

from qstar_jax.config import TextConfig
from qstar_jax.data import examples, prm800k
from qstar_jax.data import splits as splits_of_others
from qstar_jax.data.reading import Report
from qstar_jax.domains import make_domain, splits
from qstar_jax.domains.hindsight import draw_line
from qstar_jax.errors import UserError
from qstar_jax.learner import plays
from qstar_jax.records import Outcome, TreeRecord
from qstar_jax.replay import ReplayWriter
from qstar_jax.text.steps import encode_line
from qstar_jax.text.training import train_sentencepiece
from qstar_jax.text.vocabulary import ByteVocabulary
from qstar_jax.training.hindsight import random_lines

BYTES = ByteVocabulary()
TEXT = TextConfig(max_prompt_tokens=30, max_step_tokens=60, max_steps=4)
DIFFICULTIES = {"countdown": [2], "arithmetic": [1, 2], "game24": [3]}


@pytest.fixture(scope="module")
def seqio():
  import seqio  # Loads TensorFlow, which takes seconds.

  return seqio


@pytest.fixture(scope="module")
def tasks(seqio):
  from qstar_jax.data import seqio_tasks

  return seqio_tasks


def _problems(name="countdown"):
  domain = make_domain(name)
  return splits.TrainingProblems.without(domain, [])


def _add_warmup(tasks, name="countdown", vocabulary=BYTES, **options):
  defaults = {"difficulties": DIFFICULTIES[name], "num_lines": 20}
  return tasks.add_warmup(_problems(name), vocabulary, **defaults | options)


def _numpy(dataset):
  return list(dataset.as_numpy_iterator())


def _content(example):
  return tuple(
    (name, np.asarray(value).tobytes())
    for name, value in sorted(example.items())
  )


def _shards(seqio, task, num_shards, **options):
  return [
    [
      _content(example)
      for example in _numpy(
        task.get_dataset(
          shard_info=seqio.ShardInfo(index, num_shards), **options
        )
      )
    ]
    for index in range(num_shards)
  ]


def _check_sharding(seqio, task, split="train"):
  """Shards are the whole, dealt like cards; shuffling keeps all of it."""
  options = {"split": split, "shuffle": False}
  (whole,) = _shards(seqio, task, 1, **options)
  assert len(set(whole)) > 1
  for num_shards in (2, 3):
    shards = _shards(seqio, task, num_shards, **options)
    assert sorted(itertools.chain(*shards)) == sorted(whole)
    assert abs(len(shards[0]) - len(shards[-1])) <= len(whole) // 2
  shuffled = [
    [
      _content(e)
      for e in _numpy(task.get_dataset(split=split, shuffle=True, seed=seed))
    ]
    for seed in (1, 1, 2)
  ]
  assert shuffled[0] == shuffled[1]
  assert shuffled[0] != shuffled[2]
  assert sorted(shuffled[0]) == sorted(shuffled[2]) == sorted(whole)


@pytest.mark.parametrize("name", DIFFICULTIES)
def test_warmup_of_every_domain(seqio, tasks, name):
  task = _add_warmup(tasks, name)
  assert seqio.get_mixture_or_task(f"qstar_{name}_warmup") is task
  _check_sharding(seqio, task)
  shards = _shards(seqio, task, 2, shuffle=False)
  assert len(shards[0]) == len(shards[1]) == 10
  assert not set(shards[0]) & set(shards[1])


def _vocabulary(kind):
  if kind == "bytes":
    return BYTES
  rng = np.random.default_rng(0)
  return train_sentencepiece(random_lines(_problems(), rng, [2], 300), 512)


def _rows(seqio, tasks, task, text=TEXT, **options):
  dataset = seqio.get_dataset(
    task,
    tasks.feature_lengths(text),
    tasks.LineConverter(),
    shuffle=False,
    **options,
  )
  rows = _numpy(dataset)
  return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _play(line, vocabulary):
  return plays.Play(
    *encode_line(
      vocabulary, line.problem.prompt, line.steps, is_finished=line.is_finished
    ),
    line.bad_step,
    line.is_aimless,
  )


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_rows_are_those_of_the_learner(seqio, tasks, kind):
  vocabulary = _vocabulary(kind)
  task = _add_warmup(tasks, vocabulary=vocabulary, num_lines=60, seed=7)
  drawn = [
    draw_line(_problems(), np.random.default_rng([7, i]), [2], 0.5)
    for i in range(60)
  ]
  # All kinds of lines are among them.
  assert {line.bad_step is None for line in drawn} == {True, False}
  assert {line.is_aimless for line in drawn} == {True, False}
  expected = plays.plays_to_rows(
    [_play(line, vocabulary) for line in drawn], TEXT.max_line_tokens
  )
  rows = _rows(seqio, tasks, task.name)
  of_trees = ("position", "previous", "last")
  fields = {
    name: values
    for name, values in vars(expected).items()
    if values is not None and name not in of_trees
  }
  fields["length"] = expected.last[:, 0] + 1
  assert rows.keys() == fields.keys()
  for name, values in fields.items():
    assert rows[name].dtype == values.dtype, name
    np.testing.assert_array_equal(rows[name], values, err_msg=name)


def test_lines_that_do_not_fit_are_left_out_whole(seqio, tasks):
  task = _add_warmup(tasks, num_lines=60)
  rows = _rows(seqio, tasks, task.name)
  narrow = dataclasses.replace(TEXT, max_step_tokens=9)
  fitting = _rows(seqio, tasks, task.name, narrow)
  is_short = [
    len(e["targets"]) <= 36 for e in _numpy(task.get_dataset(shuffle=False))
  ]
  assert 0 < sum(is_short) < 60
  width = narrow.max_line_tokens
  np.testing.assert_array_equal(
    fitting["tokens"], rows["tokens"][is_short][:, :width]
  )
  assert not _numpy(
    task.get_dataset({"inputs": 3, "targets": 999}, shuffle=False)
  )


def test_a_batch(seqio, tasks):
  _add_warmup(tasks)
  rows = _rows(seqio, tasks, "qstar_countdown_warmup", batch_size=8)
  assert rows["tokens"].shape == (2, 8, TEXT.max_line_tokens)
  assert rows["length"].shape == (2, 8)


def test_registering_again_replaces(seqio, tasks):
  _add_warmup(tasks, num_lines=5)
  _add_warmup(tasks, num_lines=3)
  task = seqio.get_mixture_or_task("qstar_countdown_warmup")
  assert len(_numpy(task.get_dataset())) == 3


def test_mixture(seqio, tasks):
  names = []
  for name in DIFFICULTIES:
    names.append(_add_warmup(tasks, name, num_lines=100).name)
  for _ in range(2):
    mixture = tasks.add_mixture("qstar_warmup", dict.fromkeys(names, 1.0))
  found = _numpy(
    mixture.get_dataset(
      tasks.feature_lengths(TEXT), seed=3, shuffle=True, num_epochs=1
    )
  )
  by_task = [
    {_content(e)[0] for e in _numpy(task.get_dataset())}
    for task in mixture.tasks
  ]
  counts = [sum(_content(e)[0] in own for e in found) for own in by_task]
  assert min(counts) > 20


def _tree(domain, vocabulary, line, sequence):
  """A tree that committed to a line, with one other candidate at each node."""
  prompt_tokens, step_tokens = encode_line(
    vocabulary, line.problem.prompt, line.steps, is_finished=line.is_finished
  )
  n = len(step_tokens)
  shape = (n, 2)
  other = [13]
  tokens, length = [], np.ones(shape, np.int32)
  column = np.arange(n) % 2
  for row, step in enumerate(step_tokens):
    pair = [other, other]
    pair[column[row]] = step
    length[row] = [len(part) for part in pair]
    tokens += pair[0] + pair[1]
  is_correct = line.bad_step is None
  legal = np.ones(shape, np.int8)
  ended = np.zeros(shape, bool)
  ended[n - 1, column[n - 1]] = line.is_finished
  if line.bad_step is not None and not line.is_aimless:
    legal[line.bad_step, column[line.bad_step]] = 0
  zeros = np.zeros(shape, np.float32)
  return TreeRecord(
    domain=domain.name,
    domain_version=1,
    problem_key=line.problem.key,
    prompt=line.problem.prompt,
    actor_id=0,
    sequence=sequence,
    params_version=0,
    terminal_value="value",
    temperature=1.0,
    prompt_tokens=np.array(prompt_tokens, np.int32),
    node_parent=np.arange(-1, n - 1, dtype=np.int32),
    node_candidate=np.array([-1, *column[:-1]], np.int32),
    node_value=np.zeros(n, np.float32),
    tokens=np.array(tokens, np.int32),
    length=length,
    count=np.ones(shape, np.int32),
    log_prob=zeros,
    proposal_log_prob=zeros,
    value=zeros,
    prm=zeros,
    ended=ended,
    visits=np.ones(shape, np.int32),
    q=zeros,
    legal=legal,
    outcome=np.full(shape, -1, np.int8),
    score=zeros,
    committed_node=np.arange(n, dtype=np.int32),
    committed_candidate=column.astype(np.int32),
    final_outcome=int(Outcome.CORRECT if is_correct else Outcome.WRONG),
    final_score=float(is_correct),
  )


@pytest.fixture
def played(tmp_path):
  """A store of 24 trees, and the lines that they committed to."""
  problems = _problems()
  found = []
  with ReplayWriter(tmp_path / "replay", shard_trees=5) as writer:
    for i in range(24):
      rng = np.random.default_rng(i)
      line = draw_line(problems, rng, [2], 0.6)
      if line.bad_step is not None:  # Play stops at an illegal step.
        steps = line.steps[: line.bad_step + 1]
        is_finished = line.is_finished and len(steps) == len(line.steps)
        line = dataclasses.replace(line, steps=steps, is_finished=is_finished)
      writer.append(_tree(problems.domain, BYTES, line, i))
      found.append(line)
  return tmp_path / "replay", found


def test_trajectories(seqio, tasks, played):
  store, found = played
  task = tasks.add_trajectories(make_domain("countdown"), store, BYTES)
  assert task.name == "qstar_countdown_trajectories"
  _check_sharding(seqio, task)
  rows = _rows(seqio, tasks, task.name)
  assert len(rows["tokens"]) == len(found)
  for row, line in enumerate(found):
    tokens = rows["tokens"][row, : rows["length"][row]].tolist()
    prompt, steps = encode_line(
      BYTES, line.problem.prompt, line.steps, is_finished=line.is_finished
    )
    assert tokens == [*prompt, *itertools.chain(*steps)]
    is_solved = float(line.bad_step is None)
    is_step = np.arange(len(rows["tokens"][row])) >= len(prompt)
    is_step &= np.arange(len(is_step)) < rows["length"][row]
    np.testing.assert_array_equal(
      rows["policy_weight"][row], is_step * is_solved
    )
    ends = np.cumsum([len(prompt), *map(len, steps)])[1:] - 1
    np.testing.assert_array_equal(
      np.flatnonzero(rows["value_weight"][row]), ends
    )
    assert (rows["value_target"][row, ends] == is_solved).all()
    labelled = ends if is_solved else ends[-1:]
    np.testing.assert_array_equal(
      np.flatnonzero(rows["prm_weight"][row]), labelled
    )
    assert (rows["prm_target"][row, labelled] == is_solved).all()


def test_solved_trajectories(tasks, played):
  store, found = played
  task = tasks.add_trajectories(
    make_domain("countdown"), store, BYTES, solved_only=True
  )
  solved = [line for line in found if line.bad_step is None]
  assert 0 < len(solved) < len(found)
  prompts = [
    e["inputs_pretokenized"].decode()
    for e in _numpy(task.get_dataset(shuffle=False))
  ]
  assert prompts == [line.problem.prompt for line in solved]


def test_store_of_another_run(tasks, played):
  store, found = played
  with pytest.raises(UserError):
    tasks.add_trajectories(make_domain("countdown"), store / "no", BYTES)
  task = tasks.add_trajectories(make_domain("game24"), store, BYTES)
  with pytest.raises(Exception, match="tree of countdown, not game24"):
    _numpy(task.get_dataset())
  tree = _tree(make_domain("countdown"), BYTES, found[0], 0)
  with pytest.raises(UserError, match="do not spell"):
    examples.from_tree(tree, _vocabulary("sentencepiece"))


@pytest.fixture
def small_data_dir(data_dir, tmp_path):
  """The data with a few hundred steps of PRM800K, held-out ones among them."""
  for folder in ("math", "prmbench"):
    (tmp_path / folder).symlink_to(data_dir / folder)
  (tmp_path / "prm800k").mkdir()
  for split in ("train", "test"):
    name = f"prm800k/phase1_{split}_steps.jsonl.gz"
    with (
      gzip.open(data_dir / name) as source,
      gzip.open(tmp_path / name, "wb") as copy,
    ):
      copy.writelines(
        itertools.islice(source, 0, None, 12 if split == "test" else 120)
      )
  return tmp_path


def _lines_of_prm800k(folder, split):
  """What the task should hold: labelled lines without the held-out problems."""
  path = folder / f"prm800k/phase1_{split}_steps.jsonl.gz"
  keys = splits_of_others.held_out_keys(folder) if split == "train" else ()
  return [
    line
    for line in prm800k.read(path, Report(), neutral=0.25)
    if line.problem_key not in keys and line.label[-1] != -1
  ]


@pytest.mark.parametrize("split", ["train", "test"])
def test_prm800k(seqio, tasks, small_data_dir, split):
  task = tasks.add_prm800k(small_data_dir, BYTES, neutral=0.25)
  assert task.name == "qstar_prm800k"
  found = _numpy(task.get_dataset(split=split, shuffle=False))
  expected = _lines_of_prm800k(small_data_dir, split)
  assert 100 < len(found) == len(expected) < 450
  for e, line in zip(found, expected, strict=True):
    text = "\n".join(line.steps) + ("" if line.is_finished else "\n")
    assert BYTES.decode(e["targets"]) == text
    assert BYTES.decode(e["inputs"]) == line.prompt
    # Every line has one label, at its last token, and no value.
    (place,) = np.flatnonzero(e["prm_weight"])
    assert place == len(e["targets"]) - 1
    assert e["prm_target"][place] == line.label[-1]
    # Its step is imitated as far as it is right.
    begin = len("".join(f"{step}\n" for step in line.steps[:-1]).encode())
    expected_weight = np.zeros(len(e["targets"]), np.float32)
    expected_weight[begin:] = line.label[-1]
    np.testing.assert_array_equal(e["policy_weight"], expected_weight)
    assert not e["value_weight"].any()
  shards = _shards(seqio, task, 2, split=split, shuffle=False)
  assert sorted(itertools.chain(*shards)) == sorted(map(_content, found))


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_vocabulary(seqio, tasks, kind):
  ours = _vocabulary(kind)
  theirs = tasks.Vocabulary(ours)
  assert theirs == tasks.Vocabulary(ours)
  assert hash(theirs) == hash(tasks.Vocabulary(ours))
  assert (theirs != tasks.Vocabulary(BYTES)) == (kind != "bytes")
  assert theirs.vocab_size == ours.size
  assert (theirs.pad_id, theirs.eos_id, theirs.unk_id) == (0, 1, 2)
  rng = np.random.default_rng(0)
  for _ in range(50):
    line = draw_line(_problems(), rng, [2], 0.5)
    prompt, steps = encode_line(
      ours, line.problem.prompt, line.steps, is_finished=True
    )
    text = line.problem.prompt + "\n".join(line.steps)
    tokens = [*prompt, *itertools.chain(*steps)]
    assert [*theirs.encode(text), 1] == tokens
    assert theirs.decode(tokens) == theirs.decode([*tokens, 0, 5]) == text
    np.testing.assert_array_equal(theirs.encode_tf(text), tokens[:-1])
    assert theirs.decode_tf(np.array(tokens)).numpy().decode() == text
  batch = np.array([[*tokens, 0], [*tokens, 9]], np.int32)
  texts = theirs.decode_tf(batch).numpy().tolist()
  assert texts[1] == text.encode()
  assert theirs.encode("") == []


def test_solve_rate(seqio, tasks):
  """Through seqio's own metric machinery, from tokens to shares."""
  task = _add_warmup(tasks, num_lines=40, corrupt_share=0.0)
  found = _numpy(task.get_dataset(shuffle=False))
  vocabulary = task.output_features["targets"].vocabulary
  domain = make_domain("countdown")
  targets, predictions = [], []
  for i, e in enumerate(found):
    text = vocabulary.decode(e["targets"].tolist())
    said = [text, "x", "", text + "\n"][i % 4]
    targets.append(task.postprocess_fn(text, example=e, is_target=True))
    predictions.append(task.postprocess_fn(said, example=e, is_target=False))
  assert [domain.parse(t).prompt for t in targets] == targets
  (metric,) = task.predict_metric_fns
  assert metric(targets, predictions) == {"solve_rate": 0.25, "score": 0.25}


def test_figures_of_steps_that_people_rated(seqio, tasks, small_data_dir):
  """Scores of all target tokens; those with a label count, and no others."""
  task = tasks.add_prm800k(small_data_dir, BYTES)
  found = _numpy(task.get_dataset(split="test", shuffle=False))
  targets = [task.postprocess_fn("", example=e, is_target=True) for e in found]
  (metric,) = task.score_metric_fns
  labels = [label for label, _ in targets]
  perfect = metric(targets, labels)
  assert perfect == {"auroc": 1.0, "brier": 0.0, "ece": 0.0}
  wrong = metric(targets, [1 - label for label in labels])
  assert wrong == {"auroc": 0.0, "brier": 1.0, "ece": 1.0}
  # What has no label may be scored anyhow.
  marked = [np.where(weight > 0, label, 0.7) for label, weight in targets]
  assert metric(targets, marked) == perfect
  with pytest.raises(ValueError, match="give one of each"):
    metric(targets, labels[:-1])
