"""Roll-outs of a policy whose chances are known."""

import dataclasses

import jax
import numpy as np
import pytest

from qstar_jax.config import LabelsConfig, MeshConfig, ModelConfig, TextConfig
from qstar_jax.distributed.mesh import make_mesh
from qstar_jax.labels import binary_search, rollouts
from qstar_jax.labels.lines import Line
from qstar_jax.labels.rollouts import Prefix
from qstar_jax.model.transformer import init_model
from qstar_jax.records import NO_LABEL, Outcome, Problem, StepCheck, Verdict
from qstar_jax.text.vocabulary import Vocabulary

K, MAX_STEPS = 8, 4
TEXT = TextConfig(max_prompt_tokens=1, max_step_tokens=1, max_steps=MAX_STEPS)
MODEL = ModelConfig(
  num_layers=1, model_dim=4, num_heads=1, num_kv_heads=1, head_dim=4, ffn_dim=4
)
PROBLEM = Problem("letters", "?\n", "?", {}, 1)


class Letters(Vocabulary):
  """Six tokens: two that are no step, the end, and the steps `a`, `b`, `?`."""

  def __init__(self):
    super().__init__([b"\xff", b"", b"\xff", b"a\n", b"b\n", b"?\n"])

  def encode(self, text):
    return [3 + "ab?".index(letter) for letter in text if letter != "\n"]

  def to_bytes(self):
    return b"letters"

  def _text_bytes(self, pieces):
    return pieces


@dataclasses.dataclass(frozen=True)
class AnA:
  """Solved are finished lines with an `a`. Its rules call every step wrong."""

  name = "letters"
  version = 1

  def check_step(self, problem, steps, step):
    return StepCheck(is_legal=False, is_terminal=False, reason="never")

  def verify(self, problem, steps):
    is_solved = "a" in steps and steps[-1] == ""
    outcome = Outcome.CORRECT if is_solved else Outcome.WRONG
    return Verdict(outcome, float(is_solved))


def chance(steps):
  """P(solved) of a policy that takes all six tokens equally often."""
  if len(steps) == MAX_STEPS:
    return 0.0
  ends = float("a" in steps)
  return (ends + sum(chance((*steps, s)) for s in "ab?")) / 6


@pytest.fixture(scope="module")
def rollout_fn():
  graphdef, params = init_model(MODEL, 6, seed=0)
  return rollouts.make_rollout_fn(
    graphdef,
    # No weights, no preferences.
    jax.tree.map(np.zeros_like, params),
    AnA(),
    Letters(),
    model=MODEL,
    text=TEXT,
    num_rollouts=K,
    num_trees=32,
    mesh=make_mesh(MeshConfig(), jax.devices()[:1]),
  )


def lines_of(texts, num_lines=1):
  return [
    Line(i, PROBLEM, tuple(texts), is_finished=False, origin=f"line {i}")
    for i in range(num_lines)
  ]


def label(rollout_fn, lines, kind="soft", seed=0):
  return list(
    rollouts.label_lines(
      rollout_fn, lines, kind=kind, seed=seed, params_version=5
    )
  )


def assert_binomial(solved_shares, p, num_samples):
  """Shares of independent samples, each solved with probability p."""
  variance = p * (1 - p) / num_samples
  error = np.sqrt(variance / len(solved_shares))
  assert abs(np.mean(solved_shares) - p) < 4 * error
  ratio = np.var(solved_shares) / variance
  assert abs(ratio - 1) < 4 * np.sqrt(2 / len(solved_shares))


def test_soft_labels_are_unbiased_and_their_samples_independent(rollout_fn):
  steps = ("b", "a", "?")
  found = label(rollout_fn, lines_of(steps, 400))
  labels = np.array([line.label for line in found])
  for i in range(len(steps)):
    p = chance(steps[: i + 1])
    assert 0 < p < 1
    assert_binomial(labels[:, i], p, K)
  # Nor do the steps of a line share any numbers.
  errors = np.corrcoef(labels.T)[np.triu_indices(3, 1)]
  assert abs(errors).max() < 4 / np.sqrt(len(found))


def test_hard_labels_say_whether_any_is_solved(rollout_fn):
  lines = lines_of(("a", "?"), 200)
  hard = label(rollout_fn, lines, "hard")
  soft = label(rollout_fn, lines, "soft")
  for one, other in zip(hard, soft, strict=True):
    np.testing.assert_array_equal(one.label, other.label > 0)
  p = 1 - (1 - chance(("a",))) ** K
  assert_binomial([line.label[0] for line in hard], p, 1)


def test_steps_before_the_first_cost_nothing_and_change_nothing(rollout_fn):
  lines = lines_of(("a", "b", "?"), 8)
  whole = label(rollout_fn, lines)
  part = label(rollout_fn, [line._replace(begin=2) for line in lines])
  for one, other in zip(whole, part, strict=True):
    assert other.label[:2].tolist() == [NO_LABEL] * 2
    assert other.label[2] == one.label[2] != NO_LABEL
    assert 0 < other.tokens < one.tokens


def test_the_record(rollout_fn):
  line = Line(3, PROBLEM, ("a", "b", ""), is_finished=True, origin="here")
  (record,) = label(rollout_fn, [line], "hard")
  assert record.domain == "letters"
  assert (record.problem_key, record.prompt) == ("?", "?\n")
  assert (record.steps, record.is_finished) == (line.steps, True)
  assert (record.kind, record.source) == ("hard", "rollouts_hard")
  assert (record.params_version, record.origin) == (5, "here")
  assert record.label.dtype == np.float32


def test_labels_do_not_depend_on_the_batch(rollout_fn):
  rng = np.random.default_rng(0)
  lines = [
    Line(i, PROBLEM, tuple(rng.choice([*"ab?"], n).tolist()), False)
    for i, n in enumerate(rng.integers(1, 5, 40))
  ]
  together = label(rollout_fn, lines)
  assert [line.steps for line in together] == [line.steps for line in lines]
  for i in (0, 17, 39):
    (alone,) = label(rollout_fn, lines[i : i + 1])
    np.testing.assert_array_equal(alone.label, together[i].label)
    assert alone.tokens == together[i].tokens
  others = label(rollout_fn, lines, seed=1)
  assert any(
    (a.label != b.label).any() for a, b in zip(together, others, strict=True)
  )


def test_samples_begin_with_their_prefix_and_every_token_counts(rollout_fn):
  prefixes = [
    Prefix(PROBLEM, steps, False, seed)
    for seed, steps in enumerate([(), ("a",), ("b", "?"), ("a", "b", "?")])
  ]
  for prefix, found in zip(prefixes, rollout_fn(prefixes), strict=True):
    num_given = len(prefix.steps)
    assert len(found.samples) == K
    generated = 0
    for sample in found.samples:
      assert sample.steps[:num_given] == prefix.steps
      assert num_given < len(sample.steps) <= MAX_STEPS
      assert sample.is_finished == (sample.steps[-1] == "")
      verdict = AnA().verify(PROBLEM, sample.steps)
      assert sample.is_solved == (verdict.score == 1)
      generated += len(sample.steps) - num_given
    assert found.tokens == 1 + num_given + generated
    assert any(s.is_finished for s in found.samples)


def test_what_nothing_can_follow_stands_as_it_is(rollout_fn):
  lines = [
    Line(0, PROBLEM, ("a", ""), is_finished=True),
    Line(1, PROBLEM, ("b", ""), is_finished=True),
    Line(2, PROBLEM, ("a", "b", "b", "b"), is_finished=False),
  ]
  right, wrong, endless = label(rollout_fn, lines)
  assert right.label[-1] == 1
  assert wrong.label[-1] == 0
  assert endless.label[-1] == 0
  prefix = Prefix(PROBLEM, ("a", ""), True, 0)
  assert next(rollout_fn([prefix])).tokens == 0


def test_what_the_network_cannot_read_has_no_label(rollout_fn):
  # Seven tokens in one step, where a line has room for four before the last.
  (record,) = label(rollout_fn, lines_of(("a", "bbbbbbb", "a")))
  assert record.label[0] != NO_LABEL
  np.testing.assert_array_equal(record.label[1:], NO_LABEL)


def test_bisection_by_the_network_does_not_depend_on_the_batch(rollout_fn):
  lines = [
    Line(i, PROBLEM, steps, is_finished="" in steps)
    for i, steps in enumerate([("b", "b", "?", ""), ("a", ""), (), ("a", "b")])
  ]

  def search(batch_size, lines):
    return list(
      binary_search.label_lines(
        rollout_fn,
        lines,
        config=LabelsConfig(num_rollouts=K, budget=6),
        kind="soft",
        max_steps=MAX_STEPS,
        batch_size=batch_size,
        seed=0,
        params_version=5,
      )
    )

  together = search(3, lines)
  alone = [record for line in lines for record in search(1, [line])]
  assert len(together) == len(alone) > 3
  for one, other in zip(together, alone, strict=True):
    assert (one.steps, one.tokens) == (other.steps, other.tokens)
    np.testing.assert_array_equal(one.label, other.label)
