"""Rendering of a run for every target, and what is done without --dry-run."""

import json
import pathlib
import re
import subprocess

import pytest
import yaml

from qstar_jax import configuration, validation
from qstar_jax.errors import UserError
from tools import launch_tpu, regenerate_goldens

FLAGS = [
  *("qwen3_0p6b_v5e16", "--topology=v5e:4x4", "--run-dir=gs://bucket/run"),
  "--image=registry/qstar:1",
]
FILES = ["--mode=files", "--target=gke"]
QUEUED = ["--target=queued-resources", "--zone=us-west4-a"]
SMALL = ("--evaluator-topology=v5e:2x4",)
# What each target cannot do without.
NEEDED = {"queued-resources": QUEUED[1:], "xpk": ["--cluster=cluster"]}


def _plan(*flags):
  return launch_tpu.make_plan([*FLAGS, *flags])[1]


def _refusal(*flags):
  with pytest.raises(UserError) as raised:
    _plan("--target=gke", *flags)
  return str(raised.value)


# What is rendered.


@pytest.mark.parametrize(("name", "flags"), [*regenerate_goldens.launches()])
def test_golden(name, flags):
  expected = (regenerate_goldens.LAUNCHES / name).read_text(encoding="utf-8")
  assert regenerate_goldens.render_launch(flags) == expected, (
    "if the change is meant, run tools/regenerate_goldens.py and read the diff"
  )


@pytest.mark.parametrize(
  "flags",
  [
    ["--mode=alternate"],
    ["--mode=split", "--mesh.actor-devices=8", "--mesh.fsdp=8"],
    ["--mode=files", "--actor-topology=v5e:2x2"],
  ],
)
def test_commands_are_such_as_the_config_takes(flags):
  jobs = _plan("--target=gke", *flags, "--learner.learning-rate", "1e-3").jobs
  for job in jobs:
    _, command, config, *rest = job.command
    if command != "evaluate":
      first = rest.index("--actor-id") + 2 if command == "actor" else 2
      loaded = configuration.load(config, rest[first:])
      assert loaded.learner.learning_rate == 1e-3
      assert f"--mode={loaded.run_mode}" == flags[0]
      validation.validate_for_devices(loaded, job.slice.num_chips)


def test_the_config_has_the_mode(tmp_path):
  path = tmp_path / "mine.yaml"
  path.write_text("run_mode: files\nmesh: {data: -1}\n")
  _, made = launch_tpu.make_plan([str(path), *FLAGS[1:], "--target=gke"])
  assert [job.command[1] for job in made.jobs] == [
    *("learner", "actor", "evaluate")
  ]


def test_jobs_of_the_files_mode():
  jobs = _plan(*FILES, "--actors=3").jobs
  assert [job.command[1] for job in jobs] == [
    *("learner", "actor", "actor", "actor", "evaluate")
  ]
  ids = [
    job.command[job.command.index("--actor-id") + 1]
    for job in jobs
    if job.command[1] == "actor"
  ]
  assert ids == ["0", "1", "2"]
  assert len({job.name for job in jobs}) == len(jobs)


def test_a_slice_without_room_for_fsdp_plays_without_it():
  learner, actor, evaluator = _plan(*FILES, "--actor-topology=v5e:2x2").jobs
  flags = ("--mesh.data=-1", "--mesh.fsdp=1")
  assert actor.command[-2:] == flags and str(actor.slice) == "v5e:2x2"
  assert not {*flags} & {*learner.command, *evaluator.command}


def test_each_job_of_gke_is_restarted_by_itself():
  rendering = launch_tpu.TARGETS["gke"](_plan(*FILES), pathlib.Path("out"))
  assert len(rendering.files) == 3
  for text in rendering.files.values():
    jobset = yaml.safe_load(text)
    assert len(jobset["spec"]["replicatedJobs"]) == 1
    assert jobset["spec"]["replicatedJobs"][0]["replicas"] == 1


def test_a_config_of_the_users_own_goes_to_the_bucket_first(tmp_path, capsys):
  path = tmp_path / "mine.yaml"
  path.write_text("name: mine\n")
  flags = [str(path), *FLAGS[1:], "--target=xpk", "--cluster=c", "--dry-run"]
  assert launch_tpu.main(flags) == 0
  printed = capsys.readouterr().out
  (copy,) = set(re.findall(r"gs://bucket/run/launch-\w+\.yaml", printed))
  assert f"gcloud storage cp {path} {copy}" in printed
  assert f"qstar train {copy} --run-dir gs://bucket/run" in printed
  assert printed.index("gcloud storage") < printed.index("xpk workload")


def test_environment_of_the_users_own_wins():
  environment = _plan(
    *("--target=gke", "--env=JAX_PLATFORMS=tpu", "--env=A=b=c d")
  ).environment
  assert environment["JAX_PLATFORMS"] == "tpu"
  assert environment["A"] == "b=c d"


@pytest.mark.parametrize("spot", [True, False])
def test_pods_go_to_spot_nodes_where_they_are_asked_to(spot):
  rendering = launch_tpu.TARGETS["gke"](
    _plan("--target=gke", *(["--spot"] if spot else [])), pathlib.Path("out")
  )
  ((_, text),) = rendering.files.items()
  (replicated,) = yaml.safe_load(text)["spec"]["replicatedJobs"]
  pod = replicated["template"]["spec"]["template"]["spec"]
  # The taint and the label that GKE gives to spot nodes.
  key, value, effect = "cloud.google.com/gke-spot", "true", "NoSchedule"
  tolerated = {"key": key, "operator": "Equal", "value": value} | {
    "effect": effect
  }
  assert (tolerated in pod["tolerations"]) == spot
  assert (pod["nodeSelector"].get(key) == value) == spot


# What is refused.


@pytest.mark.parametrize("topology", ["v5e:2x4", "v5e:2x2"])
def test_a_mesh_that_does_not_fit_the_chips(topology):
  message = _refusal(f"--topology={topology}")
  chips = {"v5e:2x4": 8, "v5e:2x2": 4}[topology]
  assert f"train on {topology}, {chips} chips on 1 host: mesh" in message
  assert f"(-1, 16, 1) does not fit {chips} devices" in message
  assert f"must divide {chips}; make it {chips}" in message


def test_a_batch_that_does_not_fit_the_chips():
  message = _refusal("--mesh.fsdp=1", "--learner.batch-size=40")
  rule = (
    r"learner.batch_size is 40: must be divisible by .*\b16\b.*use 32 or 48"
  )
  assert re.search(rule, message)


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--run-dir=runs/here"], "--run-dir is 'runs/here': must be in a bucket"),
    (["--actors=2"], "--actors is given and the mode is alternate"),
    (["--mode=files", "--actors=0"], "--actors is 0: must be 1 or more"),
    (["--max-restarts=-1"], "--max-restarts is -1: must be 0 or more"),
    (["--env=A"], "--env is 'A': must be NAME=VALUE"),
    (["--env=JAX_PROCESS_ID=0"], "JAX_PROCESS_ID differs from host to host"),
    (["--name=9"], "--name is '9': must begin with a letter"),
    ([f"--name={'a' * 40}"], "at most 29 characters"),
    (["--topology=v5e:3x3"], "topology is v5e:3x3"),
    (["--search.num-candidats=3"], "num-candidats"),
  ],
)
def test_flags_that_are_wrong(flags, message):
  assert message in _refusal(*flags)


@pytest.mark.parametrize(
  ("target", "flags", "message"),
  [
    ("queued-resources", [], "--zone is not given"),
    ("xpk", [], "--cluster is not given"),
    (
      "xpk",
      ["--cluster=c", "--topology=v5e:2x2", "--mesh.fsdp=4"],
      "xpk has slices of v5e from 2x4 on",
    ),
    (
      "skypilot",
      ["--topology=v5p:4x4x16", "--evaluation.batch-size=256"],
      "256 chips are v5p:4x8x8",
    ),
  ],
)
def test_what_a_target_refuses(target, flags, message, capsys):
  code = launch_tpu.main([*FLAGS, f"--target={target}", *flags, "--dry-run"])
  assert code == 2
  assert message in capsys.readouterr().err


@pytest.mark.parametrize("target", launch_tpu.TARGETS)
@pytest.mark.parametrize(
  ("flag", "values"),
  [
    ("--project", ("one", "two")),
    ("--zone", ("us-west4-a", "us-west4-b")),
    ("--cluster", ("one", "two")),
    ("--service-account", ("one", "two")),
    ("--max-restarts", ("0", "5")),
    ("--name", ("one", "two")),
    ("--image", ("registry/one:1", "registry/two:1")),
    ("--run-dir", ("gs://bucket/one", "gs://bucket/two")),
    ("--env", ("A=one", "A=two")),
  ],
)
def test_no_flag_is_ignored(target, flag, values, capsys):
  """It makes a difference, or it is refused with the targets that take it."""
  printed = set()
  for value in values:
    flags = [f"--target={target}", *NEEDED.get(target, ()), f"{flag}={value}"]
    code = launch_tpu.main([*FLAGS, *flags, "--dry-run"])
    out, error = capsys.readouterr()
    printed.add(out)
    if code:
      assert f"{flag} is" in error and f"the target {target} has no" in error
      takers = re.search(r"it is for ([^;]+); leave it out", error)[1]
      assert target not in takers.split(", ")
      return
  assert len(printed) == len(values)


# What is done.


class _Cloud:
  """Stands for the commands: answers, and remembers."""

  def __init__(self, states=None, fails=()):
    self.states, self.fails, self.commands = states or {}, fails, []

  def __call__(self, command, *, capture=False):
    self.commands.append(tuple(command))
    if "describe" in command:
      assert capture
      state = self.states.get(command[5])
      if state is None:
        return subprocess.CompletedProcess(command, 1, "", "NOT_FOUND: no")
      answer = json.dumps({"name": "x", "state": {"state": state}})
      return subprocess.CompletedProcess(command, 0, answer, "")
    code = int(any(word in command for word in self.fails))
    return subprocess.CompletedProcess(command, code)

  def verbs(self):
    return [command[4] for command in self.commands]


QUEUED_RUN = [*FLAGS, *QUEUED, "--name=run"]


def test_dead_resources_of_the_name_are_deleted_first(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  cloud = _Cloud({"run": "SUSPENDED"})
  assert launch_tpu.main(QUEUED_RUN, cloud) == 0
  assert cloud.verbs() == ["describe", "delete", "create"]
  (script,) = (
    word.removeprefix("--metadata-from-file=startup-script=")
    for word in cloud.commands[-1]
    if "startup-script" in word
  )
  assert pathlib.Path(script).read_text().startswith("#!/bin/bash\n")


def test_nothing_is_deleted_where_there_is_nothing(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  cloud = _Cloud()
  assert launch_tpu.main(QUEUED_RUN, cloud) == 0
  assert cloud.verbs() == ["describe", "create"]


def test_what_lives_is_left_alone(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  # The first job is dead, the second is not: neither is touched.
  cloud = _Cloud({"run-learner": "FAILED", "run-actor-0": "ACTIVE"})
  assert launch_tpu.main([*QUEUED_RUN, "--mode=files", *SMALL], cloud) == 2
  assert {*cloud.verbs()} == {"describe"}
  assert "run-actor-0 is ACTIVE in us-west4-a" in capsys.readouterr().err


def test_it_ends_with_the_first_command_that_fails(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  cloud = _Cloud(fails=["--filename=build/launch/run/run-actor-0.yaml"])
  assert launch_tpu.main([*FLAGS, *FILES, *SMALL, "--name=run"], cloud) == 2
  assert len(cloud.commands) == 2
  assert "ended with exit code 1" in capsys.readouterr().err


def test_evaluators_are_launched_on_one_host(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  cloud = _Cloud()
  assert launch_tpu.main([*FLAGS, *FILES, "--name=run"], cloud) == 2
  assert not cloud.commands and not list(tmp_path.iterdir())
  assert "run-evaluator is on v5e:4x4" in capsys.readouterr().err


def test_a_tool_that_is_not_installed(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("PATH", str(tmp_path))
  assert launch_tpu.main([*FLAGS, "--target=gke"]) == 2
  assert "kubectl: no such command; install it" in capsys.readouterr().err


def test_a_dry_run_does_nothing(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  cloud = _Cloud()
  assert launch_tpu.main([*QUEUED_RUN, "--dry-run"], cloud) == 0
  assert not cloud.commands and not list(tmp_path.iterdir())
