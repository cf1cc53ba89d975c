"""A search and its answer as files: JSON, and a page for a browser.

The page is one file that loads nothing. docs/tree_viewer.md describes both.
"""

import base64
import hashlib
import importlib.resources
import json
import os
import pathlib
import re
from typing import Any

import numpy as np
from etils import epath

from qstar_jax.errors import UserError
from qstar_jax.evaluation.tree_reading import Edge, TreeReading
from qstar_jax.records import Domain, Problem, TreeRecord
from qstar_jax.selfplay.plays import PlayResult
from qstar_jax.store import files
from qstar_jax.text.vocabulary import Vocabulary

# Raise this when a field changes its meaning or goes.
VERSION = 1

_PAGE = importlib.resources.files("qstar_jax.evaluation") / "tree_page"


def export(
  domain: Domain,
  problem: Problem,
  result: PlayResult,
  record: TreeRecord,
  vocabulary: Vocabulary,
  *,
  searcher: str,
  seed: int,
  priority: np.ndarray | None = None,
) -> dict[str, Any]:
  """A play as JSON-able data: its facts, its answer, its candidates.

  Args:
    domain: writes the answer.
    problem: that was to be solved.
    result: of the play.
    record: its tree.
    vocabulary: that the record's tokens are in.
    searcher: name of the searcher.
    seed: of the play.
    priority: float [n, A], f of the candidates of the record for a searcher
      that expands by one; not finite where it does not apply.

  Returns:
    What docs/tree_viewer.md describes. `candidates` is flat, breadth first:
    each names its parent, an index in the same list.
  """
  reading = TreeReading(record, vocabulary)
  if priority is None:
    priority = np.full(record.count.shape, np.nan)
  verdict = result.verdict
  return {
    "format": "qstar_jax tree",
    "version": VERSION,
    "domain": domain.name,
    "problem": problem.prompt.removesuffix("\n"),
    "searcher": searcher,
    "seed": seed,
    "checkpoint_step": record.params_version,
    "value": _number(record.node_value[0]),
    "tokens": result.tokens,
    "expansions": result.expansions,
    "solution": {
      "steps": list(result.steps),
      "answer": domain.answer(problem, result.steps),
      "outcome": verdict.outcome.name.lower(),
      "score": verdict.score,
      "reason": verdict.reason,
    },
    "candidates": [
      _candidate(reading, edge, parent, priority)
      for edge, parent in _breadth_first(reading)
    ],
  }


def _breadth_first(reading: TreeReading) -> list[tuple[Edge, int | None]]:
  """Every candidate, and the index of its parent in this list."""
  found = [(edge, None) for edge in reading.candidates(0)]
  for index, (edge, _) in enumerate(found):  # Grows.
    if edge in reading.child:
      below = reading.candidates(reading.child[edge])
      found += [(candidate, index) for candidate in below]
  return found


def _candidate(
  reading: TreeReading, edge: Edge, parent: int | None, priority: np.ndarray
) -> dict[str, Any]:
  record, fate = reading.record, reading.fate(edge)
  return {
    "parent": parent,
    "text": reading.text(edge),
    "committed": reading.is_committed(edge),
    "fate": fate.kind,
    "fate_words": fate.words,
    "tokens": int(record.length[edge]),
    "count": int(record.count[edge]),
    "visits": int(record.visits[edge]),
    "q": _number(record.q[edge]),
    "prior": _number(reading.prior[edge]),
    "value": _number(record.value[edge]),
    "prm": _number(record.prm[edge]),
    "priority": _number(priority[edge]),
    "log_prob": _number(record.log_prob[edge]),
  }


def _number(value: np.floating) -> float | None:
  """The shortest number that is this one in float32; None if not finite."""
  return float(str(np.float32(value))) if np.isfinite(value) else None


def to_json(exported: dict[str, Any]) -> str:
  """What `export` returned as a file's text, in ASCII."""
  return json.dumps(exported, indent=1, allow_nan=False) + "\n"


def to_page(exported: dict[str, Any]) -> str:
  """What `export` returned as a page for a browser."""
  style, script = _asset("page.css"), _asset("page.js")
  parts = {
    "style": style,
    "style_hash": _content_hash(style),
    "script": script,
    "script_hash": _content_hash(script),
    # Without `<` no text can end the element that holds the data.
    "tree": json.dumps(exported, allow_nan=False).replace("<", r"\u003c"),
  }
  return re.sub(
    r"\{\{(\w+)\}\}", lambda name: parts[name[1]], _asset("page.html")
  )


def _asset(name: str) -> str:
  return (_PAGE / name).read_text(encoding="utf-8")


def _content_hash(text: str) -> str:
  """What a Content-Security-Policy names an element's content by."""
  digest = hashlib.sha256(text.encode()).digest()
  return "sha256-" + base64.b64encode(digest).decode()


def destination(path: epath.PathLike) -> epath.Path:
  """The file that a path names, checked before the work is done.

  Links are followed, so that no link is replaced by a file.

  Raises:
    UserError: no file can be written there.
  """
  if not files.is_local(epath.Path(path)):
    return epath.Path(path)
  file = pathlib.Path(path).expanduser().resolve()
  if file.exists() and not file.is_file():
    kind = "a directory" if file.is_dir() else "no regular file"
    raise UserError(f"{file} is {kind}: name a file to write, e.g. tree.html")
  if not file.parent.is_dir():
    raise UserError(
      f"{file} cannot be written: {file.parent} is no directory; make it, or "
      "name another"
    )
  if not os.access(file.parent, os.W_OK):
    raise UserError(
      f"{file} cannot be written: {file.parent} is not writable; name another"
    )
  return epath.Path(file)
