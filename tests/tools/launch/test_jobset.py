"""The validator of JobSets finds what is wrong, and nothing else."""

import copy
import functools
import operator

import pytest

from tools import launch_tpu
from tools.launch import gke, jobset

_DELETE = object()
_FIELD = {"fieldRef": {"fieldPath": "metadata.name"}}
# Keys, with a space between them.
_JOB = "spec replicatedJobs 0 template spec"
_POD = f"{_JOB} template spec"
_RULE = f"{_JOB} podFailurePolicy rules 0"
_NETWORK = "spec network"
_ENV = f"{_POD} containers 0 env"
_LIMITS = f"{_POD} containers 0 resources limits"
_NODE = f"{_POD} nodeSelector cloud.google.com"


@pytest.fixture(scope="module")
def manifest():
  """A JobSet of 16 chips on 4 hosts."""
  _, plan = launch_tpu.make_plan(
    [
      *("qwen3_0p6b_v5e16", "--target=gke", "--topology=v5e:4x4"),
      *("--run-dir=gs://bucket/run", "--image=registry/qstar:1", "--spot"),
      "--service-account=trainer",
    ]
  )
  return gke.make_jobset(plan.jobs[0], plan)


def _changed(manifest, path, value):
  """A copy with the field at `path` set, or deleted."""
  manifest = copy.deepcopy(manifest)
  *above, last = (int(p) if p.isdigit() else p for p in path.split(" "))
  parent = functools.reduce(operator.getitem, above, manifest)
  if value is _DELETE:
    del parent[last]
  else:
    parent[last] = value
  return manifest


def test_ours_is_right(manifest):
  assert jobset.find_errors(manifest) == []


@pytest.mark.parametrize(
  ("path", "value", "message"),
  [
    ("apiVersion", "jobset.x-k8s.io/v1", "must be one of 'jobset.x-k8s.io/v1a"),
    ("metadata name", "tiny_cpu", "must be 1 to 63 lower-case letters"),
    ("metadata name", _DELETE, ".metadata.name is missing"),
    ("spec replicatedJob", [], ".spec.replicatedJob: there is no such field"),
    ("spec replicatedJobs", [], "must be a list of one or more"),
    ("spec failurePolicy maxRestarts", "20", "must be a whole number"),
    ("spec failurePolicy rules 0 action", "Restart", "must be one of"),
    ("spec replicatedJobs 0 replicas", True, "must be a whole number"),
    (f"{_JOB} parallelism", 3, ".parallelism is 3: must be .completions = 4"),
    (f"{_JOB} completionMode", "NonIndexed", "must be Indexed"),
    (f"{_JOB} completions", 0, "1 or more"),
    (f"{_JOB} template", None, "must be a mapping"),
    (f"{_RULE} onExitCodes values 0", 0, "no failure"),
    (
      f"{_RULE} onExitCodes containerName",
      "other",
      "names the container 'other': known ones are ['qstar']",
    ),
    (f"{_RULE} onExitCodes", _DELETE, "onPodConditio"),
    (f"{_POD} restartPolicy", "OnFailure", "must be Never"),
    (f"{_POD} hostNetwork", "true", "must be of the type bool"),
    (f"{_LIMITS} google.com/tpu", "4", "a whole nu"),
    (f"{_LIMITS} google.com/tpu", 8, "4 hosts with"),
    (f"{_ENV} 0 value", 1, "must be of the type str"),
    (f"{_ENV} 0 value", _DELETE, "must have one of value and valueFrom"),
    (f"{_ENV} 0 valueFrom", _FIELD, "must have one of value and valueFrom"),
    (f"{_ENV} 0 name", "A B", "the name of a variable"),
    (f"{_ENV} 1 name", "JAX_COMPILATION_CACHE_DIR", "has a name twice"),
    (f"{_ENV} 2 value", "other-slice-0-0.other:8476", "-slice-0-0.qwen3-0p6b"),
    (f"{_ENV} 3 value", "8", "with 4 hosts, JAX_NUM_PROCESSES must have"),
    (f"{_ENV} 3", _DELETE, "with 4 hosts, JAX_NUM_PROCESSES must have"),
    (f"{_ENV} 4 valueFrom", _FIELD, "with 4 hosts, JAX_PROCESS_ID must have"),
    (f"{_ENV} 4 valueFrom fieldRef fieldPath", "spec.x", "must be a field of"),
    (f"{_NETWORK} enableDNSHostnames", False, "enableDNSHostnames must be tr"),
    (f"{_NETWORK} subdomain", "other", "-slice-0-0.other:8476"),
    (f"{_POD} tolerations 1 effect", "Never", "must be one of 'NoExecute'"),
    (f"{_POD} containers 0 command", "qstar train", "must be a list"),
    (f"{_POD} volumes 0 name", "other", "mounts the volume 'shm'"),
    (f"{_NODE}/gke-tpu-topology", "8x8", "8x8 has 64; hosts times"),
    (f"{_NODE}/gke-tpu-topology", "16", "must be as in 4x4"),
    (f"{_NODE}/gke-tpu-accelerator", _DELETE, "has no cloud.goog"),
  ],
)
def test_what_is_wrong_is_found(manifest, path, value, message):
  errors = jobset.find_errors(_changed(manifest, path, value))
  assert len(errors) == 1
  assert message in errors[0]


def test_a_name_that_is_too_long_for_a_pod(manifest):
  errors = jobset.find_errors(_changed(manifest, "metadata name", "n" * 60))
  assert "must have at most 63 characters" in errors[0]


def test_jobs_of_one_set_differ_in_name(manifest):
  jobs = manifest["spec"]["replicatedJobs"]
  twice = _changed(manifest, "spec replicatedJobs", jobs * 2)
  assert "must differ" in jobset.find_errors(twice)[0]


@pytest.mark.parametrize("manifest", [None, [], "JobSet", 1])
def test_what_is_no_manifest_at_all(manifest):
  assert "must be a mapping" in jobset.find_errors(manifest)[0]
