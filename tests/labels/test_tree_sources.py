import collections
import itertools

import numpy as np
import pytest

from qstar_jax.config import SearchConfig
from qstar_jax.domains.countdown import Countdown
from qstar_jax.errors import UserError
from qstar_jax.labels import codec
from qstar_jax.labels.checked import checked
from qstar_jax.labels.tree_q import tree_q
from qstar_jax.labels.tree_sources import tree_source
from qstar_jax.records import Outcome, Verdict

DOMAIN = Countdown()
PROMPT = "2 3 5 -> 10\n"
SUM, PRODUCT = "2 + 3 = 5 (left: 5 5)", "2 * 3 = 6 (left: 5 6)"


def _shown(lines):
  """Texts, labels, and whether the line is finished."""
  return [(line.steps, line.label.tolist(), line.is_finished) for line in lines]


@pytest.fixture
def tree(make_tree):
  """Every fate of a step, at its first or second place in a line."""
  return make_tree(
    PROMPT,
    [
      (
        None,
        [
          (SUM + "\n", {"visits": 3, "q": 0.75}),
          (PRODUCT + "\n", {"visits": 1, "q": 0.25}),
          ("2 + 3 = 6 (left: 5 6)\n", {"q": 0.1}),
          ("2 + 5 = 7 (left: 3 7)", {}),
        ],
      ),
      (
        (0, 0),
        [
          ("5 + 5 = 10 (left: 10)\n", {"q": 0.9, "outcome": 0, "score": 1.0}),
          ("5 - 5 = 0 (left: 0)$", {"q": 0.2, "outcome": 1, "score": 0.0}),
          ("5 / 5 = 2\n", {"visits": 1, "q": 0.5}),
        ],
      ),
      ((0, 1), [("6 - 5 = 1 (left: 1)\n", {"outcome": 3}), ("6 * 5\n", {})]),
      ((1, 2), [("2 * 5 = 10\n", {"visits": 1, "q": 1.0})]),
    ],
  )


def test_checked(tree, vocabulary):
  lines = list(checked(tree, vocabulary, DOMAIN))
  assert _shown(lines) == [
    (("2 + 3 = 6 (left: 5 6)",), [0], False),
    ((SUM, "5 + 5 = 10 (left: 10)"), [1, 1], False),
    ((SUM, "5 - 5 = 0 (left: 0)"), [-1, 0], True),
    ((SUM, "5 / 5 = 2"), [-1, 0], False),
    ((PRODUCT, "6 - 5 = 1 (left: 1)"), [-1, 0], False),
    ((PRODUCT, "6 * 5"), [-1, 0], False),
  ]
  for line in lines:
    codec.check(line)
    assert (line.kind, line.source, line.params_version, line.tokens) == (
      *("hard", "checked", -1, 0),
    )
    assert (line.domain, line.prompt) == ("countdown", PROMPT)
    assert line.problem_key == tree.problem_key
    assert line.origin == "actor 3, tree 14"


def test_tree_q(tree, vocabulary):
  lines = list(tree_q(tree, vocabulary))
  assert _shown(lines) == [
    ((PRODUCT,), [0.25], False),
    ((SUM, "5 / 5 = 2", "2 * 5 = 10"), [0.75, 0.5, 1.0], False),
  ]
  for line in lines:
    codec.check(line)
    assert (line.kind, line.source, line.params_version) == (
      *("soft", "tree_q", 15),
    )


def test_tree_q_of_a_search_that_asked_the_verifier(tree, vocabulary):
  """Verdicts count, but not one that ran out of time."""
  tree = _replace(tree, terminal_value="outcome")
  assert _shown(tree_q(tree, vocabulary)) == [
    ((PRODUCT,), [0.25], False),
    ((SUM, "5 + 5 = 10 (left: 10)"), [0.75, 1.0], False),
    ((SUM, "5 - 5 = 0 (left: 0)"), [-1, 0.0], True),
    ((SUM, "5 / 5 = 2", "2 * 5 = 10"), [-1, 0.5, 1.0], False),
  ]


def test_a_step_without_label_between_two(make_tree, vocabulary):
  """One line has both."""
  tree = make_tree(
    PROMPT,
    [
      (None, [(SUM + "\n", {"visits": 2, "q": 0.5})]),
      ((0, 0), [("5 / 5 = 2\n", {})]),
      ((1, 0), [("2 * 5 = 10\n", {"visits": 1, "q": 0.25})]),
    ],
  )
  assert _shown(tree_q(tree, vocabulary)) == [
    ((SUM, "5 / 5 = 2", "2 * 5 = 10"), [0.5, -1, 0.25], False)
  ]


def _replace(record, **changes):
  return type(record)(**vars(record) | changes)


def test_steps_that_are_said_twice_are_one(make_tree, vocabulary):
  """Lines sampled apart: each begins at a node of its own."""
  tree = make_tree(
    PROMPT,
    [
      (None, [(SUM + "\n", {"visits": 1, "q": 0.5})]),
      ((0, 0), [("5 + 5 = 10 (left: 10)$", {})]),
      (None, [(SUM + "\n", {"visits": 3, "q": 0.75})]),
      (
        (2, 0),
        [("5 + 5 = 10 (left: 10)$", {}), ("5 + 5 = 10 (left: 10)\n", {})],
      ),
    ],
  )
  assert _shown(checked(tree, vocabulary, DOMAIN)) == [
    ((SUM, "5 + 5 = 10 (left: 10)"), [1, 1], True),
    ((SUM, "5 + 5 = 10 (left: 10)"), [-1, 1], False),
  ]
  (line,) = tree_q(tree, vocabulary)
  assert line.label.tolist() == [(0.5 + 3 * 0.75) / 4]


def test_steps_made_of_tokens(make_tree, vocabulary):
  """A candidate that has no delimiter yet is a part of a step."""
  head, tail = SUM[:9], SUM[9:]
  tree = make_tree(
    PROMPT,
    [
      (None, [(head, {"visits": 2, "q": 0.1}), ("2 ", {"visits": 1})]),
      ((0, 0), [(tail + "\n", {"visits": 1, "q": 0.3})]),
      ((1, 0), [("5 + ", {})]),
      ((2, 0), [("5 = 10 (left: 10)$", {}), ("5 = 11\n", {}), ("5 =", {})]),
    ],
  )
  assert _shown(checked(tree, vocabulary, DOMAIN)) == [
    ((SUM, "5 + 5 = 10 (left: 10)"), [1, 1], True),
    ((SUM, "5 + 5 = 11"), [-1, 0], False),
  ]
  assert _shown(tree_q(tree, vocabulary)) == [
    ((SUM,), [np.float32(0.3)], False)
  ]


class _NoTime(Countdown):
  """Its verifier does not come to an end."""

  def verify(self, problem, steps):
    return Verdict(Outcome.TIMEOUT, 0.0, "too long")


def test_a_verifier_without_an_answer_says_nothing(tree, vocabulary):
  """What is left is illegal."""
  assert _shown(checked(tree, vocabulary, _NoTime())) == [
    (("2 + 3 = 6 (left: 5 6)",), [0], False),
    ((SUM, "5 / 5 = 2"), [-1, 0], False),
    ((PRODUCT, "6 * 5"), [-1, 0], False),
  ]


# Random trees, and what their labels must be, computed another way.


def _random_tree(rng, make_tree):
  """Legal and illegal steps, cut ones, and nodes below any of them."""
  problem = DOMAIN.sample(rng, 2)
  nodes, texts, open_edges = [], [], [(None, ())]
  for _ in range(rng.integers(1, 9)):
    if not open_edges:
      break
    above, before = open_edges.pop(int(rng.integers(len(open_edges))))
    candidates, row = [], len(nodes)
    for a in range(rng.integers(1, 5)):
      text = _random_step(rng, problem, before)
      end = str(rng.choice(["\n", "\n", "\n", "$", ""]))
      fields = {"visits": int(rng.integers(3)), "q": rng.random(dtype="f4")}
      candidates.append((text + end, fields))
      texts.append((*before, (text, end)))
      if end != "$":
        open_edges.append(((row, a), texts[-1]))
    if rng.random() < 0.2:
      open_edges.append((None, ()))
    nodes.append((above, candidates))
  tree = make_tree(problem.prompt, nodes)
  return tree, problem, texts


def _random_step(rng, problem, before):
  before = tuple(text for text, _ in before)
  check = (
    DOMAIN.check_step(problem, before[:-1], before[-1]) if before else None
  )
  kinds = ["garbage", "wrong"]
  if check is None or check.is_legal:
    kinds += ["legal"] * 6
  kind = rng.choice(kinds)
  if kind == "legal" and (legal := DOMAIN.legal_steps(problem, before)):
    if rest := DOMAIN.solve(problem, before):
      legal += rest[:1] * len(legal)
    return legal[int(rng.integers(len(legal)))]
  if kind == "wrong":
    return f"{rng.integers(9)} + 1 = {rng.integers(9)}"
  return str(rng.integers(9))


def _join(pieces):
  """Whole steps of a path and their ends; cut pieces go to the next step."""
  steps, rest = [], ""
  for text, end in pieces:
    rest += text
    if end:
      steps.append((rest, end))
      rest = ""
  return steps


def _expected(problem, texts):
  """Label of each (steps above, step and its end); None if it has none.

  Every path is looked at as a whole, and again for every step of it.
  """
  paths = [_join(pieces) for pieces in texts]
  verdicts, right = {}, set()
  for steps in paths:
    for k in range(1, len(steps) + 1):
      line = tuple(text for text, _ in steps[:k])
      key = (tuple(steps[: k - 1]), steps[k - 1])
      legal = [
        DOMAIN.check_step(problem, line[:i], line[i]).is_legal for i in range(k)
      ]
      if not all(legal[:-1]):
        verdicts[key] = None
      elif not legal[-1]:
        verdicts[key] = 0
      else:
        is_end = steps[k - 1][1] == "$" or not DOMAIN.legal_steps(problem, line)
        is_correct = DOMAIN.verify(problem, line).outcome == Outcome.CORRECT
        verdicts[key] = 0 if is_end and not is_correct else None
        if is_end and is_correct:
          right |= {(tuple(steps[:i]), steps[i]) for i in range(k)}
  return verdicts | dict.fromkeys(right, 1)


def _found(lines):
  r"""Labels by text: each once, on as few lines as there can be.

  Ends inside a line are `\n`.
  """
  counts, labels, paths = collections.Counter(), {}, []
  for line in lines:
    ends = ["\n"] * (len(line.steps) - 1) + ["$" if line.is_finished else "\n"]
    steps = list(zip(line.steps, ends, strict=True))
    paths.append(steps)
    for i, label in enumerate(line.label.tolist()):
      if label >= 0:
        key = (tuple(steps[:i]), steps[i])
        counts[key] += 1
        labels[key] = label
    assert line.label[-1] >= 0
  assert set(counts.values()) <= {1}
  for one, other in itertools.permutations(paths, 2):
    assert other[: len(one)] != one
  return labels


@pytest.mark.parametrize("seed", range(60))
def test_random_trees(make_tree, vocabulary, seed):
  rng = np.random.default_rng(seed)
  tree, problem, texts = _random_tree(rng, make_tree)
  expected = {
    key: label
    for key, label in _expected(problem, texts).items()
    if label is not None
  }
  assert _found(checked(tree, vocabulary, DOMAIN)) == expected

  visited = collections.defaultdict(list)
  candidates = np.argwhere(tree.count > 0)
  for pieces, edge in zip(texts, map(tuple, candidates), strict=True):
    if pieces[-1][1] and tree.visits[edge]:
      *before, step = _join(pieces)
      q, visits = float(tree.q[edge]), int(tree.visits[edge])
      visited[tuple(before), step] += [q] * visits
  found = _found(tree_q(tree, vocabulary))
  assert found == pytest.approx(
    {key: sum(qs) / len(qs) for key, qs in visited.items()}
  )


def test_random_trees_hold_every_case(make_tree):
  labels = collections.Counter()
  for seed in range(60):
    tree = _random_tree(np.random.default_rng(seed), make_tree)
    labels.update(_expected(*tree[1:]).values())
  assert min(labels[label] for label in (None, 0, 1)) > 10


def test_sources_by_name(tree, vocabulary):
  search = SearchConfig()
  for name, kind in (("checked", "hard"), ("tree_q", "soft")):
    lines = tree_source(name, vocabulary, DOMAIN, search)(tree)
    assert {(line.source, line.kind) for line in lines} == {(name, kind)}
  with pytest.raises(
    UserError, match=r"'judge': must be one of checked, tree_q"
  ):
    tree_source("judge", vocabulary, DOMAIN, search)
  with pytest.raises(UserError, match=r"search\.utility of the run is 'prm'"):
    tree_source("tree_q", vocabulary, DOMAIN, SearchConfig(utility="prm"))


@pytest.mark.parametrize(
  "changes",
  [
    {"domain": "game24"},
    {"problem_key": "1 1 -> 1"},
    {"prompt": "what?\n"},
    {"tokens": np.array([259], np.int32)},
    {"tokens": np.array([-1], np.int32)},
  ],
)
def test_trees_of_another_run_are_refused(tree, vocabulary, changes):
  with pytest.raises(UserError, match=r"actor 3, tree 14 has .*: give the run"):
    checked(_replace(tree, **changes), vocabulary, DOMAIN)
