"""Evaluation: its interval, and what playing a set of problems sums up to."""

import dataclasses

import numpy as np
import pytest

from qstar_jax.domains.splits import held_out
from qstar_jax.errors import UserError
from qstar_jax.evaluation.evaluate import evaluate
from qstar_jax.evaluation.metrics import bootstrap_ci95
from qstar_jax.evaluation.opened import open_checkpoint
from qstar_jax.search.searchers import for_evaluation

pytest_plugins = ["tests.training.micro_run"]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.85])
def test_the_interval_is_that_of_the_normal_approximation(share):
  num_problems = 500
  scores = np.arange(num_problems) < share * num_problems
  low, high = bootstrap_ci95(scores, seed=0)
  half = 1.96 * np.sqrt(share * (1 - share) / num_problems)
  assert low == pytest.approx(share - half, abs=0.006)
  assert high == pytest.approx(share + half, abs=0.006)


def test_graded_scores_have_an_interval_too():
  scores = np.random.default_rng(0).random(400)
  low, high = bootstrap_ci95(scores, seed=0)
  half = 1.96 * scores.std() / np.sqrt(400)
  assert low == pytest.approx(scores.mean() - half, abs=0.004)
  assert high == pytest.approx(scores.mean() + half, abs=0.004)


def test_95_of_100_intervals_cover_the_truth():
  rng = np.random.default_rng(0)
  num_covered = 0
  for seed in range(300):
    low, high = bootstrap_ci95(rng.random(80) < 0.4, seed)
    num_covered += low <= 0.4 <= high
  assert 0.90 < num_covered / 300 < 0.98


@pytest.mark.parametrize("scores", [[1.0] * 7, [0.0], [0.25, 0.25]])
def test_no_spread_no_width(scores):
  assert bootstrap_ci95(scores, seed=0) == (scores[0], scores[0])


def test_the_seed_decides():
  scores = np.random.default_rng(0).random(30)
  assert bootstrap_ci95(scores, 1) == bootstrap_ci95(scores, 1)
  assert bootstrap_ci95(scores, 1) != bootstrap_ci95(scores, 2)


@pytest.fixture(scope="module")
def opened(micro_run, micro_config):
  # A verifier that accepts all, so that there is something to count.
  domain = dataclasses.replace(
    micro_config.domain, name="tests.training.generous:Generous"
  )
  config = dataclasses.replace(micro_config, domain=domain)
  return open_checkpoint(micro_run.directory, config)


@pytest.fixture(scope="module")
def problems(opened):
  return held_out(
    opened.domain, min_difficulty=2, max_difficulty=2, num_problems=11, seed=3
  )


@pytest.fixture(scope="module")
def player(opened):
  search = for_evaluation(opened.config.search, "sample")
  return opened.player(search, num_trees=6)


def _evaluate(opened, player, problems, **options):
  options = {"seed": 5} | options
  return evaluate(
    player, opened.loaded.params, opened.domain, problems, **options
  )


def test_a_problem_is_played_alike_among_others(opened, player, problems):
  done = []
  whole = _evaluate(opened, player, problems, on_progress=done.append)
  assert done == sorted(done) and done[-1] == 11
  alone = _evaluate(opened, player, problems[4:5], seed=5 + 4)
  assert alone.results == whole.results[4:5]
  other = _evaluate(opened, player, problems, seed=6)
  assert other.results != whole.results


def test_it_sums_up_the_plays(opened, player, problems):
  result = _evaluate(opened, player, problems)
  assert result.problems == len(result.results) == 11
  assert result.top1 == result.any == result.mean == 1.0
  assert result.ci95 == (1.0, 1.0)
  assert result.tokens_per_problem == np.mean(
    [r.tokens for r in result.results]
  )
  prompts = [
    len(opened.loaded.vocabulary.encode_prompt(problem.prompt))
    for problem in problems
  ]
  for play, prompt_tokens in zip(result.results, prompts, strict=True):
    assert play.tokens > prompt_tokens
    assert 1 <= len(play.steps) <= opened.config.text.max_steps


def test_it_can_be_stopped(opened, player, problems):
  def stop(done):
    if done >= 6:
      raise InterruptedError

  with pytest.raises(InterruptedError):
    _evaluate(opened, player, problems, on_progress=stop)


def test_the_network_cannot_be_changed(micro_run, micro_config):
  model = dataclasses.replace(micro_config.model, num_layers=2)
  config = dataclasses.replace(micro_config, model=model)
  with pytest.raises(UserError, match=r"^model.num_layers is 2: .* has 1, "):
    open_checkpoint(micro_run.directory, config)
