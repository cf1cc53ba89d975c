"""The size check finds what is too long, and nothing else."""

from tools import check_size


def _function(name, num_statements, docstring=""):
  lines = [f"def {name}():", f'  """{docstring}"""' if docstring else "  pass"]
  return "\n".join([*lines, *["  pass"] * num_statements, ""])


def _find(root, name, text):
  path = root / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  return list(check_size.find_long(root))


def test_a_long_file(tmp_path):
  assert not _find(tmp_path, "tools/a.py", "x = 1\n" * 500)
  (found,) = _find(tmp_path, "tools/a.py", "x = 1\n" * 501)
  assert found.startswith("tools/a.py: 501 lines, at most 500")


def test_a_long_function_wherever_it_is(tmp_path):
  assert not _find(tmp_path, "tests/a.py", _function("f", 58))
  (found,) = _find(tmp_path, "tests/a.py", "x = 1\n" + _function("f", 59))
  assert found.startswith("tests/a.py:2: f has 61 lines, at most 60")


def test_docstrings_do_not_count(tmp_path):
  told = "Told.\n" + "\n".join(["  At length."] * 40) + "\n  "
  assert not _find(tmp_path, "tests/a.py", _function("f", 59, told))


def test_a_story_may_be_longer(tmp_path):
  ((name, story),) = check_size.STORIES.items()
  assert not _find(tmp_path, name, _function(story, 178))
  assert _find(tmp_path, name, _function(story, 179))
  assert _find(tmp_path, name, _function("other", 100))
