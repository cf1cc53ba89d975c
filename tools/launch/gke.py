"""GKE: a JobSet for every job, given to the cluster by kubectl.

A JobSet restarts all of its jobs when one of them has failed. Jobs of a run are
to go on without each other, so each is the one replicated job of a JobSet.
"""

import pathlib
from typing import Any

import yaml

from qstar_jax.errors import UserError
from tools.launch import jobset
from tools.launch.plan import BAD_INPUT, GRACE_SECONDS, Job, Plan, Rendering

_CONTAINER = "qstar"


def render(plan: Plan, folder: pathlib.Path) -> Rendering:
  """Manifests, and the commands that create them.

  Args:
    plan: what to launch.
    folder: where the manifests will be.

  Raises:
    UserError: a manifest breaks a rule of JobSet.
  """
  manifests = {
    folder / f"{job.name}.yaml": make_jobset(job, plan) for job in plan.jobs
  }
  errors = [
    f"{path}: {error}"
    for path, manifest in manifests.items()
    for error in jobset.find_errors(manifest)
  ]
  if errors:
    raise UserError("\n".join(errors))
  return Rendering(
    files={
      path: yaml.safe_dump(manifest, sort_keys=False)
      for path, manifest in manifests.items()
    },
    # Unlike `apply`, it never changes a job that runs.
    commands=tuple(
      ("kubectl", "create", f"--filename={path}") for path in manifests
    ),
  )


def make_jobset(job: Job, plan: Plan) -> dict[str, Any]:
  """The manifest of one job (jobset.x-k8s.io/v1alpha2)."""
  metadata: dict[str, Any] = {"name": job.name}
  if job.slice.num_hosts > 1:
    # The hosts of one slice are one node pool.
    metadata["annotations"] = {
      "alpha.jobset.sigs.k8s.io/exclusive-topology": (
        "cloud.google.com/gke-nodepool"
      )
    }
  return {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": metadata,
    "spec": {
      "failurePolicy": {
        "maxRestarts": plan.max_restarts,
        "rules": [
          {
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy"],
          }
        ],
      },
      "replicatedJobs": [
        {
          "name": "slice",
          "replicas": 1,
          "template": {"spec": _job_spec(job, plan)},
        }
      ],
    },
  }


def _job_spec(job: Job, plan: Plan) -> dict[str, Any]:
  return {
    "parallelism": job.slice.num_hosts,
    "completions": job.slice.num_hosts,
    "completionMode": "Indexed",
    # Hosts of a slice go on together or not at all.
    "backoffLimit": 0,
    "podFailurePolicy": {
      "rules": [
        {
          "action": "FailJob",
          "onExitCodes": {
            "containerName": _CONTAINER,
            "operator": "In",
            "values": [BAD_INPUT],
          },
        }
      ]
    },
    "template": {"spec": _pod_spec(job, plan)},
  }


def _pod_spec(job: Job, plan: Plan) -> dict[str, Any]:
  tpu = job.slice
  node = {
    "cloud.google.com/gke-tpu-accelerator": tpu.generation.gke_accelerator,
    "cloud.google.com/gke-tpu-topology": tpu.topology,
  }
  if plan.spot:
    node["cloud.google.com/gke-spot"] = "true"
  account = (
    {"serviceAccountName": plan.service_account} if plan.service_account else {}
  )
  return {
    "restartPolicy": "Never",
    **account,
    "hostNetwork": True,
    "dnsPolicy": "ClusterFirstWithHostNet",
    "terminationGracePeriodSeconds": GRACE_SECONDS,
    "nodeSelector": node,
    "tolerations": [{"key": "google.com/tpu", "operator": "Exists"}],
    "containers": [
      {
        "name": _CONTAINER,
        "image": plan.image,
        # Not through a shell: SIGTERM reaches the program itself.
        "command": list(job.command),
        "env": [
          {"name": name, "value": value}
          for name, value in plan.environment.items()
        ],
        "securityContext": {"privileged": True},
        "resources": {"limits": {"google.com/tpu": tpu.chips_per_host}},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
      }
    ],
    "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
  }
