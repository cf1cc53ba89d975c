"""Holds a config to the rules.

Checked before any device work. What depends on the devices is checked by
`validate_for_devices` once they are known.
"""

import operator
from collections.abc import Container

from qstar_jax.config import ExperimentConfig
from qstar_jax.domains import make_domain
from qstar_jax.errors import UserError, nearest_multiples
from qstar_jax.validation.bounds import BOUNDS
from qstar_jax.validation.relations import RELATIONS

_DEFAULTS = ExperimentConfig()


def find_errors(
  config: ExperimentConfig, ignore: Container[str] = ()
) -> list[str]:
  """What is wrong with a config: path, value, rule and fix, one line each.

  Args:
    config: of the right types, of any values.
    ignore: paths of fields that are known to be wrong; no rule reads them.
  """
  errors = {}
  for path, bound in BOUNDS.items():
    value = operator.attrgetter(path)(config)
    if path not in ignore and not bound.holds(value):
      default = operator.attrgetter(path)(_DEFAULTS)
      errors[path] = (
        f"{path} is {value!r}: must be {bound.rule}; the default is {default}"
      )
  for relation in RELATIONS:
    path = relation.fields[0]
    is_readable = not any(
      field in ignore or field in errors for field in relation.fields
    )
    if is_readable and not relation.holds(config):
      value = operator.attrgetter(path)(config)
      rule = relation.rule.format(c=config)
      errors[path] = (
        f"{path} is {value!r}: must be {rule}; {relation.fix(config)}"
      )
  domain_errors = () if "domain.name" in ignore else _domain_errors(config)
  return [*errors.values(), *domain_errors]


def _domain_errors(config: ExperimentConfig) -> list[str]:
  """What the domain itself has to say."""
  try:
    domain = make_domain(config.domain.name, config.domain.options)
  except UserError as error:
    return [str(error)]
  # A domain of the user's own need not say which difficulties it has.
  known = getattr(domain, "difficulties", None)
  if known is None:
    return []
  if not known:
    return [
      f"{path} is {value}: must be 0, since {domain.name} has no problems of "
      "its own to sample"
      for path in _NEED_PROBLEMS
      if (value := operator.attrgetter(path)(config)) != 0
    ]
  return [
    f"domain.{field} is {value}: {domain.name} has difficulties {known.start} "
    f"to {known.stop - 1}; use one of those"
    for field in ("min_difficulty", "max_difficulty")
    if (value := getattr(config.domain, field)) not in known
  ]


# What asks the domain for problems.
_NEED_PROBLEMS = (
  "self_play.problems_per_iteration",
  "warm_start.steps",
  "warm_start.later_share",
  "domain.held_out_problems",
)


# Batches of lines or trees of each job: every device has some of its own.
_BATCHES = {
  "train": ("self_play", "learner", "evaluation"),
  "learner": ("learner", "evaluation"),
  "actor": ("self_play",),
  "evaluator": ("evaluation",),
}


def validate_for_devices(
  config: ExperimentConfig, num_devices: int, job: str = "train"
) -> None:
  """Checks that mesh, network and batches fit the devices of a job.

  Args:
    config: validated.
    num_devices: over all processes.
    job: `train`, which does all, or what it is split into where `run_mode` is
      `files`: `learner`, `actor` and `evaluator`.

  Raises:
    UserError: they do not; the message has the nearest values that do.
  """
  # Import JAX, which has to be configured before: see cli.runtime.
  from qstar_jax.distributed import rules
  from qstar_jax.distributed.mesh import AXES, actor_axes, mesh_shape
  from qstar_jax.model import partitioning

  num_actor = config.mesh.actor_devices
  if num_actor >= num_devices:
    raise UserError(
      f"mesh.actor_devices is {num_actor}: must be below {num_devices}, the "
      "devices that there are, since the learner needs some; use "
      f"{max(1, num_devices // 2)}, or make more devices"
    )
  shape = actor_shape = mesh_shape(config.mesh, num_devices - num_actor)
  if num_actor:
    actor_shape = mesh_shape(actor_axes(config.mesh), num_actor)
  shape, actor_shape = (
    dict(zip(AXES, sizes, strict=True)) for sizes in (shape, actor_shape)
  )
  errors = []
  for part in _BATCHES[job]:
    num = rules.num_shards(actor_shape if part == "self_play" else shape)
    if (size := getattr(config, part).batch_size) % num:
      errors.append(
        f"{part}.batch_size is {size}: must be divisible by mesh.data * "
        f"mesh.fsdp = {num}; use {nearest_multiples(num, size)}"
      )
  errors += partitioning.misfits(config.model, shape)
  if errors:
    raise UserError("\n".join(errors))
