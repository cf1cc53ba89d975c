"""SkyPilot: a managed job for every job of the run.

SkyPilot runs the command on every host of a slice, and makes a new slice where
one is taken away.
"""

import pathlib
import shlex
from typing import Any

import yaml

from tools.launch.plan import PREEMPTED, Job, Plan, Rendering


def render(plan: Plan, folder: pathlib.Path) -> Rendering:
  """Tasks, and the commands that launch them.

  Args:
    plan: what to launch.
    folder: where the tasks will be.

  Raises:
    UserError: slices of another shape are meant by their size.
  """
  tasks = {
    folder / f"{job.name}.yaml": make_task(job, plan) for job in plan.jobs
  }
  return Rendering(
    files={
      path: yaml.safe_dump(task, sort_keys=False)
      for path, task in tasks.items()
    },
    commands=tuple(
      (
        *("sky", "jobs", "launch", "--yes", "--detach-run"),
        f"--name={task['name']}",
        str(path),
      )
      for path, task in tasks.items()
    ),
  )


def make_task(job: Job, plan: Plan) -> dict[str, Any]:
  """The task of one job."""
  return {
    "name": job.name,
    "resources": {
      "infra": f"gcp/*/{plan.zone}" if plan.zone else "gcp",
      "accelerators": f"tpu-{job.slice.accelerator_type}",
      "accelerator_args": {"runtime_version": job.slice.generation.runtime},
      "use_spot": plan.spot,
      "image_id": f"docker:{plan.image}",
      # SkyPilot has one count of restarts for all other exit codes, and one of
      # them says that a restart is of no use.
      "job_recovery": {"recover_on_exit_codes": [PREEMPTED]},
    },
    "envs": dict(plan.environment),
    "run": f"exec {shlex.join(job.command)}",
  }
