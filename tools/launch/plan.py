"""What is to run where: the jobs of a run, whatever launches them."""

import dataclasses
import hashlib
import pathlib
import re
import typing
from collections.abc import Mapping, Sequence

from qstar_jax import configuration, validation
from qstar_jax.config import ExperimentConfig, MeshConfig
from qstar_jax.distributed.start import ADDRESS, NUM_PROCESSES, PROCESS_ID
from qstar_jax.errors import UserError
from tools.launch.slices import Slice

# Exit codes of `qstar` that say whether to start it again.
DONE, BAD_INPUT, PREEMPTED = 0, 2, 75
# From SIGTERM to SIGKILL, where the target can be told: enough to save.
GRACE_SECONDS = 300
MODES = typing.get_args(typing.get_type_hints(ExperimentConfig)["run_mode"])
# Cluster tools add suffixes of their own to a name that becomes a host's,
# which has 63 characters at most. XPK asks for fewer than 40.
_MAX_NAME = 39


@dataclasses.dataclass(frozen=True)
class Job:
  """One program, on all hosts of one slice.

  Attributes:
    name: unique among the launched; letters, digits and `-`.
    command: the same on every host.
    slice: that it has for itself.
    is_on_one_host: the program does not run on several yet.
  """

  name: str
  command: tuple[str, ...]
  slice: Slice
  is_on_one_host: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
  """Jobs that make one run, and what they share.

  Attributes:
    jobs: that run at once. Each is started, restarted and ended by itself.
    image: the container that holds qstar_jax.
    environment: variables of the container.
    max_restarts: of a job, after crashes, where the target can count them.
    spot: on capacity that may be taken away.
    upload: file here and its copy in the bucket, of a config that is not in
      the image; None where it is.
    project: of Google Cloud; empty for that of the tool's own settings.
    zone: likewise.
    cluster: of XPK.
    service_account: that may use the bucket; empty for the default one.
  """

  jobs: tuple[Job, ...]
  image: str
  environment: Mapping[str, str]
  max_restarts: int
  spot: bool
  upload: tuple[str, str] | None
  project: str
  zone: str
  cluster: str
  service_account: str


@dataclasses.dataclass(frozen=True)
class Rendering:
  """What a launcher makes of a plan.

  Attributes:
    files: text by path.
    commands: in order.
  """

  files: Mapping[pathlib.Path, str]
  commands: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class Layout:
  """Which jobs, and on what.

  Attributes:
    slice: of the job that learns.
    actor_slice: of each actor, in mode `files`.
    evaluator_slice: of the evaluator, in mode `files`.
    num_actors: in mode `files`.
  """

  slice: Slice
  actor_slice: Slice
  evaluator_slice: Slice
  num_actors: int


def check_name(name: str) -> str:
  """The name of a run as a cluster may call it, e.g. `tiny-cpu` of `tiny_cpu`.

  Raises:
    UserError: it has too many characters.
  """
  name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
  # The longest suffix of a job is that of the evaluator.
  limit = _MAX_NAME - len("-evaluator")
  if not re.fullmatch(rf"[a-z][a-z0-9-]{{,{limit - 1}}}", name):
    raise UserError(
      f"--name is {name!r}: must begin with a letter and have at most {limit} "
      "characters; give another --name"
    )
  return name


def make_jobs(
  config_arg: str,
  config: ExperimentConfig,
  overrides: Sequence[str],
  *,
  name: str,
  run_dir: str,
  layout: Layout,
) -> tuple[Job, ...]:
  """The jobs of a run.

  Args:
    config_arg: what names the config inside of the image.
    config: what it holds, overrides included.
    overrides: flags that made it.
    name: of the run, as by `check_name`.
    run_dir: in a bucket.
    layout: which jobs, and on what.

  Raises:
    UserError: the config does not fit the chips of a job.
  """
  described = (config_arg, "--run-dir", run_dir)
  command = "learner" if config.run_mode == "files" else "train"
  _check_fit(config, layout.slice, command)
  learner = ("qstar", command, *described, *overrides)
  if config.run_mode != "files":
    is_split = config.run_mode == "split"
    return (Job(name, learner, layout.slice, is_on_one_host=is_split),)
  jobs = [Job(f"{name}-learner", learner, layout.slice)]
  flags = _player_flags(config, layout.actor_slice, "actor")
  for actor_id in map(str, range(layout.num_actors)):
    actor = ("qstar", "actor", *described, "--actor-id", actor_id)
    jobs.append(
      Job(
        f"{name}-actor-{actor_id}",
        (*actor, *overrides, *flags),
        layout.actor_slice,
      )
    )
  # It reads the config that the learner stored.
  flags = _player_flags(config, layout.evaluator_slice, "evaluator")
  evaluator = ("qstar", "evaluate", run_dir, "--follow", *flags)
  jobs.append(
    Job(
      f"{name}-evaluator",
      evaluator,
      layout.evaluator_slice,
      is_on_one_host=True,
    )
  )
  return tuple(jobs)


def _player_flags(
  config: ExperimentConfig, tpu_slice: Slice, role: str
) -> tuple[str, ...]:
  """Flags that fit the mesh to a job that plays and does not learn.

  Nothing is split over fsdp where nothing is learned, so that a slice on which
  the learner's mesh has no room can go without it.
  """
  try:
    _check_fit(config, tpu_slice, role)
  except UserError:
    mesh = MeshConfig(data=-1, fsdp=1, model=config.mesh.model)
    _check_fit(dataclasses.replace(config, mesh=mesh), tpu_slice, role)
    return ("--mesh.data=-1", "--mesh.fsdp=1")
  return ()


def _check_fit(config: ExperimentConfig, tpu_slice: Slice, role: str) -> None:
  try:
    validation.validate_for_devices(config, tpu_slice.num_chips, role)
  except UserError as error:
    raise UserError(
      f"{role} on {tpu_slice}, {tpu_slice.size}: {error}"
    ) from error


def make_environment(run_dir: str, extra: Sequence[str]) -> dict[str, str]:
  """Variables of the container.

  LIBTPU_INIT_ARGS is left alone: no flag of the compiler has shown its worth
  here.

  Args:
    run_dir: in a bucket.
    extra: `NAME=VALUE`, which win.

  Raises:
    UserError: one of `extra` has another form, or is not the user's to set.
  """
  environment = {
    # Programs that one start compiled are there at the next.
    "JAX_COMPILATION_CACHE_DIR": f"{run_dir}/xla_cache",
    # Without a TPU it fails, and does not go on with CPUs.
    "JAX_PLATFORMS": "tpu,cpu",
  }
  for pair in extra:
    name, equals, value = pair.partition("=")
    if not (equals and re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII)):
      raise UserError(
        f"--env is {pair!r}: must be NAME=VALUE, as in "
        "QSTAR_DATA_DIR=/data; correct it"
      )
    if name in (ADDRESS, NUM_PROCESSES, PROCESS_ID):
      raise UserError(
        f"--env is {pair!r}: {name} differs from host to host, and the "
        "launcher sets it where there are several; leave it out"
      )
    environment[name] = value
  return environment


def locate_config(
  name_or_path: str, run_dir: str
) -> tuple[str, tuple[str, str] | None]:
  """What names a config in the image, and what to upload for that.

  Configs that have a name are in the image. A file of the user's own is copied
  to the run directory first.

  Args:
    name_or_path: as `configuration.load` takes it.
    run_dir: in a bucket.

  Raises:
    UserError: there is no such config.
  """
  path = configuration.find_config(name_or_path)
  if name_or_path == path.stem or name_or_path.startswith("gs://"):
    return name_or_path, None
  # Named by what it holds: a run that goes on keeps the config it reads.
  digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
  copy = f"{run_dir}/launch-{digest}{path.suffix}"
  return copy, (name_or_path, copy)
