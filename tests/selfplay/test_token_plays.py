"""Plays token by token, with a real network and its domain."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from qstar_jax import validation
from qstar_jax.config import ExperimentConfig
from qstar_jax.domains.countdown import Countdown
from qstar_jax.evaluation.tree_reading import TreeReading
from qstar_jax.records import NOT_JUDGED, Outcome
from qstar_jax.selfplay import plays
from qstar_jax.selfplay.judge import LineJudge
from qstar_jax.text.vocabulary import ByteVocabulary

NUM_PROBLEMS = 4


@pytest.fixture(scope="module")
def log_probs_after(tiny):
  """Log-probabilities of the next token, by the whole forward pass."""
  graphdef, params = tiny.network()

  @jax.jit
  def forward(tokens_T, length):
    model = nnx.merge(graphdef, params)
    hidden_TM = model.forward(tokens_T[None])[0]
    return jax.nn.log_softmax(model.logits(hidden_TM)[length - 1])

  def after(tokens):
    padded = np.zeros(tiny.text.max_line_tokens, np.int32)
    padded[: len(tokens)] = tokens
    return np.asarray(forward(padded, len(tokens)))

  return after


def committed_tokens(played):
  tree = played.tree
  return [int(tree.tokens[edge][0]) for edge in plays.committed_edges(tree)]


def played_by(tiny, search):
  return tiny.play(
    search, tiny.problems[:NUM_PROBLEMS], tiny.seeds[:NUM_PROBLEMS]
  )


def limit(tiny):
  return tiny.text.max_steps * tiny.text.max_step_tokens


def test_guidance_of_nothing_is_greedy(tiny, log_probs_after):
  for played in played_by(tiny, "unguided"):
    line = tiny.vocabulary.encode_prompt(played.problem.prompt)
    found = []
    while len(found) < limit(tiny):
      found.append(int(log_probs_after(line + found).argmax()))
      if found[-1] == tiny.vocabulary.eos_id:
        break
    assert committed_tokens(played) == found


def test_a_beam_without_heuristic_is_beam_search(tiny, log_probs_after):
  search = tiny.searches["token_beam"]
  num_finished = 0
  for played in played_by(tiny, "token_beam"):
    prompt = tiny.vocabulary.encode_prompt(played.problem.prompt)
    level, finished = [(0.0, [])], []
    for _ in range(limit(tiny)):
      pool = []
      for score, tokens in level:
        log_probs = log_probs_after(prompt + tokens)
        best = np.argsort(-log_probs)[: search.num_candidates]
        pool += [(score + log_probs[t], [*tokens, int(t)]) for t in best]
      pool.sort(key=lambda line: -line[0])
      kept = pool[: search.beam_width]
      is_end = [t[-1] == tiny.vocabulary.eos_id for _, t in pool]
      finished += [x for x, end in zip(pool, is_end, strict=True) if end]
      level = [line for line in kept if line[1][-1] != tiny.vocabulary.eos_id]
    if finished:
      num_finished += 1
      score, tokens = max(finished)
      assert committed_tokens(played) == tokens
      edge = plays.committed_edges(played.tree)[-1]
      np.testing.assert_allclose(
        played.tree.line_log_prob[edge], score, atol=1e-4
      )
  assert num_finished > 0


@pytest.mark.parametrize("search", ["token_beam", "token_astar"])
def test_steps_are_judged_when_they_are_whole(tiny, search):
  num_judged = 0
  for played in played_by(tiny, search):
    tree = played.tree
    for node, a in np.argwhere(tree.sampled > 0):
      tokens, edge = [], (node, a)
      while edge[0] >= 0:
        tokens.append(int(tree.tokens[edge][0]))
        edge = tree.parent[edge[0]], tree.candidate[edge[0]]
      tokens = tokens[::-1]
      steps, rest = [], []
      for token in tokens:
        rest.append(token)
        if tiny.vocabulary.ends_step[token]:
          steps.append(tiny.vocabulary.decode_step(rest)[0])
          rest = []
      line = played.judge.line(int(node) * tree.count.shape[1] + int(a))
      assert line[: len(steps)] == tuple(steps)
      assert len(line) == len(steps) + bool(rest)
      is_over = tokens[-1] == tiny.vocabulary.eos_id
      if not rest and is_over:
        verdict = tiny.domain.verify(played.problem, line)
        assert tree.outcome[node, a] == verdict.outcome
        num_judged += 1
      elif rest:
        assert tree.outcome[node, a] == NOT_JUDGED
  assert num_judged > 0


def test_a_record_reads_as_what_it_is(tiny):
  (played, *_) = played_by(tiny, "token_beam")
  record = tiny.record("token_beam", played)
  reading = TreeReading(record, tiny.vocabulary)
  fates = {reading.fate(edge).kind for edge in reading.child}
  assert fates <= {"expanded", "illegal"}
  assert "truncated" not in fates


def test_a_whole_line_token_by_token():
  domain, vocabulary = Countdown(), ByteVocabulary()
  problem = domain.parse("2 3 5 -> 10")
  judge = LineJudge(domain, problem, vocabulary, by_token=True)
  steps = ["2 + 3 = 5 (left: 5 5)", "5 + 5 = 10 (left: 10)"]
  tokens = [t for s in steps[:1] for t in vocabulary.encode_step(s, False)]
  first = len(tokens)
  tokens += vocabulary.encode_step(steps[1], True)
  leaf, checks = -1, []
  for index, token in enumerate(tokens):
    checks.append(judge.check(leaf, index, [token]))
    leaf = index
  assert all(check.is_legal for check, _ in checks)
  assert [i for i, (_, verdict) in enumerate(checks) if verdict] == [
    len(tokens) - 1
  ]
  assert checks[-1][1].outcome == Outcome.CORRECT
  assert judge.line(first - 1) == tuple(steps[:1])
  assert judge.line(first) == (steps[0], "5\N{HORIZONTAL ELLIPSIS}")
  assert judge.line(len(tokens) - 1) == tuple(steps)


def test_there_is_nothing_to_train_on():
  config = ExperimentConfig()
  search = dataclasses.replace(config.search, searcher="token_beam")
  (error,) = validation.find_errors(dataclasses.replace(config, search=search))
  assert "search.searcher" in error
  assert "qstar evaluate" in error
