"""The domain without rules."""

import numpy as np
import pytest

from qstar_jax.domains import make_domain
from qstar_jax.errors import UserError
from qstar_jax.records import Outcome


def test_any_line_is_a_problem_and_any_step_is_legal():
  domain = make_domain("text")
  problem = domain.parse(" What is\n $1+1$? \n")
  assert problem.prompt == "What is $1+1$?\n"
  assert domain.parse(problem.prompt) == problem
  assert domain.split_key(problem) == problem.key
  check = domain.check_step(problem, (), "It is 2.")
  assert check.is_legal and not check.is_terminal
  verdict = domain.verify(problem, ("It is 2.",))
  assert (verdict.outcome, verdict.score) == (Outcome.TIMEOUT, 0.0)
  assert domain.answer(problem, ("One.", "Two.")) == "Two."
  assert domain.answer(problem, ()) == ""
  with pytest.raises(ValueError, match="no text"):
    domain.parse(" \n")


def test_it_says_that_it_has_no_problems():
  domain = make_domain("text")
  for generate in (domain.sample, domain.random_play):
    with pytest.raises(UserError, match="they come from data") as raised:
      generate(np.random.default_rng(0), 1)
    assert "\n" not in str(raised.value)
