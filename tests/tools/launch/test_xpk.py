"""XPK's own dry run accepts what we give it, where XPK is installed."""

import json
import pathlib
import shutil
import subprocess

import pytest
import yaml

from tools import launch_tpu, regenerate_goldens
from tools.launch.plan import MODES
from tools.launch.slices import GENERATIONS, parse_slice

pytestmark = pytest.mark.skipif(
  shutil.which("xpk") is None, reason="xpk is not installed: pip install xpk"
)


@pytest.mark.parametrize("mode", MODES)
def test_xpk_accepts_the_commands_and_makes_our_slices(
  mode, tmp_path, monkeypatch
):
  monkeypatch.setenv("HOME", str(tmp_path))  # XPK keeps settings there.
  flags = dict(regenerate_goldens.launches())[f"launch_xpk_{mode}.txt"]
  _, plan = launch_tpu.make_plan(flags)
  rendering = launch_tpu.TARGETS["xpk"](plan, pathlib.Path("unused"))
  for job, command in zip(plan.jobs, rendering.commands, strict=True):
    path = tmp_path / f"{job.name}.yaml"
    done = subprocess.run(
      [
        *(*command, "--dry-run", "--skip-validation"),
        f"--output-manifest-file={path}",
      ],
      capture_output=True,
      text=True,
      timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    _check_manifest(yaml.safe_load(path.read_text()), job, plan)


def _check_manifest(manifest, job, plan):
  """What XPK made of a job is what the job is."""
  spec = manifest["spec"]
  assert spec["failurePolicy"]["maxRestarts"] == plan.max_restarts
  (replicated,) = spec["replicatedJobs"]
  assert replicated["replicas"] == 1
  job_spec = replicated["template"]["spec"]
  # To the pods of such Jobs GKE gives TPU_WORKER_ID and TPU_WORKER_HOSTNAMES.
  assert job_spec.get("completionMode", "Indexed") == "Indexed"
  assert spec.get("network", {}).get("enableDNSHostnames", True)
  pod = job_spec["template"]["spec"]
  tpu = job.slice
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": tpu.generation.gke_accelerator,
    "cloud.google.com/gke-tpu-topology": tpu.topology,
  }
  (container,) = pod["containers"]
  chips = container["resources"]["limits"]["google.com/tpu"]
  # Not host by host: XPK makes 2x4 of two machines.
  assert job_spec["completions"] * chips == tpu.num_chips
  variables = {item["name"]: item["value"] for item in container["env"]}
  assert variables == plan.environment
  assert f"(exec {' '.join(job.command)})" in container["command"][-1]
  restarts = job_spec["podFailurePolicy"]["rules"][0]["onExitCodes"]
  assert restarts["operator"] == "NotIn"
  assert {1, 75} <= {*restarts["values"]} and 2 not in restarts["values"]


def test_our_names_of_slices_are_xpk_s():
  code = """
import json
from xpk.core import system_characteristics as s
print(json.dumps({
  name: [system.topology, system.gke_accelerator]
  for name, system in s.UserFacingNameToSystemCharacteristics.items()
  if 'x' not in name and system.accelerator_type == s.AcceleratorType.TPU
}))
"""
  done = subprocess.run(
    [str(pathlib.Path(shutil.which("xpk")).parent / "python"), "-c", code],
    capture_output=True,
    text=True,
    check=True,
    timeout=120,
    env={},  # Not this repository's path.
  )
  of_prefix = {g.accelerator: name for name, g in GENERATIONS.items()}
  num_checked = 0
  for name, (topology, accelerator) in json.loads(done.stdout).items():
    generation = of_prefix.get(name.partition("-")[0])
    # Of the largest, XPK takes any shape of a size.
    if generation and int(name.partition("-")[2]) <= 8192:
      ours = parse_slice(f"{generation}:{topology}")
      assert ours.accelerator_type == name
      assert ours.generation.gke_accelerator == accelerator
      num_checked += 1
  assert num_checked > 50
