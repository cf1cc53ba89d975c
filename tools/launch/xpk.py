"""XPK: a workload for every job.

XPK makes a JobSet of each, and passes SIGTERM on to the command. How a job ends
is told by the exit code; XPK restarts after those that it is given, after 42
and after 127 to 255.

Hosts find each other by TPU_WORKER_HOSTNAMES and TPU_WORKER_ID, which GKE gives
to the pods of an indexed Job that has several on a TPU slice, as XPK's has.
libtpu needs them too, and they count the machines that XPK takes, which for a
slice of v5e or v6e with 8 chips are two.
"""

import pathlib
import shlex

from qstar_jax.errors import UserError
from tools.launch.plan import GRACE_SECONDS, PREEMPTED, Job, Plan, Rendering

# Python's exit code after an exception.
_CRASHED = 1


def render(plan: Plan, folder: pathlib.Path) -> Rendering:
  """A command for every job; there are no files.

  Raises:
    UserError: the plan has no cluster, or XPK has no such slice.
  """
  del folder
  if not plan.cluster:
    raise UserError(
      "--cluster is not given: xpk needs it; `xpk cluster list` shows them"
    )
  return Rendering({}, tuple(_create(job, plan) for job in plan.jobs))


def _create(job: Job, plan: Plan) -> tuple[str, ...]:
  if job.slice.name == "v5e" and job.slice.num_chips < 8:
    raise UserError(
      f"{job.name} on {job.slice}: xpk has slices of v5e from 2x4 on; use one "
      "of those, or another target"
    )
  flags = {
    "cluster": plan.cluster,
    "workload": job.name,
    "tpu-type": f"{job.slice.generation.accelerator}-{job.slice.topology}",
    "docker-image": plan.image,
    "project": plan.project,
    "zone": plan.zone,
    "max-restarts": str(plan.max_restarts),
    "restart-on-exit-codes": f"{_CRASHED},{PREEMPTED}",
    "termination-grace-period-seconds": str(GRACE_SECONDS),
  }
  return (
    *("xpk", "workload", "create"),
    *(f"--{flag}={value}" for flag, value in flags.items() if value),
    *(f"--env={name}={value}" for name, value in plan.environment.items()),
    *(("--spot",) if plan.spot else ()),
    # In place of its shell, which XPK sends the SIGTERM to.
    f"--command=exec {shlex.join(job.command)}",
  )
