"""Hindsight lines: their labels against the verifier, and what they hide."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from qstar_jax.config import TextConfig, WarmStartConfig
from qstar_jax.domains import make_domain, splits
from qstar_jax.errors import UserError
from qstar_jax.records import Outcome
from qstar_jax.text.steps import decode_line, split_steps
from qstar_jax.text.vocabulary import ByteVocabulary
from qstar_jax.training import hindsight, setup

pytest_plugins = ["tests.training.micro_run"]

_VOCABULARY = ByteVocabulary()
_OPTIONS = {"countdown": {"min_number": 1, "max_number": 4, "max_target": 16}}
_DIFFICULTIES = {"countdown": [1, 2], "arithmetic": [1, 2, 3], "game24": [3]}
# Room for every step of these domains, and too little for some.
_WIDE = TextConfig(max_prompt_tokens=24, max_step_tokens=40, max_steps=4)
_NARROW = TextConfig(max_prompt_tokens=24, max_step_tokens=19, max_steps=4)


@functools.cache
def _problems(name="countdown", num_held_out=20):
  domain = make_domain(name, _OPTIONS.get(name))
  difficulties = _DIFFICULTIES[name]
  held_out = splits.held_out(
    domain,
    min_difficulty=difficulties[0],
    max_difficulty=difficulties[-1],
    num_problems=num_held_out,
    seed=0,
  )
  return splits.TrainingProblems.without(domain, held_out)


def _batch(problems, seed, *, corrupt_share=0.5, text=_WIDE, num_rows=16):
  return hindsight.make_batch(
    problems,
    _VOCABULARY,
    np.random.default_rng(seed),
    config=WarmStartConfig(corrupt_share=corrupt_share),
    text=text,
    difficulties=_DIFFICULTIES[problems.domain.name],
    num_rows=num_rows,
  )


def _rows(batch):
  """Every row as (problem text, steps, finished, labels, policy weights).

  Labels and weights are per step: None where there is no label.
  """
  for row, length in enumerate((batch.last > 0).sum(axis=1)):
    tokens = batch.tokens[row, :length].tolist()
    prompt, steps, finished = decode_line(_VOCABULARY, tokens)
    pieces = split_steps(tokens, _VOCABULARY.ends_step)
    ends = np.cumsum([len(piece) for piece in pieces])
    is_labelled = np.zeros(batch.tokens.shape[1], bool)
    is_labelled[ends[1:] - 1] = True
    # Weights stand at the ends of steps and nowhere else.
    assert not batch.prm_weight[row][~is_labelled].any()
    assert not batch.policy_weight[row, : ends[0]].any()
    labels, policy = [], []
    for start, end in itertools.pairwise(ends):
      at = row, end - 1
      # One label serves both heads.
      assert batch.prm_weight[at] == batch.value_weight[at]
      assert batch.prm_target[at] == batch.value_target[at]
      has_label = batch.prm_weight[at] > 0
      labels.append(batch.prm_target[at] if has_label else None)
      policy.append(set(batch.policy_weight[row, start:end].tolist()))
    yield prompt.removesuffix("\n"), steps, finished, labels, policy


@pytest.mark.parametrize("name", _DIFFICULTIES)
@given(seed=st.integers(0, 2**32))
def test_labels_are_what_the_verifier_says(name, seed):
  problems = _problems(name)
  domain = problems.domain
  batch = _batch(problems, seed, num_rows=4)
  for text, steps, finished, labels, policy in _rows(batch):
    problem = domain.parse(text)
    for i, (label, weights) in enumerate(zip(labels, policy, strict=True)):
      check = domain.check_step(problem, steps[:i], steps[i])
      assert weights == {1.0 if check.is_legal else 0.0}
      if label == 1:
        assert domain.solvable(problem, steps[: i + 1])
    if labels[-1] == 1:
      assert finished
      assert domain.verify(problem, steps).outcome == Outcome.CORRECT
    else:
      assert labels[-1] == 0  # Nothing stands after the bad step.
      check = domain.check_step(problem, steps[:-1], steps[-1])
      assert not check.is_legal or (
        finished and domain.verify(problem, steps).outcome != Outcome.CORRECT
      )


def test_a_step_that_is_too_long_is_cut_and_wrong():
  """As it is in a search; the line goes on no further."""
  num_cut = 0
  for seed in range(20):
    batch = _batch(
      _problems(), seed, text=_NARROW, corrupt_share=1.0, num_rows=8
    )
    for row, (*_, labels, _) in enumerate(_rows(batch)):
      last = batch.tokens[row, batch.last[row, 0]]
      if not _VOCABULARY.ends_step[last]:
        num_cut += 1
        assert labels[-1] == 0
  assert num_cut > 0


def test_a_right_line_that_no_search_could_write_is_left_out():
  limit, longest = 21, []
  for text in (_WIDE, dataclasses.replace(_WIDE, max_step_tokens=limit)):
    batches = [
      _batch(_problems(), seed, text=text, corrupt_share=0.0)
      for seed in range(20)
    ]
    rows = [row for batch in batches for row in _rows(batch)]
    assert len(rows) == 20 * 16
    assert {label for *_, labels, _ in rows for label in labels} == {1.0}
    steps = [step for _, steps, *_ in rows for step in steps]
    longest.append(max(len(_VOCABULARY.encode_step(s, True)) for s in steps))
  assert longest[0] > limit >= longest[1]


@pytest.mark.parametrize(
  "limit", [{"max_step_tokens": 3}, {"max_prompt_tokens": 3}]
)
def test_no_line_fits(limit):
  text = dataclasses.replace(_WIDE, **limit)
  with pytest.raises(UserError, match="0 of 1600 lines of random play fit"):
    _batch(_problems(), 0, text=text, corrupt_share=0.0)


def test_shares():
  """Half of the wrong lines break a rule; the others miss the goal."""
  problems = _problems()
  kinds = {"right": 0, "mistake": 0, "aimless": 0}
  for seed in range(30):
    for *_, labels, _ in _rows(_batch(problems, seed, corrupt_share=0.6)):
      is_right = labels[-1] == 1
      is_aimless = not is_right and None in labels[:-1] + [None] * (
        len(labels) == 1
      )
      kind = "aimless" if is_aimless else "mistake"
      kinds["right" if is_right else kind] += 1
  total = sum(kinds.values())
  assert total == 30 * 16
  # Aimless lines solve the problem now and then.
  assert 0.36 < kinds["right"] / total < 0.55
  for *_, labels, _ in _rows(_batch(problems, 0, corrupt_share=0.0)):
    assert set(labels) == {1.0}


def test_a_domain_that_makes_no_mistakes_is_refused(micro_config, tmp_path):
  """With a line that says what to write or to set."""

  class Minimal:
    def __init__(self, domain):
      self._domain = domain

    def __getattr__(self, name):
      if name in ("corrupt", "legal_steps"):
        raise AttributeError(name)
      return getattr(self._domain, name)

  def begin(config):
    mesh, _ = setup.make_meshes(config.mesh)
    return setup.begin(config, epath.Path(tmp_path), mesh, lambda: None)

  make = setup.make_domain
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(setup, "make_domain", lambda *args: Minimal(make(*args)))
    with pytest.raises(UserError, match="no method corrupt; write it"):
      begin(micro_config)
    warm_start = dataclasses.replace(micro_config.warm_start, corrupt_share=0.0)
    begin(dataclasses.replace(micro_config, warm_start=warm_start))


def test_no_held_out_problem_appears():
  problems = _problems(num_held_out=40)
  seen = set()
  for seed in range(40):
    for text, *_ in _rows(_batch(problems, seed)):
      problem = problems.domain.parse(text)
      assert not problems.is_held_out(problem)
      seen.add(problem.key)
  assert len(seen) > 40
  # Were nothing held out, such problems would come.
  everything = splits.TrainingProblems.without(problems.domain, [])
  texts = [
    text for seed in range(10) for text, *_ in _rows(_batch(everything, seed))
  ]
  assert any(problems.is_held_out(problems.domain.parse(t)) for t in texts)


def test_the_corpus_of_a_vocabulary_is_free_of_them_too():
  problems = _problems(num_held_out=40)
  lines = hindsight.random_lines(
    problems, np.random.default_rng(0), [1, 2], 300
  )
  prompts = [line for line in lines if line.endswith("\n")]
  # A fifth as many sampled problems stand among those that were reached.
  assert len(prompts) == 360
  assert len(lines) >= 300 + 360
  assert not any(
    problems.is_held_out(problems.domain.parse(prompt.strip()))
    for prompt in prompts
  )


def test_a_batch_is_determined_by_its_rng():
  problems = _problems()
  first, again, other = (_batch(problems, seed) for seed in (1, 1, 2))
  assert np.array_equal(first.tokens, again.tokens)
  assert np.array_equal(first.prm_target, again.prm_target)
  assert not np.array_equal(first.tokens, other.tokens)
