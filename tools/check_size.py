"""Fails if a hand-written file or function has grown too long to be read.

usage: python tools/check_size.py
"""

import ast
import pathlib
import sys
from collections.abc import Iterator

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
# A loop that is told in one piece, from the checks to the last save.
MAX_STORY_LINES = 180
STORIES = {"qstar_jax/training/loop.py": "train"}

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = ("qstar_jax", "tests", "tools")


def find_long(root: pathlib.Path = ROOT) -> Iterator[str]:
  """One line for every file and function over its limit."""
  for folder in FOLDERS:
    for path in sorted((root / folder).rglob("*.py")):
      name = path.relative_to(root).as_posix()
      text = path.read_text(encoding="utf-8")
      num_lines = len(text.splitlines())
      if num_lines > MAX_FILE_LINES:
        yield (
          f"{name}: {num_lines} lines, at most {MAX_FILE_LINES}; split it by "
          "idea"
        )
      yield from _long_functions(name, ast.parse(text))


def _long_functions(name: str, module: ast.Module) -> Iterator[str]:
  for node in ast.walk(module):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      is_story = STORIES.get(name) == node.name
      limit = MAX_STORY_LINES if is_story else MAX_FUNCTION_LINES
      num_lines = node.end_lineno - node.lineno + 1 - _docstring_lines(node)
      if num_lines > limit:
        yield (
          f"{name}:{node.lineno}: {node.name} has {num_lines} lines, at most "
          f"{limit}; name its parts"
        )


def _docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
  """Lines that tell about the function, which are not counted as its own."""
  if ast.get_docstring(node) is None:
    return 0
  return node.body[0].end_lineno - node.body[0].lineno + 1


if __name__ == "__main__":
  problems = list(find_long())
  print(*problems, sep="\n", end="\n" if problems else "")
  sys.exit(1 if problems else 0)
