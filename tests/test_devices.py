"""What of a config the devices of a job must divide."""

import hypothesis
import hypothesis.strategies as st
import pytest

from qstar_jax import configuration, errors, validation
from qstar_jax.errors import UserError


def test_batches_that_do_not_fit_the_devices_get_the_nearest_that_do():
  config = configuration.load(
    "tiny_cpu", ["--learner.batch-size", "100", "--evaluation.batch-size", "4"]
  )
  validation.validate_for_devices(config, 4)
  with pytest.raises(UserError) as raised:
    validation.validate_for_devices(config, 8)
  assert str(raised.value).splitlines() == [
    "learner.batch_size is 100: must be divisible by mesh.data * mesh.fsdp "
    "= 8; use 96 or 104",
    "evaluation.batch_size is 4: must be divisible by mesh.data * mesh.fsdp "
    "= 8; use 8",
  ]


@pytest.mark.parametrize(
  ("job", "batches"),
  [
    ("train", {"self_play", "learner", "evaluation"}),
    ("learner", {"learner", "evaluation"}),
    ("actor", {"self_play"}),
    ("evaluator", {"evaluation"}),
  ],
)
def test_a_job_is_held_to_its_own_batches(job, batches):
  config = configuration.load(
    "tiny_cpu",
    [
      *("--self-play.batch-size", "12", "--learner.batch-size", "100"),
      *("--evaluation.batch-size", "4", "--run-mode", "files"),
    ],
  )
  with pytest.raises(UserError) as raised:
    validation.validate_for_devices(config, 8, job)
  lines = str(raised.value).splitlines()
  assert {line.partition(".batch_size is ")[0] for line in lines} == batches


def test_a_mesh_that_does_not_fit_the_devices():
  config = configuration.load("tiny_cpu", ["--mesh.fsdp", "3"])
  with pytest.raises(UserError, match="8 devices"):
    validation.validate_for_devices(config, 8)


@hypothesis.given(
  whole=st.integers(1, 500), near=st.integers(1, 500), of=st.integers(1, 64)
)
def test_nearest_values_obey_the_rule_that_they_are_offered_for(
  whole, near, of
):
  for divisor in errors.nearest_divisors(whole, near).split(" or "):
    assert not divisor or whole % int(divisor) == 0
  multiples = errors.nearest_multiples(of, near).split(" or ")
  assert all(m % of == 0 and abs(m - near) <= of for m in map(int, multiples))
