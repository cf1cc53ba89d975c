"""Queued resources of Cloud TPU: VMs, with a script that starts the container.

The script runs at every start of every host. It starts the program again after
preemption and crashes, as long as the VMs are there; where the VMs are taken
away, the same launch makes new ones.
"""

import json
import pathlib
import shlex
import string
import subprocess
from collections.abc import Callable, Iterator

from qstar_jax.distributed.start import ADDRESS, NUM_PROCESSES, PORT, PROCESS_ID
from qstar_jax.errors import UserError
from tools.launch.plan import (
  BAD_INPUT,
  DONE,
  GRACE_SECONDS,
  PREEMPTED,
  Job,
  Plan,
  Rendering,
)

# In these a queued resource does nothing, and its quota is still used.
DEAD_STATES = ("FAILED", "SUSPENDED")

# Runs a command; with `capture=True` it gets what the command prints.
Execute = Callable[..., subprocess.CompletedProcess]

_SCRIPT = string.Template("""\
#!/bin/bash
# Job $job, on every host: at every start of the machine.
export HOME=/root
$login
${hosts}crashes=0
while true; do
  docker rm --force qstar 2>/dev/null
  docker run --name qstar --privileged --network host --shm-size 16g \\
    --stop-timeout $grace \\
$environment
    $image \\
    $command
  code=$$?
  case $$code in
    $done | $bad_input) break ;;  # Done, or a mistake that stays one.
    $preempted) ;;  # Preempted and saved.
    *)
      crashes=$$((crashes + 1))
      if ((crashes > $max_restarts)); then break; fi
      ;;
  esac
  echo "qstar: exit code $$code; starts again in 10 s"
  sleep 10
done
echo "qstar: exit code $$code; ends"
""")

# Hosts are numbered by Cloud TPU, and listed in that order: as addresses, or as
# NAME:ID:ADDRESS.
_HOSTS = """\
ask() {
  until curl --silent --fail --header "Metadata-Flavor: Google" \\
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
  do
    echo "qstar: no answer on $1 from the metadata server; asks again" >&2
    sleep 10
  done
}
process_id=$(ask agent-worker-number)
hosts=$(ask worker-network-endpoints)
first=${hosts%%,*}
echo "qstar: this is host $process_id, and host 0 is at ${first##*:}"
"""


def render(plan: Plan, folder: pathlib.Path) -> Rendering:
  """Startup scripts, and the commands that queue the resources.

  Args:
    plan: what to launch.
    folder: where the scripts will be.

  Raises:
    UserError: the plan has no zone, or slices of another shape are meant by
      their size.
  """
  if not plan.zone:
    raise UserError(
      "--zone is not given: queued resources need it, e.g. us-west4-a"
    )
  scripts = {folder / f"{job.name}.sh": _script(job, plan) for job in plan.jobs}
  commands = tuple(
    _create(job, plan, script)
    for job, script in zip(plan.jobs, scripts, strict=True)
  )
  return Rendering(scripts, commands)


def _create(job: Job, plan: Plan, script: pathlib.Path) -> tuple[str, ...]:
  account = plan.service_account
  return (
    *_gcloud("create", job, plan),
    f"--node-id={job.name}",
    f"--accelerator-type={job.slice.accelerator_type}",
    f"--runtime-version={job.slice.generation.runtime}",
    f"--metadata-from-file=startup-script={script}",
    *((f"--service-account={account}",) if account else ()),
    *(("--spot",) if plan.spot else ()),
  )


def _gcloud(verb: str, job: Job, plan: Plan) -> tuple[str, ...]:
  return (
    *("gcloud", "compute", "tpus", "queued-resources", verb, job.name),
    f"--zone={plan.zone}",
    *((f"--project={plan.project}",) if plan.project else ()),
  )


def _script(job: Job, plan: Plan) -> str:
  registry = plan.image.partition("/")[0]
  login = "# The image is public, or the host is logged in."
  if registry.endswith(("-docker.pkg.dev", "gcr.io")):
    login = f"gcloud auth configure-docker {registry} --quiet"
  environment = [
    shlex.quote(f"{name}={value}") for name, value in plan.environment.items()
  ]
  hosts = ""
  if job.slice.num_hosts > 1:
    hosts = _HOSTS
    environment += [
      f'{ADDRESS}="${{first##*:}}:{PORT}"',
      f"{NUM_PROCESSES}={job.slice.num_hosts}",
      f'{PROCESS_ID}="$process_id"',
    ]
  return _SCRIPT.substitute(
    job=job.name,
    login=login,
    hosts=hosts,
    environment="\n".join(f"    --env {item} \\" for item in environment),
    image=shlex.quote(plan.image),
    command=shlex.join(job.command),
    grace=GRACE_SECONDS,
    done=DONE,
    bad_input=BAD_INPUT,
    preempted=PREEMPTED,
    max_restarts=plan.max_restarts,
  )


def delete_dead(plan: Plan, execute: Execute) -> Iterator[tuple[str, ...]]:
  """The commands that delete what is left of earlier launches of this name.

  Args:
    plan: to be launched.
    execute: asks Cloud TPU for states.

  Raises:
    UserError: a queued resource of this name is alive.
  """
  for job in plan.jobs:
    asked = execute(
      (*_gcloud("describe", job, plan), "--format=json"), capture=True
    )
    if asked.returncode:
      if "NOT_FOUND" in asked.stderr or "not found" in asked.stderr:
        continue
      raise UserError(
        f"{job.name}: its state cannot be told ({asked.stderr.strip()}); check "
        "`gcloud auth list`, --project and --zone"
      )
    state = json.loads(asked.stdout)["state"]["state"]
    if state not in DEAD_STATES:
      raise UserError(
        f"{job.name} is {state} in {plan.zone}: a name can be launched again "
        f"when it is {' or '.join(DEAD_STATES)}; give another --name, or end "
        f"it with: {shlex.join(_delete(job, plan))}"
      )
    yield _delete(job, plan)


def _delete(job: Job, plan: Plan) -> tuple[str, ...]:
  return (*_gcloud("delete", job, plan), "--force", "--quiet")
