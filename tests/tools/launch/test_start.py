"""What hosts run: the start script, and how several start as one program."""

import dataclasses
import itertools
import os
import subprocess

import pytest

from tools import launch_tpu
from tools.launch import gke, queued_resources, skypilot

FLAGS = [
  *("qwen3_0p6b_v5e16", "--topology=v5e:4x4", "--run-dir=gs://bucket/run"),
  "--image=registry/qstar:1",
]
TARGET = {
  "gke": ["--target=gke"],
  "queued-resources": ["--target=queued-resources", "--zone=us-west4-a"],
  "skypilot": ["--target=skypilot"],
}
ONE_HOST = ["--topology=v5e:2x4", "--mesh.fsdp=8"]
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
ADDRESSES = [f"10.0.0.{10 + host}" for host in range(16)]


def _plan(*flags):
  return launch_tpu.make_plan([*FLAGS, *flags])[1]


def _tool(folder, name, script):
  folder.mkdir(exist_ok=True)
  (folder / name).write_text(f"#!/bin/bash\n{script}")
  (folder / name).chmod(0o755)


def _bash(script, tools, **environment):
  return subprocess.run(
    ["bash", "-c", script],
    cwd=tools.parent,
    env={"PATH": f"{tools}:{os.environ['PATH']}", **environment},
    check=True,
    capture_output=True,
    text=True,
    timeout=60,
  ).stdout


# How several hosts start as one program.


def _in_pods(job, plan, host, tmp_path):
  """What JobSet and the kubelet make of a manifest."""
  del tmp_path
  spec = gke.make_jobset(job, plan)["spec"]
  (replicated,) = spec["replicatedJobs"]
  pod = replicated["template"]["spec"]["template"]["spec"]
  index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
  found = {}
  for item in pod["containers"][0]["env"]:
    if "valueFrom" in item:
      assert item["valueFrom"]["fieldRef"]["fieldPath"] == index
    found[item["name"]] = item.get("value", str(host))
  subdomain = spec.get("network", {}).get("subdomain")
  first = f"{job.name}-{replicated['name']}-0-0.{subdomain}"
  return found, first


def _on_vms(job, plan, host, tmp_path):
  """What Cloud TPU's metadata server and the start script make of a host."""
  (text,) = queued_resources.render(
    dataclasses.replace(plan, jobs=(job,)), tmp_path
  ).files.values()
  tools = tmp_path / "bin"
  triples = ",".join(f"name:{i}:{a}" for i, a in enumerate(ADDRESSES))
  # It has no answer at first.
  answers = f"""
[[ -e asked-${{@: -1:1}} ]] || {{ mkdir -p "asked-${{@: -1:1}}"; exit 22; }}
case ${{@: -1:1}} in
  http://metadata.google.internal/*/agent-worker-number) echo -n {host} ;;
  http://metadata.google.internal/*/worker-network-endpoints)
    echo -n {triples if host % 2 else ",".join(ADDRESSES)} ;;
esac
"""
  _tool(tools, "curl", answers)
  _tool(tools, "sleep", "")
  _tool(tools, "docker", '[[ $1 == run ]] && printf "%s\\n" "$@" > arguments')
  _bash(text, tools)
  words = (tmp_path / "arguments").read_text().splitlines()
  pairs = [
    w.partition("=") for v, w in itertools.pairwise(words) if v == "--env"
  ]
  return {name: value for name, _, value in pairs}, ADDRESSES[0]


def _in_tasks(job, plan, host, tmp_path):
  """What SkyPilot makes of a host."""
  task = skypilot.make_task(job, plan)
  tools = tmp_path / "bin"
  _tool(tools, "qstar", "env")
  printed = _bash(
    task["run"],
    tools,
    **task["envs"],
    SKYPILOT_NODE_IPS="\n".join(ADDRESSES[: job.slice.num_hosts]),
    SKYPILOT_NODE_RANK=str(host),
  )
  pairs = [line.partition("=") for line in printed.splitlines()]
  return {name: value for name, _, value in pairs}, ADDRESSES[0]


STARTS = {"gke": _in_pods, "queued-resources": _on_vms, "skypilot": _in_tasks}


@pytest.mark.parametrize("host", [0, 3])
@pytest.mark.parametrize("target", STARTS)
def test_every_host_knows_its_number_and_where_the_first_is(
  target, host, tmp_path
):
  plan = _plan(*TARGET[target], "--mode=files", "--actor-topology=v5e:4x8")
  for job in plan.jobs:
    found, first = STARTS[target](job, plan, host, tmp_path)
    assert found["JAX_PLATFORMS"] == "tpu,cpu"
    assert {name: found[name] for name in VARIABLES} == {
      "JAX_COORDINATOR_ADDRESS": f"{first}:8476",
      "JAX_NUM_PROCESSES": str(job.slice.num_hosts),
      "JAX_PROCESS_ID": str(host),
    }


@pytest.mark.parametrize("target", STARTS)
def test_one_host_alone_looks_for_no_others(target, tmp_path):
  plan = _plan(*TARGET[target], *ONE_HOST)
  found, _ = STARTS[target](plan.jobs[0], plan, 0, tmp_path)
  assert found["JAX_PLATFORMS"] == "tpu,cpu"
  assert not {*VARIABLES} & {*found}


def test_jobs_of_a_run_are_programs_of_their_own():
  plan = _plan(*TARGET["gke"], "--mode=files", "--actors=3")
  firsts = {
    _in_pods(job, plan, 0, None)[0]["JAX_COORDINATOR_ADDRESS"]
    for job in plan.jobs
  }
  assert len(firsts) == len(plan.jobs)


# The startup script.


def _run_script(tmp_path, codes, *flags):
  """Runs the script with programs that end with `codes`; returns its starts."""
  launched = _plan(*TARGET["queued-resources"], *ONE_HOST, *flags)
  (text,) = queued_resources.render(launched, tmp_path).files.values()
  (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
  tools = tmp_path / "bin"
  docker = """
[[ $1 == run ]] || exit 0
printf '%s\\n' "$@" > arguments
echo started >> starts
code=$(head -n 1 codes); sed -i 1d codes; exit "$code"
"""
  _tool(tools, "docker", docker)
  _tool(tools, "sleep", "")
  _bash(text, tools)
  return len((tmp_path / "starts").read_text().splitlines())


@pytest.mark.parametrize(
  ("codes", "starts"),
  [
    ([0, 0], 1),
    ([2, 0], 1),
    ([75, 75, 75, 75, 0], 5),  # However often.
    ([1, 75, 139, 0], 4),
    ([1, 1, 1, 1], 3),  # Two restarts after crashes.
    ([125, 2, 0], 2),
  ],
)
def test_the_script_starts_again_by_exit_code(tmp_path, codes, starts):
  assert _run_script(tmp_path, codes, "--max-restarts=2") == starts


def test_the_script_passes_every_word_on_as_it_is(tmp_path):
  _run_script(tmp_path, [0], "--env=A=b 'c' $d", "--name=it")
  words = (tmp_path / "arguments").read_text().splitlines()
  assert "A=b 'c' $d" in words
  image = words.index("registry/qstar:1")
  assert words[image + 1 :] == [
    *("qstar", "train", "qwen3_0p6b_v5e16", "--run-dir", "gs://bucket/run"),
    "--mesh.fsdp=8",
  ]
