"""Plays of a real network whose tables give up what is left behind."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qstar_jax.config import MeshConfig, SearchConfig
from qstar_jax.distributed.mesh import make_mesh
from qstar_jax.domains.countdown import Countdown
from qstar_jax.records import StepCheck
from qstar_jax.search.tree import NONE, line_index
from qstar_jax.selfplay import plays
from qstar_jax.selfplay.player import Job, Player
from tests.selfplay.conftest import DOMAIN, MODEL, TEXT

SEARCH = SearchConfig(num_candidates=4, num_simulations=4, leaves_per_round=2)
# Tables are small: they fill up again and again.
NUM_TREES, TIMES = 4, 4


@dataclasses.dataclass(frozen=True)
class AnyStep(Countdown):
  """Every step goes on: a judge's lines are as long as can be."""

  def check_step(self, problem, steps, step):
    return StepCheck(is_legal=True, is_terminal=False)


def play(tiny, search, max_steps, domain=DOMAIN):
  player = Player(
    tiny.network()[0],
    domain,
    tiny.vocabulary,
    model=MODEL,
    text=dataclasses.replace(TEXT, max_steps=max_steps),
    search=search,
    num_trees=NUM_TREES,
    mesh=make_mesh(MeshConfig(), jax.devices()[:1]),
  )
  jobs = [
    Job(problem, seed)
    for problem, seed in zip(tiny.problems, tiny.seeds, strict=True)
  ]
  return list(player.play(tiny.network()[1], jobs * TIMES))


@pytest.fixture(scope="module")
def compacted(tiny):
  return play(tiny, dataclasses.replace(SEARCH, compact=True), max_steps=7)


def test_compacted_plays_are_the_whole_ones(tiny, compacted):
  """Wherever at the table, and whatever its blocks went through."""
  num_dropped = 0
  whole = play(tiny, SEARCH, max_steps=7)
  for found, expected in zip(compacted, whole, strict=True):
    one, other = found.tree, expected.tree
    assert one.depth.size < other.depth.size
    nodes = np.flatnonzero(one.depth != NONE)
    serial = one.serial[nodes]
    for name in ("tokens", "count", "legal", "outcome", "visits", "depth"):
      np.testing.assert_array_equal(one[name][nodes], other[name][serial])
    for name in ("log_prob", "value", "prm", "utility", "value_sum"):
      np.testing.assert_allclose(
        one[name][nodes], other[name][serial], atol=1e-5
      )
    assert one.tokens_used == other.tokens_used
    assert plays.committed_steps(found) == plays.committed_steps(expected)
    num_dropped += one.num_dropped > 0
  assert num_dropped > TIMES


def test_the_judge_knows_the_lines_of_a_compacted_tree(tiny):
  search = dataclasses.replace(SEARCH, terminal_value="outcome", compact=True)
  num_dropped = 0
  for played in play(tiny, search, max_steps=12, domain=AnyStep()):
    tree, lines = played.tree, {}
    num_dropped += tree.num_dropped > 0
    for node in np.flatnonzero(tree.depth != NONE):
      above = (tree.parent[node], tree.candidate[node])
      steps = () if above[0] == NONE else lines[above]
      for a in np.flatnonzero(tree.count[node] > 0):
        tokens = tree.tokens[node, a, : tree.length[node, a]].tolist()
        text, _ = tiny.vocabulary.decode_step(tokens)
        line = played.judge.line(int(line_index(tree, node, a)))
        assert line[:-1] == steps
        assert line[-1].startswith(text)
        lines[node, a] = line
    edges = plays.committed_edges(tree)
    assert plays.committed_steps(played) == lines[edges[-1]]
  assert num_dropped > TIMES


def test_what_is_cached_after_compaction_is_the_full_forward(tiny, compacted):
  """Every candidate's log-probability, from the text of its line alone."""
  graphdef, params = tiny.network()
  max_tokens = TEXT.max_prompt_tokens + 7 * TEXT.max_step_tokens

  @jax.jit
  def log_probs(tokens_T):
    model = nnx.merge(graphdef, params)
    logits_TV = model.logits(model.forward(tokens_T[None])[0])
    return jax.nn.log_softmax(logits_TV)

  num_compared = 0
  for played in compacted[: NUM_TREES * 2]:
    tree = played.tree
    if tree.num_dropped == 0:
      continue
    prompt = tiny.vocabulary.encode_prompt(played.problem.prompt)

    def step(node, a, tree=tree):
      return tree.tokens[node, a, : tree.length[node, a]].tolist()

    @functools.cache
    def before(node, tree=tree, prompt=prompt, step=step):
      above = int(tree.parent[node])
      if above == NONE:
        return tuple(prompt)
      return (*before(above), *step(above, tree.candidate[node]))

    # Deepest first: those were expanded after the last compaction.
    nodes = np.flatnonzero(tree.depth != NONE)
    for node in nodes[np.argsort(-tree.depth[nodes], kind="stable")][:8]:
      for a in np.flatnonzero(tree.count[node] > 0):
        line = [*before(int(node)), *step(node, a)]
        padded = np.zeros(max_tokens, np.int32)
        padded[: len(line)] = line
        of_line = np.asarray(log_probs(jnp.asarray(padded)))
        start = len(before(int(node)))
        expected = sum(of_line[t - 1, line[t]] for t in range(start, len(line)))
        np.testing.assert_allclose(
          tree.log_prob[node, a], expected, atol=1e-5, rtol=1e-5
        )
        num_compared += 1
  assert num_compared > 20
