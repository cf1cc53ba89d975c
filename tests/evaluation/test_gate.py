"""The gate: a better candidate passes, a worse or an equal one does not."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from etils import epath

from qstar_jax.config import GateConfig
from qstar_jax.errors import UserError
from qstar_jax.evaluation import gate
from qstar_jax.evaluation.gate import Decision
from qstar_jax.training.preemption import PreemptionFlag
from qstar_jax.training.trainer import Trainer
from tests.training.micro_run import CONFIG
from tests.training.recorder import Recorder

_CONFIG = GateConfig(win_rate=0.6, error_rate=0.05)


def test_the_likelihood_ratio_is_that_of_binomials():
  # Of 7 wins in 10 the binomial coefficients cancel.
  expected = math.log(0.6**7 * 0.4**3 / 0.5**10)
  assert gate.log_likelihood_ratio(7, 3, 0.6) == pytest.approx(expected)


def test_a_trial_by_hand():
  # ln(1.2) a win, ln(0.8) a loss, until one passes ln(19) = 2.94.
  trial = gate.sequential_test([1] * 40, _CONFIG)
  assert trial[:4] == (Decision.ACCEPTED, 17, 0, 0)
  trial = gate.sequential_test([0, -1] * 40, _CONFIG)
  assert trial[:4] == (Decision.REFUSED, 0, 14, 14)
  assert trial.log_ratio == pytest.approx(14 * math.log(0.8))
  trial = gate.sequential_test([0.5, 0, -0.25, 0], _CONFIG)
  assert trial[:4] == (Decision.OPEN, 1, 1, 2)
  assert trial.elo_difference == 0.0
  assert gate.sequential_test([], _CONFIG)[:4] == (Decision.OPEN, 0, 0, 0)


def test_nothing_is_played_after_the_decision():
  differences = iter([1] * 40)
  gate.sequential_test(differences, _CONFIG)
  assert len(list(differences)) == 40 - 17


def test_elo_of_a_trial():
  trial = gate.Trial(Decision.ACCEPTED, 30, 10, 20, 3.0)
  assert trial.elo_difference == pytest.approx(400 * math.log10(40.5 / 20.5))
  lost = trial._replace(wins=10, losses=30)
  assert lost.elo_difference == pytest.approx(-trial.elo_difference)


@pytest.mark.parametrize("error_rate", [0.05, 0.2])
@pytest.mark.parametrize("win_rate", [0.5, 0.6, 0.4, 0.75])
def test_errors_are_as_rare_as_promised(win_rate, error_rate):
  config = dataclasses.replace(_CONFIG, error_rate=error_rate)
  rng = np.random.default_rng(0)
  decisions = [
    gate.sequential_test(
      np.where(rng.random(5000) < win_rate, 1, -1), config
    ).decision
    for _ in range(400)
  ]
  assert Decision.OPEN not in decisions
  wrong = Decision.ACCEPTED if win_rate <= 0.5 else Decision.REFUSED
  # Wald's bound e / (1 - e), and three deviations of 400 trials.
  bound = error_rate / (1 - error_rate)
  limit = bound + 3 * math.sqrt(bound * (1 - bound) / 400)
  assert np.mean([decision is wrong for decision in decisions]) <= limit


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
  """A trainer of a network that has learned sums of two numbers by heart."""
  replace = dataclasses.replace
  config = replace(
    CONFIG,
    domain=replace(
      CONFIG.domain,
      options={"min_number": 1, "max_number": 9, "max_target": 20},
      min_difficulty=1,
      max_difficulty=1,
      held_out_problems=8,
    ),
    text=replace(CONFIG.text, max_prompt_tokens=12, max_steps=1),
    model=replace(CONFIG.model, model_dim=32, head_dim=16, ffn_dim=64),
    learner=replace(
      CONFIG.learner,
      steps_per_iteration=300,
      steps_per_call=10,
      batch_size=64,
      learning_rate=1e-2,
      warmup_steps=20,
      ema_decay=0.0,
    ),
    warm_start=replace(CONFIG.warm_start, steps=300, corrupt_share=0.2),
  )
  run_dir = epath.Path(tmp_path_factory.mktemp("run"))
  trainer = Trainer(config, run_dir, Recorder(), PreemptionFlag())
  trainer.warm_start()
  return trainer


@pytest.fixture(scope="module")
def try_candidate(trainer):
  """Tries params against those of the trainer, by greedy play."""
  rng = np.random.default_rng(0)
  pool = [trainer.setup.problems.sample(rng, 1) for _ in range(64)]

  def run(candidate, incumbent=None, **config):
    return gate.try_candidate(
      trainer.examiner.players["greedy"],
      candidate,
      trainer.state.played if incumbent is None else incumbent,
      trainer.setup.domain,
      pool,
      np.random.default_rng(1),
      GateConfig(num_problems=64, **config),
    )

  return run


def _damaged(params, scale):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: x + scale * rng.standard_normal(x.shape, np.float32), params
  )


def test_a_damaged_candidate_is_refused(trainer, try_candidate):
  damaged = _damaged(trainer.state.played, 0.3)
  trial = try_candidate(damaged)
  assert trial.decision is Decision.REFUSED
  assert trial.losses >= 14
  # The other way round it is the better one.
  back = try_candidate(trainer.state.played, incumbent=damaged)
  assert back.decision is Decision.ACCEPTED
  assert back.elo_difference > 100


def test_an_equal_candidate_is_not_promoted(trainer, try_candidate):
  trial = try_candidate(trainer.state.played)
  assert trial[:4] == (Decision.OPEN, 0, 0, 64)
  # Nor one that differs, but not in its answers.
  alike = try_candidate(_damaged(trainer.state.played, 1e-4))
  assert alike.decision is Decision.OPEN


def test_a_budget_too_small_for_a_line_is_refused(trainer, try_candidate):
  with pytest.raises(UserError, match="token"):
    try_candidate(trainer.state.played, token_budget=3)
