"""SkyPilot reads our tasks as they are meant, where it is installed."""

import json
import pathlib
import shutil
import subprocess

import pytest

from tools import launch_tpu, regenerate_goldens
from tools.launch import skypilot
from tools.launch.plan import MODES

pytestmark = pytest.mark.skipif(
  shutil.which("sky") is None,
  reason="SkyPilot is not installed: pip install skypilot",
)

_READ = """
import json, sys
import sky
for path in sys.argv[1:]:
  task = sky.Task.from_yaml(path)
  (resources,) = task.resources
  print(json.dumps([
    task.name, task.run, task.envs, resources.accelerators,
    resources.accelerator_args, resources.use_spot, resources.zone,
    resources.job_recovery["recover_on_exit_codes"],
  ]))
"""


@pytest.mark.parametrize("mode", MODES)
def test_skypilot_reads_what_is_meant(mode, tmp_path):
  flags = dict(regenerate_goldens.launches())[f"launch_skypilot_{mode}.txt"]
  _, plan = launch_tpu.make_plan(flags)
  rendering = launch_tpu.TARGETS["skypilot"](plan, tmp_path)
  for path, text in rendering.files.items():
    path.write_text(text)
  done = subprocess.run(
    [
      str(pathlib.Path(shutil.which("sky")).parent / "python"),
      *("-c", _READ, *map(str, rendering.files)),
    ],
    capture_output=True,
    text=True,
    timeout=200,
    # SkyPilot keeps settings at home; not this repository's path.
    env={"HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"},
  )
  assert done.returncode == 0, done.stderr
  tasks = [json.loads(line) for line in done.stdout.splitlines()]
  for job, task in zip(plan.jobs, tasks, strict=True):
    assert task == [
      job.name,
      skypilot.make_task(job, plan)["run"],
      plan.environment,
      {f"tpu-{job.slice.accelerator_type}": 1},
      {"runtime_version": "v2-alpha-tpuv5-lite"},
      *(True, "us-west4-a", [75]),
    ]
