"""What is wrong with a JobSet, known before the API server is asked.

That is what it would refuse, and what it would take and never start: a slice of
another size, or hosts that look for each other where nobody is.

The fields are those of jobset.x-k8s.io/v1alpha2, batch/v1 and core/v1 that a
TPU job has use for; one that is not listed is refused too.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qstar_jax.distributed.start import (
  ADDRESS,
  NUM_PROCESSES,
  PORT,
  PROCESS_ID,
)

# A schema is a type, a set of allowed values, a predicate with its rule, a list
# of one schema, or a mapping of fields; a field whose name ends in `!` must be
# there, and the field `*` stands for any name.
_Schema = Any


class _Rule:
  """A predicate, and the words that complete "must be ..."."""

  def __init__(self, words: str, holds: Callable[[Any], Any]):
    self.words, self.holds = words, holds


def _matches(pattern: str, words: str) -> _Rule:
  return _Rule(
    words,
    lambda value: isinstance(value, str) and re.fullmatch(pattern, value),
  )


def _at_least(low: int) -> _Rule:
  return _Rule(
    f"a whole number, {low} or more",
    lambda value: type(value) is int and value >= low,
  )


_NAME = _matches(
  r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?",
  "1 to 63 lower-case letters, digits and `-`, the last of them no `-`",
)
_SUBDOMAIN = _matches(
  r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?",
  "lower-case letters, digits, `-` and `.`",
)
_VARIABLE = _matches(r"[A-Za-z_]\w*", "the name of a variable")
# Those that the downward API has for a variable.
_FIELD_PATH = _matches(
  r"metadata\.(name|namespace|uid|(annotations|labels)\['[-./\w]+'\])"
  r"|spec\.(nodeName|serviceAccountName)"
  r"|status\.(hostIPs?|podIPs?)",
  "a field of the pod, as in metadata.name or metadata.annotations['KEY']",
)
# The number of a pod among those of its Job.
COMPLETION_INDEX = (
  "metadata.annotations['batch.kubernetes.io/job-completion-index']"
)
_COUNT, _SIZE = _at_least(0), _at_least(1)
_STRINGS = {"*": str}
_METADATA = {"name": _NAME, "labels": _STRINGS, "annotations": _STRINGS}

_ENVIRONMENT = {
  "name!": _VARIABLE,
  "value": str,
  "valueFrom": {"fieldRef!": {"fieldPath!": _FIELD_PATH}},
}
_CONTAINER = {
  "name!": _NAME,
  "image!": str,
  "command": [str],
  "args": [str],
  "workingDir": str,
  "env": [_ENVIRONMENT],
  "securityContext": {"privileged": bool},
  "resources!": {"limits!": {"*": _SIZE}, "requests": {"*": _SIZE}},
  "volumeMounts": [{"name!": _NAME, "mountPath!": str, "readOnly": bool}],
}
_POD = {
  "restartPolicy!": {"Never", "OnFailure"},
  "serviceAccountName": _SUBDOMAIN,
  "priorityClassName": _SUBDOMAIN,
  "schedulerName": _SUBDOMAIN,
  "hostNetwork": bool,
  "dnsPolicy": {
    *("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"),
  },
  "terminationGracePeriodSeconds": _COUNT,
  "nodeSelector!": _STRINGS,
  "tolerations": [
    {
      "key": str,
      "operator": {"Exists", "Equal"},
      "value": str,
      "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    }
  ],
  "containers!": [_CONTAINER],
  "volumes": [
    {"name!": _NAME, "emptyDir!": {"medium": {"", "Memory"}, "sizeLimit": str}}
  ],
}
_EXIT_CODES = {
  "containerName": _NAME,
  "operator!": {"In", "NotIn"},
  "values!": [_at_least(0)],
}
_JOB = {
  "parallelism!": _SIZE,
  "completions!": _SIZE,
  "completionMode": {"Indexed", "NonIndexed"},
  "backoffLimit!": _COUNT,
  "activeDeadlineSeconds": _SIZE,
  "ttlSecondsAfterFinished": _COUNT,
  "podFailurePolicy": {
    "rules!": [
      {
        "action!": {"FailJob", "FailIndex", "Ignore", "Count"},
        "onExitCodes": _EXIT_CODES,
        "onPodConditions": [{"type!": str, "status": {"True", "False"}}],
      }
    ]
  },
  "template!": {"metadata": _METADATA, "spec!": _POD},
}
_JOBSET = {
  "apiVersion!": {"jobset.x-k8s.io/v1alpha2"},
  "kind!": {"JobSet"},
  "metadata!": {**_METADATA, "name!": _NAME, "namespace": _NAME},
  "spec!": {
    "suspend": bool,
    "ttlSecondsAfterFinished": _COUNT,
    "network": {
      "enableDNSHostnames": bool,
      "publishNotReadyAddresses": bool,
      "subdomain": _NAME,
    },
    "successPolicy": {
      "operator!": {"All", "Any"},
      "targetReplicatedJobs": [_NAME],
    },
    "failurePolicy": {
      "maxRestarts": _COUNT,
      "rules": [
        {
          "name": str,
          "action!": {
            *("FailJobSet", "RestartJobSet"),
            "RestartJobSetAndIgnoreMaxRestarts",
          },
          "onJobFailureReasons": [
            {
              *("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes"),
              *("MaxFailedIndexesExceeded", "PodFailurePolicy"),
            }
          ],
          "targetReplicatedJobs": [_NAME],
        }
      ],
    },
    "replicatedJobs!": [
      {
        "name!": _NAME,
        "replicas": _SIZE,
        "template!": {"metadata": _METADATA, "spec!": _JOB},
      }
    ],
  },
}


def find_errors(manifest: Any) -> list[str]:
  """What is wrong with a JobSet for TPUs: path, value and rule, one line each.

  Args:
    manifest: as YAML has it.
  """
  errors = list(_check(manifest, _JOBSET, ""))
  if errors:  # Relations are between fields that are right by themselves.
    return errors
  jobs = manifest["spec"]["replicatedJobs"]
  for index, job in enumerate(jobs):
    path = f".spec.replicatedJobs[{index}]"
    errors += [f"{path}{e}" for e in _relations(job, manifest)]
  names = [job["name"] for job in jobs]
  if len({*names}) < len(names):
    errors.append(f".spec.replicatedJobs has the names {names}: must differ")
  return errors


def _check(value: Any, schema: _Schema, path: str) -> Iterator[str]:
  """Errors of a value against a schema."""
  if isinstance(schema, dict):
    yield from _check_fields(value, schema, path)
  elif isinstance(schema, list):
    if not isinstance(value, list) or not value:
      yield f"{path} is {value!r}: must be a list of one or more"
      return
    for index, item in enumerate(value):
      yield from _check(item, schema[0], f"{path}[{index}]")
  elif isinstance(schema, set):
    if not (isinstance(value, str) and value in schema):
      known = ", ".join(sorted(map(repr, schema)))
      yield f"{path} is {value!r}: must be one of {known}"
  elif isinstance(schema, _Rule):
    if not schema.holds(value):
      yield f"{path} is {value!r}: must be {schema.words}"
  elif type(value) is not schema:
    yield f"{path} is {value!r}: must be of the type {schema.__name__}"


def _check_fields(
  value: Any, fields: Mapping[str, _Schema], path: str
) -> Iterator[str]:
  if not isinstance(value, dict):
    yield f"{path or 'the manifest'} is {value!r}: must be a mapping"
    return
  schemas = {name.removesuffix("!"): s for name, s in fields.items()}
  for name, item in value.items():
    schema = schemas.get(name, schemas.get("*"))
    if schema is None:
      known = ", ".join(schemas)
      yield f"{path}.{name}: there is no such field; known ones are {known}"
    else:
      yield from _check(item, schema, f"{path}.{name}")
  for name in fields:
    if name.endswith("!") and name.removesuffix("!") not in value:
      yield f"{path}.{name.removesuffix('!')} is missing"


def _relations(
  job: Mapping[str, Any], manifest: Mapping[str, Any]
) -> Iterator[str]:
  """Errors between fields of a replicated job."""
  spec = job["template"]["spec"]
  pod = spec["template"]["spec"]
  longest = f"{manifest['metadata']['name']}-{job['name']}-0-{{host}}"
  if len(longest) - len("{host}") + len(str(spec["completions"])) > 63:
    yield f".name: {longest} must have at most 63 characters"
  yield from _size_errors(spec, pod)
  for container in pod["containers"]:
    yield from _environment_errors(container, job, manifest)
  containers = [container["name"] for container in pod["containers"]]
  volumes = [volume["name"] for volume in pod.get("volumes", ())]
  mounts = [
    mount["name"]
    for container in pod["containers"]
    for mount in container.get("volumeMounts", ())
  ]
  for name in mounts:
    if name not in volumes:
      yield f" mounts the volume {name!r}: known ones are {volumes}"
  if "podFailurePolicy" not in spec:
    return
  if pod["restartPolicy"] != "Never":
    yield ".restartPolicy must be Never where there is a podFailurePolicy"
  for rule in spec["podFailurePolicy"]["rules"]:
    if ("onExitCodes" in rule) == ("onPodConditions" in rule):
      yield ".podFailurePolicy: a rule has onExitCodes or onPodConditions"
    codes = rule.get("onExitCodes", {})
    if codes.get("containerName", containers[0]) not in containers:
      yield (
        f".podFailurePolicy names the container {codes['containerName']!r}: "
        f"known ones are {containers}"
      )
    if codes.get("operator") == "In" and 0 in codes["values"]:
      yield ".podFailurePolicy: 0 is no failure, and may not stand under In"


def _size_errors(
  spec: Mapping[str, Any], pod: Mapping[str, Any]
) -> Iterator[str]:
  """Whether hosts and their chips make the slice that is asked for."""
  node = pod["nodeSelector"]
  for label in ("gke-tpu-accelerator", "gke-tpu-topology"):
    if f"cloud.google.com/{label}" not in node:
      yield f".nodeSelector has no cloud.google.com/{label}"
      return
  topology = node["cloud.google.com/gke-tpu-topology"]
  if not re.fullmatch(r"\d+(x\d+){1,2}", topology):
    yield f".nodeSelector has the topology {topology!r}: must be as in 4x4"
    return
  num_chips = math.prod(map(int, topology.split("x")))
  hosts = spec["completions"]
  if spec["parallelism"] != hosts:
    yield (
      f".parallelism is {spec['parallelism']}: must be .completions = {hosts}"
    )
  if hosts > 1 and spec.get("completionMode", "Indexed") != "Indexed":
    yield ".completionMode must be Indexed: hosts have numbers"
  per_host = [
    container["resources"]["limits"].get("google.com/tpu", 0)
    for container in pod["containers"]
  ]
  if hosts * sum(per_host) != num_chips:
    yield (
      f": {hosts} hosts with {sum(per_host)} chips are {hosts * sum(per_host)} "
      f"chips, but the topology {topology} has {num_chips}; hosts times "
      "google.com/tpu must be that"
    )


def _environment_errors(
  container: Mapping[str, Any],
  job: Mapping[str, Any],
  manifest: Mapping[str, Any],
) -> Iterator[str]:
  """Whether variables have one value each, and hosts will find each other."""
  variables = container.get("env", ())
  values = {variable["name"]: variable for variable in variables}
  if len(values) < len(variables):
    yield f".env of {container['name']} has a name twice"
  for name, variable in values.items():
    if ("value" in variable) == ("valueFrom" in variable):
      yield f".env: {name} must have one of value and valueFrom"
      return
  hosts = job["template"]["spec"]["completions"]
  if hosts > 1:
    yield from _start_errors(values, hosts, job["name"], manifest)


def _start_errors(
  values: Mapping[str, Mapping[str, Any]],
  hosts: int,
  job_name: str,
  manifest: Mapping[str, Any],
) -> Iterator[str]:
  """Whether several hosts will find each other."""
  network = manifest["spec"].get("network", {})
  if not network.get("enableDNSHostnames", True):
    yield ": .spec.network.enableDNSHostnames must be true: hosts have names"
  name = manifest["metadata"]["name"]
  first = f"{name}-{job_name}-0-0.{network.get('subdomain', name)}"
  expected = {
    ADDRESS: {"value": f"{first}:{PORT}"},
    NUM_PROCESSES: {"value": str(hosts)},
    PROCESS_ID: {"valueFrom": {"fieldRef": {"fieldPath": COMPLETION_INDEX}}},
  }
  for variable, right in expected.items():
    given = {**values.get(variable, {}), "name": variable}
    if given != {**right, "name": variable}:
      yield f".env: {given}: with {hosts} hosts, {variable} must have {right}"
