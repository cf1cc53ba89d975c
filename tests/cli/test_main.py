"""The frame of the command line: dispatch, exit codes, messages."""

import importlib.metadata
import os
import pathlib
import subprocess
import sys
import tomllib
import types

import pytest

import qstar_jax
from qstar_jax.cli import main as main_lib
from qstar_jax.errors import UserError


def _command(monkeypatch, behaviour):
  """Makes `qstar solve` call `behaviour`."""
  module = types.ModuleType("qstar_jax.cli.solve")
  module.main = behaviour
  monkeypatch.setitem(sys.modules, module.__name__, module)


def _raise(error):
  raise error


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_help_lists_every_command_with_its_line(argv, capsys):
  assert main_lib.main(argv) == 0
  printed = capsys.readouterr().out
  for command, line in main_lib.COMMANDS.items():
    assert f"{command} " in printed
    assert line in printed
  assert all(len(line) <= 80 for line in printed.splitlines())


def test_version(capsys):
  assert main_lib.main(["--version"]) == 0
  assert capsys.readouterr().out == f"qstar_jax {qstar_jax.__version__}\n"


def test_an_unknown_command_gets_a_suggestion(capsys):
  assert main_lib.main(["trian"]) == 2
  out, err = capsys.readouterr()
  assert not out
  assert "did you mean train?" in err
  assert err.count("\n") == 1
  assert all(command in err for command in main_lib.COMMANDS)


@pytest.mark.parametrize("code", [0, 1, 75])
def test_arguments_go_to_the_command_and_its_exit_code_comes_back(
  monkeypatch, code
):
  seen = []
  _command(monkeypatch, lambda argv: seen.append(argv) or code)
  assert main_lib.main(["solve", "RUN", "--flag", "x"]) == code
  assert seen == [["RUN", "--flag", "x"]]


@pytest.mark.parametrize(
  ("error", "code", "message"),
  [
    (UserError("x is 1: must be 2; use 2"), 2, "qstar solve: x is 1: must"),
    (KeyboardInterrupt(), 130, "qstar solve: interrupted"),
  ],
)
def test_expected_errors_are_one_line_on_stderr(
  monkeypatch, capsys, error, code, message
):
  _command(monkeypatch, lambda argv: _raise(error))
  assert main_lib.main(["solve"]) == code
  out, err = capsys.readouterr()
  assert not out
  assert err.startswith(message)
  assert err.count("\n") == 1


def test_a_bug_keeps_its_traceback(monkeypatch):
  _command(monkeypatch, lambda argv: _raise(ValueError("a bug")))
  with pytest.raises(ValueError, match="a bug"):
    main_lib.main(["solve"])


def _python(code, **options):
  return subprocess.run(
    [sys.executable, "-c", code], text=True, stderr=subprocess.PIPE, **options
  )


def test_a_reader_that_leaves_ends_the_command_in_silence():
  reader, writer = os.pipe()
  os.close(reader)
  finished = _python(
    "import sys; from qstar_jax.cli.main import main; sys.exit(main([]))",
    stdout=writer,
    # Text waits in the buffer, as it does for everyone.
    env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
  )
  os.close(writer)
  assert (finished.returncode, finished.stderr) == (141, "")


def test_help_and_typing_errors_load_no_jax():
  finished = _python(
    "import sys; from qstar_jax.cli.main import main; main(['--help']);"
    "main(['trian']); print(*sys.modules, file=sys.stderr)",
    stdout=subprocess.DEVNULL,
  )
  assert not {"jax", "numpy", "rich"} & set(finished.stderr.split())


def test_the_console_script_is_declared():
  root = pathlib.Path(qstar_jax.__file__).parents[1]
  project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
  script = importlib.metadata.EntryPoint(
    "qstar", project["scripts"]["qstar"], "console_scripts"
  )
  assert script.load() is main_lib.main
