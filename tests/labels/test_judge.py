"""The network as judge: against a full pass, and taught by a few labels."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qstar_jax.config import (
  JudgeConfig,
  LearnerConfig,
  MeshConfig,
  ModelConfig,
  TextConfig,
)
from qstar_jax.distributed.mesh import make_mesh
from qstar_jax.domains.countdown import Countdown
from qstar_jax.labels.judge import Questions, label_lines, verdict_rows
from qstar_jax.labels.lines import Line, labelled
from qstar_jax.learner import rows as learner_rows
from qstar_jax.learner import train_step
from qstar_jax.model.transformer import init_model
from qstar_jax.records import NO_LABEL, Problem
from qstar_jax.text.training import train_sentencepiece
from qstar_jax.text.vocabulary import ByteVocabulary

MODEL = ModelConfig(
  num_layers=2,
  model_dim=16,
  num_heads=2,
  num_kv_heads=1,
  head_dim=8,
  ffn_dim=24,
)
TEXT = TextConfig(max_prompt_tokens=8, max_step_tokens=8, max_steps=3)
BYTES = ByteVocabulary()
CONFIG = JudgeConfig(prompts=("ok?", "is it right?"), right="yes", wrong="no")
QUESTIONS = Questions(CONFIG, BYTES, TEXT)
LINES = [
  Line(0, Problem("made_up", "3 4\n", "3 4", {}, 1), ("3+4=7", "7"), True, "x"),
  Line(1, Problem("made_up", "1 1\n", "1 1", {}, 1), ("1+1",), False),
  Line(2, Problem("made_up", "9\n", "9", {}, 1), ("9", "8", "7"), False),
]


def record(line, label):
  return labelled(
    line, label, kind="hard", source="checked", params_version=-1, tokens=0
  )


@pytest.fixture(scope="module")
def network():
  graphdef, params = init_model(MODEL, BYTES.size, seed=0)
  rng = np.random.default_rng(0)
  return graphdef, jax.tree.map(
    lambda x: x + 0.5 * rng.standard_normal(x.shape, np.float32), params
  )


def judge(network, lines, batch_size=4, questions=QUESTIONS):
  return list(
    label_lines(
      *network,
      lines,
      questions=questions,
      batch_size=batch_size,
      params_version=3,
    )
  )


def test_labels_are_those_of_a_full_pass(network):
  graphdef, params = network

  @jax.jit
  def full(tokens_T):
    model = nnx.merge(graphdef, params)
    return model.logits(model.forward(tokens_T[None]))[0]

  labels = []
  for line, found in zip(LINES, judge(network, LINES), strict=True):
    num_tokens = 0
    for i in range(len(line.steps)):
      shares = []
      for question in CONFIG.prompts:
        p = {}
        for verdict in (CONFIG.right, CONFIG.wrong):
          steps = "".join(f"{step}\n" for step in line.steps[: i + 1])
          before = f"{line.problem.prompt}{steps}{question}\n"
          tokens = [*BYTES.encode(before + verdict), BYTES.eos_id]
          padded = np.zeros(64, np.int32)
          padded[: len(tokens)] = tokens
          logits = np.asarray(full(padded), np.float64)
          log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
          at = range(len(BYTES.encode(before)), len(tokens))
          p[verdict] = np.exp(sum(log_probs[t - 1, tokens[t]] for t in at))
          num_tokens += len(tokens)
        shares.append(p["yes"] / (p["yes"] + p["no"]))
      np.testing.assert_allclose(found.label[i], np.mean(shares), atol=1e-4)
      labels.append(found.label[i])
    assert found.tokens == num_tokens
    assert (found.steps, found.is_finished) == (line.steps, line.is_finished)
    assert (found.kind, found.source) == ("soft", "judge")
    assert (found.params_version, found.origin) == (3, line.origin)
  assert np.ptp(labels) > 0.01


def test_labels_do_not_depend_on_the_batch(network):
  together = judge(network, LINES, batch_size=5)
  for batch_size in (1, 64):
    for one, other in zip(
      judge(network, LINES[::-1], batch_size), together[::-1], strict=True
    ):
      assert one.steps == other.steps
      np.testing.assert_allclose(one.label, other.label, atol=1e-6)


def test_steps_before_the_first_are_not_asked_about(network):
  whole = judge(network, LINES)
  begins = (1, 0, 2)
  part = judge(
    network,
    [
      line._replace(begin=begin)
      for line, begin in zip(LINES, begins, strict=True)
    ],
  )
  for one, other, begin in zip(whole, part, begins, strict=True):
    assert other.label[:begin].tolist() == [NO_LABEL] * begin
    np.testing.assert_allclose(
      one.label[begin:], other.label[begin:], atol=1e-6
    )
    assert (one.tokens > other.tokens) == (begin > 0)


def test_what_does_not_fit_is_not_judged(network):
  steps = ("1", "2" * (TEXT.max_line_tokens - 6), "3", "4")
  long = LINES[0]._replace(steps=steps)
  first, short = judge(network, [long, LINES[0]])
  assert len(BYTES.encode("3 4\n1\n" + steps[1] + "\n")) == 33
  np.testing.assert_array_equal(first.label[1:], NO_LABEL)
  assert 0 < first.label[0] < 1
  (alone,) = judge(network, [LINES[0]])
  np.testing.assert_allclose(short.label, alone.label, atol=1e-6)


def test_rows_weigh_the_verdict_and_nothing_else():
  line = record(LINES[0], [0.25, NO_LABEL])
  other = record(LINES[1], [0.0])
  rows = verdict_rows([line, other], QUESTIONS)
  expected = [
    ("3 4\n3+4=7\nok?\n", "yes", 0.25),
    ("3 4\n3+4=7\nis it right?\n", "yes", 0.25),
    ("3 4\n3+4=7\nok?\n", "no", 0.75),
    ("3 4\n3+4=7\nis it right?\n", "no", 0.75),
    ("1 1\n1+1\nok?\n", "no", 1.0),
    ("1 1\n1+1\nis it right?\n", "no", 1.0),
  ]
  assert rows.tokens.shape == (6, 32 + len("is it right?\n") + len("yes") + 1)
  for i, (before, verdict, weight) in enumerate(expected):
    tokens = [*BYTES.encode(before + verdict), BYTES.eos_id]
    assert rows.tokens[i, : len(tokens)].tolist() == tokens
    assert not rows.tokens[i, len(tokens) :].any()
    weights = np.zeros(rows.tokens.shape[1], np.float32)
    weights[len(before) : len(tokens)] = weight
    np.testing.assert_array_equal(rows.policy_weight[i], weights)
  assert not rows.value_weight.any()
  assert not rows.prm_weight.any()
  for field in dataclasses.fields(rows):
    value = getattr(rows, field.name)
    if value is None:
      continue
    is_index = field.name == "tokens"
    assert value.dtype == (np.int32 if is_index else np.float32)


# A network that does not know what the question means, and learns it.

DOMAIN = Countdown(max_number=2, max_target=20)


def checked_lines(num_lines):
  """Random play, half of it with a mistake, labelled by the rules."""
  rng = np.random.default_rng(0)
  records = []
  for i in range(num_lines):
    problem, steps = DOMAIN.random_play(rng, 2)
    label = [1.0] * len(steps)
    if i % 2:
      steps, bad = DOMAIN.corrupt(rng, problem, steps)
      label = [1.0] * bad + [0.0]
    records.append(record(Line(i, problem, steps, False), label))
  return records


def auroc(score, label):
  """P(the score of a right step is above that of a wrong one), ties half."""
  right, wrong = score[label == 1], score[label == 0]
  greater = (right[:, None] > wrong[None]).mean()
  return greater + (right[:, None] == wrong[None]).mean() / 2


def fine_tune(graphdef, params, rows, num_steps):
  """Gradient steps of the learner on verdicts alone."""
  config = LearnerConfig(learning_rate=3e-3, warmup_steps=20)
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  optimizer = train_step.make_optimizer(config, num_steps)
  state = train_step.init_state(
    jax.tree.map(jnp.copy, params), optimizer, config, mesh
  )
  take_steps = train_step.make_train_steps(graphdef, optimizer, config, mesh)
  rng = np.random.default_rng(0)
  batches = [
    learner_rows.take(rows, rng.integers(len(rows.tokens), size=64), 64)
    for _ in range(num_steps)
  ]
  state, _ = take_steps(state, train_step.put_batches(batches, mesh))
  return state.params


def test_a_twentieth_of_the_labels_teaches_the_verdict():
  records = checked_lines(8000)
  checked, others = records[:400], records[400:]
  seen = {(line.prompt, line.steps) for line in checked}
  held_out = [x for x in others if (x.prompt, x.steps) not in seen][:300]
  corpus = itertools.chain(*([x.prompt, *x.steps] for x in records))
  vocabulary = train_sentencepiece(corpus, 450)
  text = TextConfig(max_prompt_tokens=8, max_step_tokens=13, max_steps=2)
  questions = Questions(JudgeConfig(), vocabulary, text)
  rows = verdict_rows(checked, questions)
  assert len(rows.tokens) == sum(len(line.steps) for line in checked)

  def quality(network):
    lines = [
      Line(i, DOMAIN.parse(x.prompt), x.steps, x.is_finished)
      for i, x in enumerate(held_out)
    ]
    found = judge(network, lines, 256, questions)
    score = np.concatenate([line.label for line in found])
    return auroc(score, np.concatenate([line.label for line in held_out]))

  model = dataclasses.replace(MODEL, model_dim=32, head_dim=32, ffn_dim=64)
  graphdef, params = init_model(model, vocabulary.size, seed=0)
  assert abs(quality((graphdef, params)) - 0.5) < 0.15
  taught = fine_tune(graphdef, params, rows, num_steps=200)
  assert quality((graphdef, taught)) > 0.75
