"""GKE: a JobSet for every job, given to the cluster by kubectl.

A JobSet restarts all of its jobs when one of them has failed. Jobs of a run are
to go on without each other, so each is the one replicated job of a JobSet.

Pods are on the network of the cluster, as in Google's own example of a JobSet
on the hosts of one slice (GoogleCloudPlatform/kubernetes-engine-samples,
ai-ml/llm-training-jax-tpu-gemma3/training_multihost_jobset.yaml). With
`hostNetwork` a pod would be the node's service account and not its own
(Workload Identity Federation for GKE, "Restrictions"). What that gains was
measured between slices (github.com/apple/axlearn/pull/641), and a job is one
slice: its chips have wires of their own.
"""

import pathlib
from typing import Any

import yaml

from qstar_jax.distributed.start import ADDRESS, NUM_PROCESSES, PORT, PROCESS_ID
from qstar_jax.errors import UserError
from tools.launch import jobset
from tools.launch.plan import (
  BAD_INPUT,
  GRACE_SECONDS,
  Job,
  Plan,
  Rendering,
)

_CONTAINER = "qstar"
_REPLICATED_JOB = "slice"


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
  network = {}
  if job.slice.num_hosts > 1:
    # The hosts of one slice are one node pool.
    metadata["annotations"] = {
      "alpha.jobset.sigs.k8s.io/exclusive-topology": (
        "cloud.google.com/gke-nodepool"
      )
    }
    # Pods have names, by which they find the first one.
    network["network"] = {"enableDNSHostnames": True, "subdomain": job.name}
  return {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": metadata,
    "spec": {
      **network,
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
          "name": _REPLICATED_JOB,
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
  tolerations = [{"key": "google.com/tpu", "operator": "Exists"}]
  if plan.spot:
    spot = "cloud.google.com/gke-spot"
    node[spot] = "true"
    # Spot nodes keep off what does not say that it may be cut.
    tolerations.append(
      {
        "key": spot,
        "operator": "Equal",
        "value": "true",
        "effect": "NoSchedule",
      }
    )
  account = (
    {"serviceAccountName": plan.service_account} if plan.service_account else {}
  )
  return {
    "restartPolicy": "Never",
    **account,
    "terminationGracePeriodSeconds": GRACE_SECONDS,
    "nodeSelector": node,
    "tolerations": tolerations,
    "containers": [
      {
        "name": _CONTAINER,
        "image": plan.image,
        # Not through a shell: SIGTERM reaches the program itself.
        "command": list(job.command),
        "env": _environment(job, plan),
        "securityContext": {"privileged": True},
        "resources": {"limits": {"google.com/tpu": tpu.chips_per_host}},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
      }
    ],
    "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
  }


def _environment(job: Job, plan: Plan) -> list[dict[str, Any]]:
  """Variables of the container; on several hosts, how they find each other."""
  values = dict(plan.environment)
  of_host = []
  if job.slice.num_hosts > 1:
    # JobSet names pods JOBSET-REPLICATED_JOB-REPLICA-INDEX.SUBDOMAIN.
    first = f"{job.name}-{_REPLICATED_JOB}-0-0.{job.name}"
    values[ADDRESS] = f"{first}:{PORT}"
    values[NUM_PROCESSES] = str(job.slice.num_hosts)
    index = {"fieldRef": {"fieldPath": jobset.COMPLETION_INDEX}}
    of_host = [{"name": PROCESS_ID, "valueFrom": index}]
  literals = [{"name": name, "value": value} for name, value in values.items()]
  return literals + of_host
