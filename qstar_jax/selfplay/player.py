"""A network with its search, compiled for a fixed number of trees.

Batches are played two at a time, so that the device searches one while the
host judges or unpacks the other.
"""

import collections
import functools
import itertools
from collections.abc import Generator, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qstar_jax.config import ModelConfig, SearchConfig, TextConfig
from qstar_jax.errors import UserError
from qstar_jax.model import step_cache
from qstar_jax.records import Domain, Problem
from qstar_jax.search import budget, driver
from qstar_jax.search import tree as tree_lib
from qstar_jax.search.driver import SearchState
from qstar_jax.search.expand import NOTHING, PROBLEM
from qstar_jax.search.tree import SearchTree
from qstar_jax.selfplay.judge import Candidates, LineJudge
from qstar_jax.selfplay.network_expand import make_expand_fn
from qstar_jax.text.vocabulary import Vocabulary

# Batches in flight: one on the device, one on the host.
_NUM_IN_FLIGHT = 2


class Batch(NamedTuple):
  """Problems to be played at once.

  Attributes:
    problems: at most as many as the player has trees.
    seeds: one per problem, any integers; with the params they determine its
      tree, whatever batch it is in.
    token_budget: of each tree.
  """

  problems: list[Problem]
  seeds: list[int]
  token_budget: int = tree_lib.UNLIMITED


class PlayedBatch(NamedTuple):
  """Finished plays.

  Attributes:
    problems: that were played.
    tree: numpy arrays; row b belongs to problem b, rows beyond are padding.
    judge: has seen every candidate of every tree.
    num_rounds: of the search, until all trees were done.
    decode_slots: token slots that decoding has computed, full or empty.
  """

  problems: list[Problem]
  tree: SearchTree
  judge: LineJudge
  num_rounds: int
  decode_slots: float


# Yields whenever it has given the device work.
_Game = Generator[None, None, PlayedBatch]


class Player:
  """Plays problems. See `play_batches`."""

  def __init__(
    self,
    graphdef: nnx.GraphDef,
    domain: Domain,
    vocabulary: Vocabulary,
    *,
    model: ModelConfig,
    text: TextConfig,
    search: SearchConfig,
    num_trees: int,
    mesh: Mesh,
  ):
    """Compiles nothing yet.

    Args:
      graphdef: structure of the network.
      domain: judges the lines.
      vocabulary: of the network.
      model: shapes of the network.
      text: limits of prompts and steps.
      search: how to search.
      num_trees: B, over all devices; divides by the mesh's data axis.
      mesh: trees are split over its data axis.
    """
    self._domain = domain
    self._vocabulary = vocabulary
    self._text = text
    self._search = search
    self.num_trees = num_trees
    self._by_tree = NamedSharding(mesh, P("data"))
    self._replicated = NamedSharding(mesh, P())
    self._graphdef = graphdef
    self._num_nodes = driver.num_nodes_needed(search, text.max_steps)
    self._expand_fn = make_expand_fn(
      graphdef,
      ends_step=vocabulary.ends_step,
      end_token=vocabulary.eos_id,
      temperature=search.temperature,
      proposal=search.proposal,
    )
    self._empty_store = functools.partial(
      step_cache.empty_store,
      model,
      num_blocks=self._num_nodes,
      num_candidates=search.num_candidates,
      max_prompt_tokens=text.max_prompt_tokens,
      max_step_tokens=text.max_step_tokens,
      max_steps=text.max_steps,
    )
    self._stores: list[Any] = []
    self._compile(mesh)

  def _compile(self, mesh: Mesh) -> None:
    """Wraps the phases of a play for the mesh: every device its own trees."""
    config, max_steps = self._search, self._text.max_steps
    store_spec = jax.tree.map(
      lambda axis: P(*(None,) * axis, "data"),
      step_cache.tree_axes(
        jax.eval_shape(lambda: self._empty_store(num_trees=1))
      ),
    )
    by_tree = P("data")
    state_spec = SearchState(by_tree, store_spec, P(), by_tree)

    def sharded(fn, in_specs, out_specs, donate):
      # Scalars are equal on all devices by construction, not by inference.
      mapped = jax.shard_map(
        fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
      )
      return jax.jit(mapped, donate_argnums=donate)

    def expand(params, state):
      return driver.select_and_expand(
        params, state, self._expand_fn, config, max_steps
      )

    def play(params, state):
      return driver.play(params, state, self._expand_fn, config, max_steps)

    def insert(state, expansion, judgement):
      state = driver.insert_and_backup(
        state, expansion, judgement, config, max_steps
      )
      return driver.advance(state, config, max_steps)

    self._begin = sharded(
      self._first_state,
      (P(), store_spec, by_tree, by_tree, by_tree, by_tree),
      state_spec,
      1,
    )
    self._play = sharded(play, (P(), state_spec), state_spec, 1)
    self._expand = sharded(
      expand, (P(), state_spec), (state_spec, by_tree, by_tree), 1
    )
    self._insert = sharded(
      insert, (state_spec, by_tree, by_tree), state_spec, 0
    )
    self._store_sharding = jax.tree.map(
      lambda spec: NamedSharding(mesh, spec),
      store_spec,
      is_leaf=lambda x: isinstance(x, P),
    )

  def _first_state(
    self, params, store, prompt_BP, length_B, seed_B, budget_B
  ) -> SearchState:
    """Searches at the start of their first move; traced."""
    model = nnx.merge(self._graphdef, params)
    store = step_cache.prefill(model, store, prompt_BP, length_B)
    heads = model.heads(store.prompt_hidden)
    tree = tree_lib.new_tree(
      num_nodes=self._num_nodes,
      num_candidates=self._search.num_candidates,
      max_step_tokens=self._text.max_step_tokens,
      problem_value_B=jax.nn.sigmoid(heads.value_logit),
      prompt_length_B=length_B,
      token_budget=budget_B,
    )
    # A row without a problem has nothing to do.
    tree = tree.replace(is_done=length_B == 0)
    keys_B = jax.vmap(jax.random.key)(seed_B)
    state = SearchState(tree, store, jnp.int32(0), keys_B)
    return driver.begin_move(state, self._search, self._text.max_steps)

  def play_batches(
    self, params: Any, batches: Iterable[Batch]
  ) -> Iterator[PlayedBatch]:
    """Plays batches to the end, in order.

    Args:
      params: of the network, on any devices.
      batches: drawn only as they are needed.

    Yields:
      Each batch's plays.

    Raises:
      UserError: a prompt is longer than text.max_prompt_tokens.
    """
    params = jax.device_put(params, self._replicated)
    waiting = iter(batches)
    # In order: games, and the plays of those that ended before an older one.
    games: collections.deque[_Game | PlayedBatch] = collections.deque()
    while True:
      num_running = sum(not isinstance(game, PlayedBatch) for game in games)
      for batch in itertools.islice(waiting, _NUM_IN_FLIGHT - num_running):
        games.append(self._play_one(params, batch))
        next(games[-1])
      if not games:
        return
      # The oldest game first; each step leaves work on the device behind.
      for i, game in enumerate(games):
        if not isinstance(game, PlayedBatch):
          try:
            next(game)
          except StopIteration as stop:
            games[i] = stop.value
      while games and isinstance(games[0], PlayedBatch):
        yield games.popleft()

  def _play_one(self, params: Any, batch: Batch) -> _Game:
    """Plays one batch; yields whenever it has given the device work."""
    judge = LineJudge(
      self._domain,
      batch.problems,
      self._vocabulary,
      self._search.num_candidates,
    )
    state = self._begin(params, self._take_store(), *self._encode(batch))
    if self._search.terminal_value == "value":
      state = self._play(params, state)
      yield
      tree = judge_afterwards(judge, jax.device_get(state.tree))
    else:
      block = 0
      while True:
        state, leaf_BW, expansion = self._expand(params, state)
        yield
        on_host = jax.device_get((leaf_BW, expansion, state.tree.is_done))
        if on_host[-1].all():
          break
        judgement = judge(on_host[0], block, on_host[1])
        state = self._insert(state, expansion, judgement)
        block += self._search.leaves_per_round
      tree = jax.device_get(state.tree)
    num_nodes, slots_B = jax.device_get(
      (state.num_nodes, state.store.decode_slots)
    )
    self._stores.append(state.store)
    return PlayedBatch(
      batch.problems,
      tree,
      judge,
      num_rounds=int(num_nodes) // self._search.leaves_per_round,
      decode_slots=float(slots_B.sum()),
    )

  def _take_store(self) -> step_cache.StepStore:
    """A store that no batch is using; it may hold an old batch's blocks."""
    if self._stores:
      return self._stores.pop()
    make = jax.jit(
      lambda: self._empty_store(num_trees=self.num_trees),
      out_shardings=self._store_sharding,
    )
    return make()

  def _encode(self, batch: Batch) -> tuple[Any, ...]:
    """Prompts [B, P], lengths (0 in rows of padding), seeds and budgets [B]."""
    prompt_BP = np.zeros(
      (self.num_trees, self._text.max_prompt_tokens), np.int32
    )
    length_B = np.zeros((self.num_trees,), np.int32)
    seed_B = np.zeros((self.num_trees,), np.uint32)
    budget_B = np.full((self.num_trees,), batch.token_budget, np.int32)
    rows = zip(batch.problems, batch.seeds, strict=True)
    for row, (problem, seed) in enumerate(rows):
      tokens = self._vocabulary.encode_prompt(problem.prompt)
      if len(tokens) > prompt_BP.shape[1]:
        raise UserError(
          f"prompt {problem.prompt!r} has {len(tokens)} tokens, over "
          f"text.max_prompt_tokens = {prompt_BP.shape[1]}; raise that and "
          "train again, or give a shorter problem"
        )
      self._check_budget(problem, len(tokens), batch.token_budget)
      prompt_BP[row, : len(tokens)] = tokens
      length_B[row] = len(tokens)
      seed_B[row] = seed % 2**32
    arrays = prompt_BP, length_B, seed_B, budget_B
    return jax.device_put(arrays, self._by_tree)

  def _check_budget(
    self, problem: Problem, prompt_tokens: int, token_budget: int
  ) -> None:
    """UserError if not even one line of the longest steps fits the budget."""
    text = self._text
    least = budget.least_tokens(
      prompt_tokens,
      text.max_steps,
      text.max_step_tokens,
      self._search.num_candidates,
    )
    if token_budget < least:
      raise UserError(
        f"budget {token_budget}: a line of problem {problem.key!r} may take "
        f"{least} tokens ({prompt_tokens} of the prompt, and {text.max_steps} "
        f"steps of {text.max_step_tokens} at most); give {least} or more"
      )


def judge_afterwards(judge: LineJudge, tree: SearchTree) -> SearchTree:
  """Shows a finished search, which knew nothing of it, to a judge.

  Args:
    judge: fresh.
    tree: numpy arrays.

  Returns:
    The tree with `legal`, `outcome` and `score` as the judge says.
  """
  num_candidates = tree.count.shape[2]
  judgements = []
  for node in range(tree.parent.shape[1]):
    depth_B, parent_B = tree.depth[:, node], tree.parent[:, node]
    leaf_B = parent_B * num_candidates + tree.candidate[:, node]
    leaf_B = np.where(parent_B == tree_lib.NONE, PROBLEM, leaf_B)
    leaf_B = np.where(depth_B == tree_lib.NONE, NOTHING, leaf_B)
    expansion = Candidates(
      tokens=tree.tokens[:, node, None],
      length=tree.length[:, node, None],
      count=tree.sampled[:, node, None],
    )
    judgements.append(judge(leaf_B[:, None], node, expansion))
  legal, _, outcome, score = (
    np.concatenate(field, axis=1) for field in zip(*judgements, strict=True)
  )
  return tree.replace(legal=legal, outcome=outcome, score=score)
