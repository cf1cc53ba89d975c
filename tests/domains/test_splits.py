"""Held-out problems are distinct, stable, and never drawn for training."""

import dataclasses
import itertools

import numpy as np
import pytest

from qstar_jax.config import DomainConfig, ExperimentConfig, GateConfig
from qstar_jax.domains import make_domain, splits
from qstar_jax.domains.game24 import Game24
from qstar_jax.domains.reachability import reachable_targets
from qstar_jax.domains.splits import TrainingProblems, held_out
from qstar_jax.errors import UserError

CASES = [("arithmetic", 2, 4), ("countdown", 2, 2), ("game24", 3, 3)]


def split_of(domain, low, high, num=500, seed=0):
  return held_out(
    domain,
    min_difficulty=low,
    max_difficulty=high,
    num_problems=num,
    seed=seed,
  )


@pytest.mark.parametrize(("name", "low", "high"), CASES)
def test_held_out_problems_are_distinct_solvable_and_stable(name, low, high):
  domain = make_domain(name)
  problems = split_of(domain, low, high)
  assert len(problems) == 500
  assert len({domain.split_key(problem) for problem in problems}) == 500
  assert all(domain.solvable(problem) for problem in problems)
  assert {p.difficulty for p in problems} == set(range(low, high + 1))
  assert problems == split_of(domain, low, high)
  assert problems != split_of(domain, low, high, seed=1)
  # A smaller split of the same seed is its beginning.
  assert problems[:100] == split_of(domain, low, high, num=100)


@pytest.mark.parametrize(("name", "low", "high"), CASES)
def test_training_never_sees_a_held_out_problem(name, low, high):
  domain = make_domain(name)
  problems = split_of(domain, low, high)
  training = TrainingProblems.without(domain, problems)
  keys = {domain.split_key(problem) for problem in problems}
  assert all(map(training.is_held_out, problems))
  rng = np.random.default_rng(0)
  rejected = 0
  for _ in range(1000):
    for problem in (
      training.sample(rng, low),
      training.random_play(rng, low)[0],
    ):
      assert domain.split_key(problem) not in keys
    rejected += domain.split_key(domain.sample(rng, low)) in keys
  assert rejected > 0  # or the test shows nothing


def test_tiny_countdown_leaves_thousands_to_train_on():
  domain = make_domain("countdown")
  hands = itertools.combinations_with_replacement(range(1, 11), 3)
  num_problems = sum(
    len(reachable_targets(hand, domain.max_target, True)) for hand in hands
  )
  assert num_problems == 2915
  training = TrainingProblems.without(domain, split_of(domain, 2, 2))
  rng = np.random.default_rng(0)
  keys = {training.sample(rng, 2).key for _ in range(30_000)}
  assert 2300 < len(keys) <= num_problems - 500


def test_game24_hands_are_held_out_in_any_order_with_any_target():
  domain = make_domain("game24")
  training = TrainingProblems.without(domain, [domain.parse("4 9 10 13")])
  assert training.is_held_out(domain.parse("13 4 10 9"))
  assert training.is_held_out(domain.parse("13 4 10 9 -> 36"))
  assert not training.is_held_out(domain.parse("4 9 10 12"))


def test_countdown_targets_are_different_problems():
  domain = make_domain("countdown")
  training = TrainingProblems.without(domain, [domain.parse("3 5 9 -> 42")])
  assert training.is_held_out(domain.parse("9 3 5 -> 42"))
  assert not training.is_held_out(domain.parse("3 5 9 -> 17"))


def test_half_of_every_difficulty_stays_for_training():
  """Difficulty 1 has few problems, and they are not all taken."""
  domain = make_domain("countdown")
  problems = split_of(domain, 1, 2)
  taken = sum(problem.difficulty == 1 for problem in problems)
  rng = np.random.default_rng(0)
  total = len({domain.sample(rng, 1).key for _ in range(20_000)})
  assert 0.4 * total < taken < 0.6 * total
  training = TrainingProblems.without(domain, problems)
  left = {training.sample(rng, 1).key for _ in range(20_000)}
  assert len(left) == total - taken


def test_too_few_problems_is_a_user_error():
  domain = make_domain("countdown", {"max_number": 3})
  with pytest.raises(UserError, match=r"500 problems .* countdown"):
    split_of(domain, 1, 1)
  with pytest.raises(UserError) as info:
    split_of(domain, 1, 1)
  possible = int(str(info.value).split("ask for ")[1].split(" ")[0])
  assert len(split_of(domain, 1, 1, num=possible)) == possible


def test_a_domain_that_samples_nothing_has_an_empty_split():
  assert split_of(make_domain("text"), 1, 1, num=0) == []


def test_a_domain_with_no_related_problems_takes_what_random_play_solves():
  domain = make_domain("arithmetic")
  problems = TrainingProblems.without(domain, split_of(domain, 2, 2, num=20))
  found = problems.sample_related(np.random.default_rng(0), 2)
  assert found == problems.random_play(np.random.default_rng(0), 2)[0]


def test_nothing_left_to_train_on_is_a_user_error():
  domain = make_domain("countdown", {"max_number": 1})
  everything = [domain.parse("1 1 -> 1"), domain.parse("1 1 -> 2")]
  training = TrainingProblems.without(domain, everything)
  rng = np.random.default_rng(0)
  for generate in (training.sample, training.random_play):
    with pytest.raises(UserError, match=r"lower domain\.held_out_problems"):
      generate(rng, 1)


def _config(**domain):
  return ExperimentConfig(
    domain=DomainConfig(
      name="game24", min_difficulty=3, max_difficulty=3, **domain
    ),
    gate=GateConfig(every_iterations=1, pool_problems=30),
  )


def test_no_hand_of_the_file_is_trained_on(tmp_path):
  """With any target, in any order, and not for a gate or an evaluation."""
  domain = Game24()
  rng = np.random.default_rng(0)
  tested = [domain.sample(rng, 3) for _ in range(300)]  # Some twice.
  path = tmp_path / "tested.txt"
  path.write_text("".join(f"{p.prompt.split(' ->')[0]}\n" for p in tested))
  config = _config(held_out_problems=40, held_out_file=str(path))
  held_out = splits.held_out_by(config, domain)
  keys = [set(map(domain.split_key, problems)) for problems in held_out]
  assert [len(problems) for problems in held_out] == [40, 30, 300]
  assert len(set.union(*keys)) == sum(map(len, keys)) > 300
  problems = splits.TrainingProblems.without(domain, itertools.chain(*held_out))
  trained = {
    domain.split_key(problem)
    for _ in range(3000)
    for problem in (
      problems.sample(rng, 3),
      problems.sample_related(rng, 3),
      problems.random_play(rng, 3)[0],
    )
  }
  assert trained.isdisjoint(set.union(*keys))
  # A hand turned round, with another target.
  numbers = tested[0].payload["numbers"][::-1]
  turned = domain.parse(f"{' '.join(map(str, numbers))} -> 10")
  assert problems.is_held_out(turned)


def test_a_gate_leaves_the_evaluation_as_it_is():
  config = _config(held_out_problems=40)
  alone = dataclasses.replace(config, gate=GateConfig())
  with_gate, without = (
    splits.held_out_by(c, Game24()) for c in (config, alone)
  )
  assert with_gate.evaluation == without.evaluation
  assert (len(with_gate.gate), without.gate) == (30, [])


def test_rows_of_the_file_are_held_out(tmp_path, monkeypatch):
  (tmp_path / "game24").mkdir()
  path = tmp_path / "game24/some.csv"
  path.write_text("Rank,Puzzles\n1,1 1 4 6\n2,1 1 11 11\n3,1 1 3 8\n")
  monkeypatch.setenv("QSTAR_DATA_DIR", str(tmp_path))
  config = _config(held_out_file="game24/some.csv", held_out_rows="1:3")
  held_out = splits.held_out_by(config, Game24())
  assert [p.payload["numbers"] for p in held_out.file] == [
    [1, 1, 11, 11],
    [1, 1, 3, 8],
  ]
  missing = _config(held_out_file="game24/other.csv")
  with pytest.raises(
    UserError, match=r"no file .*other.csv; check .* QSTAR_DATA"
  ):
    splits.held_out_by(missing, Game24())


def test_the_test_ranges_of_game_of_24_are_never_trained_on(data_dir):
  domain = Game24(max_target=100)
  config = _config(
    held_out_problems=100,
    held_out_file=str(data_dir / "game24/24.csv"),
    held_out_rows="900:1362",
  )
  held_out = splits.held_out_by(config, domain)
  assert len(held_out.file) == 462
  tested = set(map(domain.split_key, held_out.file))
  problems = splits.TrainingProblems.without(domain, itertools.chain(*held_out))
  rng = np.random.default_rng(1)
  trained = {domain.split_key(problems.sample(rng, 3)) for _ in range(4000)}
  trained |= {
    domain.split_key(problems.random_play(rng, 3)[0]) for _ in range(4000)
  }
  assert len(trained) > 400 and trained.isdisjoint(tested)
