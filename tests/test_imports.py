"""Which part may import which, and what `import qstar_jax` costs."""

import ast
import pathlib
import subprocess
import sys

import pytest

import qstar_jax

PACKAGE = pathlib.Path(qstar_jax.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# What every part may import.
_BASE = {"config", "errors", "improvement", "records", "step_metrics"}
_WORLD = {"domains", "text", "model", "search", "store", "replay"}
_WORLD |= {"distributed"}
_PLAY = _WORLD | {"selfplay"}

# Part: the parts it may import besides itself and the base. A part is a folder
# or a file of qstar_jax/. The base imports nothing but itself.
ALLOWED = {
  **{part: set() for part in _BASE},
  "domains": set(),
  "text": set(),
  "distributed": set(),
  "model": {"distributed"},
  "search": set(),
  "store": set(),
  "replay": {"store"},
  "data": {"domains", "text", "store", "replay", "labels"},
  "selfplay": _WORLD,
  "labels": _PLAY,
  "learner": {"model", "replay", "distributed"},
  "checkpoint": {"configuration", "distributed", "learner", "model"}
  | {"store", "text"},
  "evaluation": _PLAY | {"labels", "checkpoint", "configuration"},
  "validation": {"domains", "model", "search", "distributed"},
  "configuration": {"validation", "store"},
  "training": _PLAY
  | {"configuration", "validation", "data", "labels", "learner"}
  | {"checkpoint", "evaluation"},
}
# Only commands may import everything.
_COMMANDS = "cli"

# Outside modules that only these parts may import.
RESERVED = {
  "tensorflow": {"data"},
  "tensorflow_text": {"data"},
  "seqio": {"data"},
}
_WITHOUT_JAX = {"config", "errors", "records", "domains", "text", "store"}
_WITHOUT_JAX |= {"replay", "data", "validation", "configuration"}


def _part(path: pathlib.Path) -> str:
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: pathlib.Path) -> set[str]:
  """Full names of all that a module imports, wherever in it."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      # `from a import b` may import the module a.b.
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


@pytest.mark.parametrize(
  "path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_go_one_way(path):
  part = _part(path)
  if part == "__init__":
    assert not _imports(path), "`import qstar_jax` loads nothing"
    return
  for name in _imports(path):
    top, *rest = name.split(".")
    assert part in RESERVED.get(top, {part}), f"{path} imports {name}"
    if top == "jax" and part in _WITHOUT_JAX:
      pytest.fail(f"{path} imports {name}: {part} is free of JAX")
    if top == "qstar_jax" and part != _COMMANDS:
      assert part in ALLOWED, f"add {part} and what it may import to ALLOWED"
      known = ALLOWED[part] | _BASE | {part, "__version__"}
      assert {*rest[:1]} <= known, f"{path} imports {name}: {part} may not"


def test_no_two_parts_import_each_other():
  for part, allowed in ALLOWED.items():
    for other in allowed:
      assert part not in ALLOWED[other], f"{part} and {other}"


def _run(code: str, *flags: str) -> str:
  return subprocess.run(
    [sys.executable, *flags, "-c", code],
    check=True,
    capture_output=True,
    text=True,
    cwd=PACKAGE.parent,
  ).stdout


def test_the_package_is_imported_at_once():
  loaded = _run(
    "import sys, time; start = time.perf_counter(); import qstar_jax;"
    "print(time.perf_counter() - start, *sys.modules)"
  )
  seconds, *modules = loaded.split()
  assert float(seconds) < 0.5
  assert not {"jax", "numpy", "tensorflow", "seqio"} & set(modules)


@pytest.mark.parametrize(
  "module",
  [
    *("domains", "text.vocabulary", "store.writer", "replay", "labels.codec"),
    *("data.splits", "data.math_aps", "data.math_shepherd", "data.gsm8k"),
    *("configuration", "cli.main"),
  ],
)
def test_modules_that_need_no_accelerator_load_no_jax(module):
  loaded = _run(
    f"import sys, qstar_jax.{module}; print(*sys.modules, sep='\\n')",
    "-Werror",
  ).split()
  assert not {"jax", "tensorflow", "seqio"} & set(loaded)
