"""Trees and solutions as a terminal shows them."""

import dataclasses
import io
import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from qstar_jax.config import MeshConfig, ModelConfig, SearchConfig, TextConfig
from qstar_jax.distributed.mesh import make_mesh
from qstar_jax.domains import make_domain
from qstar_jax.errors import UserError
from qstar_jax.evaluation.terminal_tree import (
  print_tree,
  printable,
  solution_text,
  tree_view,
)
from qstar_jax.model.transformer import init_model
from qstar_jax.selfplay import plays
from qstar_jax.selfplay.player import Job, Player
from tests.evaluation.made_trees import (
  VOCABULARY,
  make_record,
  random_record,
  step,
)


def show(record, vocabulary=VOCABULARY, **options):
  """Lines of the view on a terminal without colours."""
  console = Console(file=io.StringIO(), width=200, color_system=None)
  console.print(tree_view(record, vocabulary, **options))
  return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_tree_by_hand():
  record = make_record(
    [
      step("2 * 3 = 6 (left: 1 6)", visits=1, q=0.7, prm=0.9),
      step(
        "1 + 2 = 3 (left: 3 3)",
        [
          step("3 + 3 = 6 (left: 6)", ended=True, outcome=0, score=1, q=1),
          step("3 - 3 = 0 (left: 0)", ended=True, outcome=1, q=0.125),
          step("3 + ", is_cut=True, legal=-1),
        ],
        visits=3,
        q=0.75,
        count=2,
      ),
      step("1 + 2 = 4", legal=0, value=0.0),
    ],
    committed=[1, 0],
  )
  lines = show(record)
  # Twice the samples, twice the prior.
  assert lines == [
    "1 2 3 -> 6  V=0.25",
    "├── * 1 + 2 = 3 (left: 3 3)  N=3 Q=0.75 P=0.50 V=0.50 R=0.50",
    "│   ├── * 3 + 3 = 6 (left: 6)  N=0 Q=1.00 P=0.33 V=0.50 R=0.50  "
    "ended correct",
    "│   ├── 3 +   N=0 Q=0.50 P=0.33 V=0.50 R=0.50  truncated",
    "│   └── 3 - 3 = 0 (left: 0)  N=0 Q=0.12 P=0.33 V=0.50 R=0.50  ended wrong",
    "├── 2 * 3 = 6 (left: 1 6)  N=1 Q=0.70 P=0.25 V=0.50 R=0.90  not expanded",
    "└── 1 + 2 = 4  N=0 Q=0.50 P=0.25 V=0.00 R=0.50  illegal",
  ]


@pytest.mark.parametrize(
  ("fields", "fate"),
  [
    ({"ended": True}, "ended, not judged"),
    ({"ended": True, "outcome": 2}, "ended unparseable"),
    ({"ended": True, "outcome": 3}, "ended timeout"),
    ({"ended": True, "outcome": 0, "score": 0.7}, "ended correct, score 0.70"),
    ({"ended": True, "outcome": 1, "legal": 0}, "illegal"),
    ({"outcome": 0, "score": 1.0}, "ended correct"),
    ({"legal": -1}, "not expanded"),
  ],
)
def test_why_a_branch_ends(fields, fate):
  other = step("other", visits=9, ended=True)
  record = make_record([other, step("a step", **fields)], committed=[0])
  assert show(record)[2].endswith(f"R=0.50  {fate}")


def test_the_committed_line_has_its_final_outcome():
  record = make_record(
    [step("a"), step("b")], committed=[1], final_outcome=0, final_score=1.0
  )
  assert [line.split()[-1] for line in show(record)[1:]] == (
    ["expanded", "correct"]
  )


def test_colours_and_signs_mark_the_committed_line():
  record = make_record([step("x"), step("yes", visits=5)], committed=[1])
  console = Console(file=io.StringIO(), width=99, force_terminal=True)
  print_tree(record, VOCABULARY, console=console)
  text = console.file.getvalue()
  assert "\x1b[1;32m* yes\x1b[0m" in text and "\x1b[1;32mx" not in text
  assert "* committed, N visits" in text


@pytest.mark.parametrize(
  ("text", "shown"),
  [
    ("[red]1[/red] [/] [link=http://x]", "[red]1[/red] [/] [link=http://x]"),
    ("\x1b[31m\x07\r", r"\x1b[31m\x07\r"),
    (":smile: 1\u202e2\x9b", r":smile: 1\u202e2\x9b"),
    ("é 三 \ufffd", "é 三 \ufffd"),
  ],
)
def test_model_text_is_shown_and_not_obeyed(text, shown):
  record = make_record([step(text)], committed=[0], prompt=f"{text}\n")
  lines = show(record)
  assert lines[0] == f"{shown}  V=0.25"
  assert lines[1].startswith(f"└── * {shown}  N=0")


@given(st.text())
def test_printable_text_prints_nothing_else(text):
  assert printable(text).isprintable()
  assert printable(printable(text)) == printable(text)


def check_view(lines, indent, candidates, committed):
  """A node's lines say of all its candidates; returns the lines after it."""
  order = sorted(candidates, key=lambda c: (-c["visits"], -c["q"]))
  chosen = candidates[committed[0]] if committed else None
  shown = []
  while lines and lines[0].startswith(indent):
    head = lines[0][len(indent) :]
    if head[:1] not in "├└":
      break
    lines = lines[1:]
    if more := re.fullmatch(r"└── … (\d+) more", head):
      assert int(more[1]) == len(candidates) - len(shown) > 0
      break
    mark, text = re.match(r"[├└]── (\* )?(\d+)  N=", head).groups()
    name = VOCABULARY.encode_step(text, False)
    candidate = next(c for c in candidates if c["tokens"] == name)
    assert (mark is not None) == (candidate is chosen)
    shown.append(candidate)
    if candidate["below"] is not None:
      deeper = indent + ("│   " if head[0] == "├" else "    ")
      below = committed[1:] if candidate is chosen else []
      lines = check_view(lines, deeper, candidate["below"], below)
  else:
    assert len(shown) == len(candidates)
  others = [c for c in shown if c is not chosen]
  most_visited = [c for c in order if c is not chosen]
  assert others == most_visited[: len(others)]
  assert shown == [c for c in order if any(c is s for s in shown)]
  return lines


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), max_nodes=st.integers(2, 60))
def test_a_view_keeps_to_its_size_and_leaves_nothing_unsaid(seed, max_nodes):
  record, root, committed = random_record(np.random.default_rng(seed))
  lines = show(record, max_nodes=max_nodes)
  num_candidates = int((record.count > 0).sum())
  assert len(lines) <= max_nodes
  assert len(lines) >= min(max_nodes, 1 + num_candidates) - 1
  assert check_view(lines[1:], "", root, committed) == []
  if max_nodes >= 1 + 2 * len(committed):
    assert sum("── * " in line for line in lines) == len(committed)


def test_a_tree_needs_two_lines():
  record = make_record([step("a"), step("b")], committed=[0])
  assert show(record, max_nodes=2)[1:] == ["└── … 2 more"]
  with pytest.raises(UserError, match="max_nodes is 1: "):
    tree_view(record, VOCABULARY, max_nodes=1)


SEARCH = SearchConfig(num_candidates=4, num_simulations=5)


@pytest.fixture(scope="module")
def played():
  """(domain, finished plays of an untrained network)."""
  domain = make_domain("countdown", {})
  model = ModelConfig(
    num_layers=1,
    model_dim=8,
    num_heads=1,
    num_kv_heads=1,
    head_dim=8,
    ffn_dim=8,
  )
  graphdef, params = init_model(model, VOCABULARY.size, 0)
  player = Player(
    graphdef,
    domain,
    VOCABULARY,
    model=model,
    text=TextConfig(max_prompt_tokens=16, max_step_tokens=6, max_steps=3),
    search=SEARCH,
    num_trees=2,
    mesh=make_mesh(MeshConfig(), jax.devices()[:1]),
  )
  problems = [domain.parse("1 2 3 -> 6"), domain.parse("2 3 4 -> 24")]
  jobs = [Job(problem, seed) for seed, problem in enumerate(problems)]
  return domain, list(player.play(params, jobs))


@pytest.mark.parametrize("row", [0, 1])
def test_a_tree_that_was_played(played, row):
  domain, play = played[0], played[1][row]
  record = plays.to_record(
    domain,
    play,
    actor_id=0,
    sequence=row,
    params_version=0,
    search=SEARCH,
    prompt_tokens=VOCABULARY.encode_prompt(play.problem.prompt),
  )
  lines = show(record, max_nodes=1000)
  assert lines[0].startswith(play.problem.prompt.strip())
  assert len(lines) == 1 + (record.count > 0).sum()
  starred = [line.partition("── * ")[2] for line in lines if "── * " in line]
  steps = plays.result(domain, play).steps
  assert [line.rpartition("  N=")[0] for line in starred] == (
    # A step that was cut reads as one in a result, and has a mark in the tree.
    [printable(text.removesuffix("…")) for text in steps]
  )
  total = sum(
    int(n) for n in re.findall(r"^[├└].*  N=(\d+) Q=", "\n".join(lines), re.M)
  )
  assert total == record.visits[0].sum() == len(record.node_parent) - 1
  assert len(show(record)) <= 40


def test_a_solution_in_plain_text():
  domain = make_domain("countdown", {})
  problem = domain.parse("3 5 9 -> 72")
  steps = domain.solve(problem)
  text = solution_text(domain, problem, steps, domain.verify(problem, steps))
  assert text.splitlines() == (
    [*steps, f"Answer: {domain.answer(problem, steps)}", "solved"]
  )


def test_a_failure_says_so_and_why():
  domain = make_domain("countdown", {})
  problem = domain.parse("3 5 9 -> 72")
  steps = ("3 + 5 = 9 (left: 9 9)", "\x1b[2J")
  verdict = domain.verify(problem, steps)
  assert solution_text(domain, problem, steps, verdict).splitlines() == [
    "3 + 5 = 9 (left: 9 9)",
    r"\x1b[2J",
    r"Answer: \x1b[2J",
    f"not solved: {verdict.reason}",
  ]
  unsafe = dataclasses.replace(verdict, reason="\x1b[2J\n")
  last = solution_text(domain, problem, (), unsafe).splitlines()[-1]
  assert last == r"not solved: \x1b[2J\n"
