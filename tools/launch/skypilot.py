"""SkyPilot: a managed job for every job of the run.

SkyPilot runs the command on every host of a slice, and makes a new slice where
one is taken away. A slice is one node of a task, but what the command is told
of nodes is of hosts, in the order in which Cloud TPU lists them, which is that
of their numbers (0.14.1, sky/backends/cloud_vm_ray_backend.py and
task_codegen.py).
"""

import pathlib
import shlex
from typing import Any

import yaml

from qstar_jax.distributed.start import ADDRESS, NUM_PROCESSES, PORT, PROCESS_ID
from tools.launch.plan import (
  PREEMPTED,
  Job,
  Plan,
  Rendering,
)


class _Dumper(yaml.SafeDumper):
  """Writes scripts line by line, as they are."""


_Dumper.add_representer(
  str,
  lambda dumper, text: dumper.represent_scalar(
    "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
  ),
)


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
      path: yaml.dump(task, Dumper=_Dumper, sort_keys=False)
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
    "run": _run(job),
  }


def _run(job: Job) -> str:
  """The script that every host runs."""
  command = f"exec {shlex.join(job.command)}"
  if job.slice.num_hosts == 1:
    return command
  return "\n".join(
    [
      'first=$(head -n 1 <<< "$SKYPILOT_NODE_IPS")',
      f'export {ADDRESS}="$first:{PORT}"',
      # Not as SkyPilot counts: were that fewer, each part would be a run.
      f"export {NUM_PROCESSES}={job.slice.num_hosts}",
      f'export {PROCESS_ID}="$SKYPILOT_NODE_RANK"',
      command,
    ]
  )
