"""What every domain promises, checked on every domain."""

import dataclasses
import inspect
import json
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from qstar_jax.domains import DOMAINS, make_domain
from qstar_jax.errors import UserError
from qstar_jax.records import Outcome

# Domain, options, difficulties that are fast to generate.
CASES = [
  ("arithmetic", {}, (1, 2, 4)),
  ("arithmetic", {"max_number": 20, "max_value": 500}, (3,)),
  ("countdown", {}, (1, 2, 3)),
  ("countdown", {"integers_only": False, "max_number": 6}, (2, 3)),
  ("game24", {}, (3,)),
  ("game24", {"integers_only": True}, (3,)),
]
over_cases = pytest.mark.parametrize(
  ("name", "options", "difficulties"), CASES, ids=lambda value: str(value)
)


def plays(domain, difficulties, num=20, seed=0):
  """Random plays over the difficulties."""
  rng = np.random.default_rng(seed)
  for difficulty in difficulties:
    for _ in range(num):
      yield *domain.random_play(rng, difficulty), rng


def test_every_domain_has_a_case():
  # Text has no problems of its own to be tried on: see test_text.py.
  assert {name for name, _, _ in CASES} == set(DOMAINS) - {"text"}


@over_cases
def test_sampled_problem_is_solved_by_the_solver(name, options, difficulties):
  domain = make_domain(name, options)
  rng = np.random.default_rng(0)
  for difficulty in difficulties:
    for _ in range(20):
      problem = domain.sample(rng, difficulty)
      assert problem.domain == domain.name
      assert problem.difficulty == difficulty
      assert domain.solvable(problem)
      solution = domain.solve(problem)
      verdict = domain.verify(problem, solution)
      assert verdict.outcome == Outcome.CORRECT, verdict.reason
      assert (verdict.score, verdict.reason) == (1.0, "")


@over_cases
def test_prompt_and_payload_rebuild_the_problem(name, options, difficulties):
  domain = make_domain(name, options)
  for problem, _, rng in plays(domain, difficulties):
    for each in (problem, domain.sample(rng, problem.difficulty)):
      assert each.prompt.endswith("\n")
      assert each.prompt.count("\n") == 1
      assert domain.parse(each.prompt) == each
      assert json.loads(json.dumps(each.payload)) == each.payload


@over_cases
def test_same_rng_same_result(name, options, difficulties):
  domain = make_domain(name, options)

  def results():
    rng = np.random.default_rng(3)
    problem, steps = domain.random_play(rng, difficulties[-1])
    corrupted = domain.corrupt(rng, problem, steps)
    return problem, steps, corrupted, domain.sample(rng, difficulties[-1])

  assert results() == results()


@over_cases
def test_random_play_is_a_correct_line(name, options, difficulties):
  domain = make_domain(name, options)
  for problem, steps, _ in plays(domain, difficulties):
    assert len(steps) == problem.difficulty
    for index, step in enumerate(steps):
      assert domain.solvable(problem, steps[:index])
      assert step in domain.legal_steps(problem, steps[:index])
      check = domain.check_step(problem, steps[:index], step)
      assert check.is_legal and check.reason == ""
      assert check.is_terminal == (index == len(steps) - 1)
    assert domain.verify(problem, steps).outcome == Outcome.CORRECT
    assert domain.answer(problem, steps)


@over_cases
def test_unfinished_and_overlong_lines_are_wrong(name, options, difficulties):
  domain = make_domain(name, options)
  for problem, steps, _ in plays(domain, difficulties):
    verdict = domain.verify(problem, steps[:-1])
    assert verdict.outcome == Outcome.WRONG
    assert verdict.reason.startswith("line ends with")
    assert domain.answer(problem, steps[:-1]) == ""

    check = domain.check_step(problem, steps, steps[-1])
    assert not check.is_legal and not check.is_terminal
    assert "the line is finished" in check.reason
    verdict = domain.verify(problem, (*steps, steps[-1]))
    assert (verdict.outcome, verdict.score) == (Outcome.WRONG, 0.0)
    assert domain.legal_steps(problem, steps) == []


@over_cases
def test_changed_result_is_refused(name, options, difficulties):
  domain = make_domain(name, options)
  for problem, steps, _ in plays(domain, difficulties):
    for index, step in enumerate(steps):
      equation, _, rest = step.partition(" (")
      line = (*steps[:index], f"{equation}0 ({rest}", *steps[index + 1 :])
      verdict = domain.verify(problem, line)
      # 00 and 10/30 are not numbers as the grammar writes them.
      assert verdict.outcome in (Outcome.WRONG, Outcome.UNPARSEABLE)
      assert verdict.reason.startswith(f"step {index + 1}: ")
      assert not domain.solvable(problem, line)


@over_cases
def test_corrupted_step_is_refused(name, options, difficulties):
  domain = make_domain(name, options)
  reasons, indices = set(), set()
  for problem, steps, rng in plays(domain, difficulties):
    for _ in range(5):
      line, index = domain.corrupt(rng, problem, steps)
      assert line[:index] == steps[:index]
      assert len(line) == index + 1
      check = domain.check_step(problem, line[:index], line[index])
      assert not check.is_legal
      assert check.reason and "\n" not in check.reason
      assert domain.verify(problem, line).score == 0.0
      # Wrong in content: the text is that of a step.
      assert "is not a step" not in check.reason
      reasons.add(check.reason)
      indices.add(index)
  assert indices == set(range(max(difficulties)))
  assert len(reasons) > 20


@over_cases
def test_legal_steps_are_legal_and_distinct(name, options, difficulties):
  domain = make_domain(name, options)
  for problem, steps, _ in plays(domain, difficulties, num=5):
    for index in range(len(steps)):
      legal = domain.legal_steps(problem, steps[:index])
      assert len(set(legal)) == len(legal) > 0
      for step in legal:
        assert domain.check_step(problem, steps[:index], step).is_legal


def all_lines(domain, problem, num_steps, steps=()):
  """All unfinished lines of so many legal steps."""
  if num_steps == 0:
    return [steps]
  return [
    line
    for step in domain.legal_steps(problem, steps)
    if not domain.check_step(problem, steps, step).is_terminal
    for line in all_lines(domain, problem, num_steps - 1, (*steps, step))
  ]


@over_cases
def test_equal_keys_are_equal_states(name, options, difficulties):
  """Lines of equal keys can be followed by the same, and are as good."""
  domain = make_domain(name, options)
  num_shared = 0
  rng = np.random.default_rng(2)
  for problem in (domain.sample(rng, d) for d in difficulties * 8):
    for num_steps in range(min(problem.difficulty, 3)):
      first_of_key = {}
      for line in all_lines(domain, problem, num_steps):
        key = domain.state_key(problem, line)
        assert key == domain.state_key(problem, line)
        first = first_of_key.setdefault(key, line)
        num_shared += first != line
        assert domain.solvable(problem, line) == domain.solvable(problem, first)
        assert domain.legal_steps(problem, line) == domain.legal_steps(
          problem, first
        )
  assert num_shared > 0 or max(difficulties) < 3


def solved_by_search(domain, problem, steps=()):
  """Whether some sequence of legal steps is verified, by trying them all."""
  if domain.verify(problem, steps).outcome == Outcome.CORRECT:
    return True
  return any(
    solved_by_search(domain, problem, (*steps, step))
    for step in domain.legal_steps(problem, steps)
  )


@over_cases
def test_oracle_agrees_with_exhaustive_search(name, options, difficulties):
  domain = make_domain(name, options)
  difficulty = min(difficulties)
  for problem, steps, _ in plays(domain, (difficulty,), num=4, seed=1):
    start = steps[: max(0, difficulty - 2)]
    for step in domain.legal_steps(problem, start):
      line = (*start, step)
      expected = solved_by_search(domain, problem, line)
      assert domain.solvable(problem, line) == expected
      solution = domain.solve(problem, line)
      assert (solution is not None) == expected
      if expected:
        verdict = domain.verify(problem, line + solution)
        assert verdict.outcome == Outcome.CORRECT


@over_cases
@hypothesis.given(data=st.data())
def test_any_text_gets_a_verdict(name, options, difficulties, data):
  domain = make_domain(name, options)
  rng = np.random.default_rng(0)
  problem, steps = domain.random_play(rng, difficulties[-1])
  alphabet = st.sampled_from(
    "0123456789+-*/()=:. leftAnswr\n\u0663\u00b2\u00bd\ud800"
  )
  text = data.draw(st.text(alphabet, max_size=40) | st.text(max_size=40))
  at = data.draw(st.integers(0, len(steps) - 1))
  for step in (text, "Answer: " + text, steps[at] + text, text + steps[at]):
    line = (*steps[:at], step, *steps[at + 1 :])
    verdict = domain.verify(problem, line)
    assert "\n" not in verdict.reason and verdict.reason.isascii()
    if line != steps and not step.startswith("Answer: "):
      assert verdict.outcome in (Outcome.WRONG, Outcome.UNPARSEABLE)
      assert verdict.score == 0.0 and verdict.reason


@over_cases
def test_difficulty_out_of_range_is_a_user_error(name, options, difficulties):
  domain = make_domain(name, options)
  rng = np.random.default_rng(0)
  for difficulty in (0, 99):
    generators = [domain.sample, domain.random_play]
    if hasattr(domain, "sample_related"):
      generators.append(domain.sample_related)
    for generate in generators:
      with pytest.raises(UserError, match=f"difficulty {difficulty}: {name}"):
        generate(rng, difficulty)


@pytest.mark.parametrize("name", DOMAINS)
def test_class_is_frozen_and_documents_every_option(name):
  cls = DOMAINS[name]
  assert cls.name == name
  assert isinstance(cls.version, int)
  # Python 3.13 keeps docstrings without their indentation; this does the same.
  documented = inspect.cleandoc(cls.__doc__)
  for field in dataclasses.fields(cls):
    assert f"\n  {field.name}: " in documented
    with pytest.raises(dataclasses.FrozenInstanceError):
      setattr(cls(), field.name, field.default)
  assert hash(cls()) == hash(cls())


def test_importing_domains_loads_no_jax():
  code = (
    "import sys, qstar_jax.domains, qstar_jax.domains.splits;"
    "sys.exit(bool({'jax', 'tensorflow'} & set(sys.modules)))"
  )
  assert subprocess.run([sys.executable, "-c", code]).returncode == 0
