"""`qstar doctor`: every check can be ok, and can fail."""

import importlib.metadata
import json
import pathlib
import sys
import types

import pytest

from qstar_jax.cli import doctor, health


def _check(name, run_dir=pathlib.Path("runs")):
  (found,) = [c for c in health.run_checks(run_dir) if c.name == name]
  return found


def _metadata(monkeypatch, python=">=3.11", packages=("jax>=0.1",)):
  """Pretends that the installed package declares this."""
  metadata = {"Requires-Python": python}
  monkeypatch.setattr(importlib.metadata, "metadata", lambda name: metadata)
  monkeypatch.setattr(importlib.metadata, "requires", lambda name: packages)


def test_a_healthy_machine_as_json(monkeypatch, tmp_path, capsys):
  _metadata(monkeypatch)
  assert doctor.main(["--json", "--run-dir", str(tmp_path / "runs")]) == 0
  printed = json.loads(capsys.readouterr().out)
  assert printed["ok"] is True
  statuses = {check["name"]: check["status"] for check in printed["checks"]}
  assert set(statuses.values()) == {"ok"}
  assert "compilation" in statuses
  assert not (tmp_path / "runs").exists()


def test_a_table_for_people_and_exit_code_1_if_something_fails(
  monkeypatch, capsys
):
  _metadata(monkeypatch, python=">=4")
  assert doctor.main([]) == 1
  printed = capsys.readouterr().out
  assert "fail" in printed
  assert "use a Python >=4" in printed


def test_packages_out_of_bounds_are_named_with_the_cure(monkeypatch):
  packages = (
    "jax>=99",
    "absent-package>=1",
    "jax<0.1; python_version < '3'",
    "jax<0.1; extra == 'tpu'",
  )
  _metadata(monkeypatch, packages=packages)
  found = _check("packages")
  assert found.status == "fail"
  assert "absent-package missing" in found.detail
  assert found.fix == "pip install 'jax>=99' 'absent-package>=1'"


def test_what_is_not_installed_fails_without_a_traceback(monkeypatch):
  def missing(name):
    raise importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(importlib.metadata, "metadata", missing)
  assert _check("python").status == "fail"
  assert _check("compilation").status == "ok"


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
  def refuse(**options):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(health.tempfile, "TemporaryFile", refuse)
  found = _check("run directory", tmp_path)
  assert found.status == "fail"
  assert "Permission denied" in found.detail


def test_a_full_disk_is_a_warning(tmp_path, monkeypatch):
  usage = types.SimpleNamespace(free=2**20)
  monkeypatch.setattr(health.shutil, "disk_usage", lambda path: usage)
  assert _check("run directory", tmp_path).status == "warn"


@pytest.mark.parametrize(("kind", "status"), [("CPU", "ok"), ("GPU", "fail")])
def test_tensorflow_may_see_no_accelerator(monkeypatch, kind, status):
  device = types.SimpleNamespace(device_type=kind, name=f"/device:{kind}:0")
  config = types.SimpleNamespace(get_visible_devices=lambda: [device])
  tensorflow = types.SimpleNamespace(config=config)
  monkeypatch.setitem(sys.modules, "tensorflow", tensorflow)
  assert _check("tensorflow").status == status


def test_an_idle_accelerator_is_a_warning(monkeypatch):
  monkeypatch.setattr(health.glob, "glob", lambda pattern: [pattern])
  found = _check("devices")
  assert found.status == "warn"
  assert "[tpu]" in found.fix


def test_the_data_folder(monkeypatch, tmp_path):
  monkeypatch.delenv("QSTAR_DATA_DIR", raising=False)
  assert _check("data").status == "ok"
  monkeypatch.setenv("QSTAR_DATA_DIR", str(tmp_path / "none"))
  assert _check("data").status == "fail"
  monkeypatch.setenv("QSTAR_DATA_DIR", str(tmp_path))
  assert _check("data").status == "warn"
  (tmp_path / "game24").mkdir()
  assert "game24" in _check("data").detail
