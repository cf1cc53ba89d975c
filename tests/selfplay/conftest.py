"""A tiny network that often plays legal steps, and players of it."""

import dataclasses
import functools
import types

import jax
import numpy as np
import pytest

from qstar_jax.config import MeshConfig, ModelConfig, SearchConfig, TextConfig
from qstar_jax.distributed.mesh import make_mesh
from qstar_jax.domains.countdown import Countdown
from qstar_jax.model.transformer import init_model
from qstar_jax.search import searchers
from qstar_jax.selfplay import plays
from qstar_jax.selfplay.player import Job, Player
from qstar_jax.text.vocabulary import Vocabulary

DOMAIN = Countdown(max_number=1)
TEXT = TextConfig(max_prompt_tokens=12, max_step_tokens=2, max_steps=3)
MODEL = ModelConfig(
  num_layers=2,
  model_dim=16,
  num_heads=2,
  num_kv_heads=1,
  head_dim=8,
  ffn_dim=24,
)
SEARCH = SearchConfig(num_candidates=8, num_simulations=6, leaves_per_round=2)
SEARCHES = {
  "value": SEARCH,
  "outcome": dataclasses.replace(
    SEARCH, terminal_value="outcome", prune_illegal=True
  ),
  "shared": dataclasses.replace(
    SEARCH, terminal_value="outcome", share_statistics=True
  ),
  "distinct": dataclasses.replace(SEARCH, proposal="stochastic_beam"),
  "greedy": searchers.for_evaluation(SEARCH, "greedy"),
  "unguided": searchers.for_evaluation(
    dataclasses.replace(SEARCH, num_candidates=3, guidance=0.0), "value_guided"
  ),
  "token_beam": searchers.for_evaluation(
    dataclasses.replace(SEARCH, beam_width=3, heuristic_weight=0.0),
    "token_beam",
  ),
  "token_astar": searchers.for_evaluation(SEARCH, "token_astar"),
}
NUM_TREES = 8


class PhraseVocabulary(Vocabulary):
  """Whole steps are tokens, so that random weights hit upon some of them."""

  def __init__(self, phrases):
    characters = [bytes([c]) for c in b"123 ->\n"]
    super().__init__([b"\xff", b"", b"\xff", *characters, *phrases])
    self._by_length = sorted(self.pieces[3:], key=len, reverse=True)

  def encode(self, text):
    rest, tokens = text.encode(), []
    while rest:
      piece = next(p for p in self._by_length if rest.startswith(p))
      tokens.append(self.pieces.index(piece))
      rest = rest[len(piece) :]
    return tokens

  def to_bytes(self):
    return b"".join(self.pieces)

  def _text_bytes(self, pieces):
    return pieces


def problem(text):
  return DOMAIN.parse(text)


PROBLEMS = [
  *map(problem, ["1 1 1 -> 3", "1 1 -> 2", "1 1 1 -> 1", "1 1 1 -> 2"]),
  *map(problem, ["1 1 1 -> 1", "1 1 -> 1", "1 1 1 -> 3", "1 1 1 -> 1"]),
]


def phrases():
  """Steps, with the delimiter; the last of a line also without it."""
  pair, triple = problem("1 1 -> 2"), problem("1 1 1 -> 3")
  last = DOMAIN.legal_steps(pair, ())
  steps = [*last, *DOMAIN.legal_steps(triple, ())]
  return [text.encode() for text in [*last, *(f"{s}\n" for s in steps)]]


VOCABULARY = PhraseVocabulary(phrases())


@functools.cache
def network():
  """(graphdef, params); heads that say something."""
  graphdef, params = init_model(MODEL, VOCABULARY.size, seed=0)
  rng = np.random.default_rng(0)
  noisy = jax.tree.map(
    lambda x: x + 0.3 * rng.standard_normal(x.shape, np.float32), params
  )
  return graphdef, noisy


@functools.cache
def player(search, num_devices, text=TEXT):
  """A player by the name of its search; compiled once for all tests."""
  mesh = make_mesh(MeshConfig(), jax.devices()[:num_devices])
  return Player(
    network()[0],
    DOMAIN,
    VOCABULARY,
    model=MODEL,
    text=text,
    search=SEARCHES[search],
    num_trees=NUM_TREES,
    mesh=mesh,
  )


def play(search, problems, seeds, num_devices=1):
  """Problems, played."""
  jobs = [Job(*job) for job in zip(problems, seeds, strict=True)]
  return list(player(search, num_devices).play(network()[1], jobs))


def stacked(played):
  """The trees of plays as a batch."""
  return jax.tree.map(lambda *x: np.stack(x), *(play.tree for play in played))


def record(search, played, **identity):
  """What replay gets of a play of `search`; `identity` as in `to_record`."""
  identity = {"actor_id": 0, "sequence": 0, "params_version": 0, **identity}
  return plays.to_record(
    DOMAIN,
    played,
    search=SEARCHES[search],
    prompt_tokens=VOCABULARY.encode_prompt(played.problem.prompt),
    **identity,
  )


@pytest.fixture(scope="session")
def tiny():
  """All of the above."""
  return types.SimpleNamespace(
    domain=DOMAIN,
    vocabulary=VOCABULARY,
    text=TEXT,
    searches=SEARCHES,
    problems=PROBLEMS,
    seeds=range(100, 100 + NUM_TREES),
    num_trees=NUM_TREES,
    problem=problem,
    network=network,
    player=player,
    play=play,
    stacked=stacked,
    record=record,
  )
