"""Plays problems with a network and its search.

Problems sit down at tables of B trees. A tree that is done makes room for the
next problem while its neighbours go on, so that the device has full tables
until the last problems. Where a judge looks at every round there are two
tables: the device searches at one while the host judges at the other.

Of several hosts each plays its share of the problems at tables of its own, and
all get all plays.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from qstar_jax.config import ModelConfig, SearchConfig, TextConfig
from qstar_jax.distributed import hosts, rules
from qstar_jax.errors import UserError
from qstar_jax.model import partitioning
from qstar_jax.records import Domain, Problem
from qstar_jax.search import budget, searchers
from qstar_jax.search import tree as tree_lib
from qstar_jax.search.driver import SearchState
from qstar_jax.search.expand import unjudged
from qstar_jax.search.tree import SearchTree
from qstar_jax.selfplay import votes
from qstar_jax.selfplay.judge import LineJudge, judge_afterwards, judge_round
from qstar_jax.selfplay.network_expand import make_expand_fn
from qstar_jax.selfplay.phases import Phases
from qstar_jax.text.steps import encode_line
from qstar_jax.text.vocabulary import Vocabulary

# A table is filled up again when one in so many of its trees is done: filling
# costs a prefill, and waiting costs rounds.
REFILL_FRACTION = 8


class Job(NamedTuple):
  """A problem to be played.

  Attributes:
    problem: the problem.
    seed: any integer; with the params it determines the tree, whatever the
      other jobs are.
    token_budget: of the tree.
    steps: that stand already, fewer than text.max_steps; they are a part of the
      prompt. See `text_for_prefixes`.
  """

  problem: Problem
  seed: int
  token_budget: int = tree_lib.UNLIMITED
  steps: tuple[str, ...] = ()


class Played(NamedTuple):
  """A finished play.

  Attributes:
    problem: that was played.
    tree: numpy arrays of one tree.
    judge: has seen every candidate of the tree.
  """

  problem: Problem
  tree: SearchTree
  judge: LineJudge


class Usage(NamedTuple):
  """What the tables had to offer.

  Attributes:
    lane_rounds: rounds times trees, at work or not.
    decode_slots: token slots that decoding has computed, full or empty.
  """

  lane_rounds: int = 0
  decode_slots: float = 0.0


class _Seat(NamedTuple):
  """A problem at a table; `index` is its place among all jobs."""

  index: int
  problem: Problem
  judge: LineJudge


def text_for_prefixes(text: TextConfig) -> TextConfig:
  """Limits with room in the prompt for all steps of a line but its last."""
  longest = text.max_line_tokens - text.max_step_tokens
  return dataclasses.replace(text, max_prompt_tokens=longest)


def group_size(shard_size: int) -> int:
  """Trees of a shard of so many that are seated, or leave the table, at once.

  It is G of `Phases`, and how many a `Phases.play` waits for.
  """
  return -(-shard_size // REFILL_FRACTION)


class Player:
  """Plays problems. See `play`.

  Attributes:
    num_trees: of the tables of all hosts that are played at at once.
    usage: of this host's tables since `play` was last called.
  """

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
      domain: judges the lines, and names their states if the search wants it.
      vocabulary: of the network.
      model: shapes of the network.
      text: limits of prompts and steps.
      search: how to search.
      num_trees: over all devices of all hosts; divides by them, or, where the
        network is split over model, by their groups.
      mesh: of this host; B trees are split over its axes data and fsdp, the
        network over model.

    Raises:
      UserError: the domain cannot name states, the network does not divide by
        the mesh, or memory is too small.
    """
    if search.share_statistics and not hasattr(domain, "state_key"):
      raise UserError(
        f"search.share_statistics is True: domain {domain.name} has no method "
        "state_key, which says when two lines reach the same state; write it "
        "(see qstar_jax.records.Domain) or set share_statistics to False"
      )
    self._domain = domain
    self._vocabulary = vocabulary
    self._text = text = searchers.limits(search, text)
    self._search = search
    # Of a token searcher every token is a whole step.
    self._by_token = searchers.is_by_token(search)
    self.num_trees = num_trees
    self.usage = Usage()
    self._mesh = mesh
    self._num_shards = rules.num_shards(mesh.shape)
    self._table_size = num_trees // hosts.count()
    self._shard_size = self._table_size // self._num_shards
    self._group_size = group_size(self._shard_size)
    expand_fn = make_expand_fn(
      graphdef,
      ends_step=vocabulary.ends_step | self._by_token,
      end_token=vocabulary.eos_id,
      temperature=search.temperature,
      min_p=search.min_p,
      proposal=search.proposal,
    )
    self._phases = Phases(
      graphdef,
      expand_fn,
      model=model,
      text=text,
      search=search,
      num_trees=self._table_size,
      mesh=mesh,
    )
    self._phases.check_memory()
    self._empty_tables: list[SearchState] = []

  def play(
    self,
    params: Any,
    jobs: Iterable[Job],
    on_turn: Callable[[int], None] = lambda done: None,
  ) -> Iterator[Played]:
    """Plays problems to the end.

    Args:
      params: of the network, on any devices; those that are in the actor's
        layout need not move.
      jobs: drawn only as there is room for them; the same on all hosts.
      on_turn: called with the number of plays that are done, whenever the
        device has been given work; may raise to stop. Of several hosts each
        calls it in its own time, and takes the others to be as fast.

    Yields:
      The plays, in the order of the jobs.

    Raises:
      UserError: a prompt is longer than text.max_prompt_tokens, nothing may
        follow a job's steps, or a budget is too small for a line.
    """
    if hosts.count() == 1:
      yield from self._play(params, jobs, on_turn)
      return
    drawn: list[Job] = []

    def own_jobs() -> Iterator[Job]:
      for job in jobs:
        drawn.append(job)
        if (len(drawn) - 1) % hosts.count() == hosts.index():
          yield job

    def guess(done: int) -> None:
      on_turn(min(done * hosts.count(), len(drawn)))

    of_hosts = hosts.together(
      lambda: [
        (played.tree, played.judge.state_dict())
        for played in self._play(params, own_jobs(), guess)
      ]
    )
    for i, job in enumerate(drawn):
      tree, lines = of_hosts[i % hosts.count()][i // hosts.count()]
      judge = self._judge(job)
      judge.load_state_dict(lines)
      yield Played(job.problem, tree, judge)

  def _play(
    self, params: Any, jobs: Iterable[Job], on_turn: Callable[[int], None]
  ) -> Iterator[Played]:
    """`play`, on this host."""
    params = partitioning.params_in(rules.ACTOR, params, self._mesh)
    self.usage = Usage()
    queue = enumerate(jobs)
    finished: dict[int, Played] = {}
    tables = [
      self._play_table(params, queue, finished)
      for _ in range(self._phases.num_tables)
    ]
    num_yielded = 0
    while tables:
      # Every turn leaves work on the device behind.
      tables = [table for table in tables if next(table, None)]
      on_turn(num_yielded + len(finished))
      while num_yielded in finished:
        yield finished.pop(num_yielded)
        num_yielded += 1

  def compile(self, params: Any) -> None:
    """Compiles what `play` needs, so that the first plays take no longer."""
    params = partitioning.params_in(rules.ACTOR, params, self._mesh)
    state = self._take_table()
    (nobody,) = self._groups([], at_least=1)
    state = self._seat(params, state, nobody, [])
    self._phases.take(state.tree, self._to_device(nobody))
    if self._search.terminal_value == "value":
      state = self._phases.play(params, state, jnp.int32(0))
    else:
      state, _, expansion = self._phases.expand(params, state)
      judgement = unjudged(jax.device_get(expansion))
      state = self._phases.insert(state, expansion, judgement)
    self._empty_tables.append(state)

  def _play_table(
    self,
    params: Any,
    queue: Iterator[tuple[int, Job]],
    finished: dict[int, Played],
  ) -> Iterator[bool]:
    """Plays what comes from the queue at one table.

    Args:
      params: of the network.
      queue: shared by all tables.
      finished: where plays go, by their jobs' indices.

    Yields:
      True, whenever it has given the device work.
    """
    phases = self._phases
    asks_judge = self._search.terminal_value == "outcome"
    state = self._take_table()
    seats: list[_Seat | None] = [None] * self._table_size
    left: list[tuple[_Seat, SearchTree]] = []
    is_last_turn = False
    while not is_last_turn:
      state, has_more = self._fill(params, state, seats, queue)
      is_last_turn = not any(seats)
      if not is_last_turn and asks_judge:
        state, leaf_BW, expansion = phases.expand(params, state)
      elif not is_last_turn:
        num_done = self._group_size if has_more else self._shard_size
        state = phases.play(params, state, jnp.int32(num_done))
      # While the device works.
      for seat, tree in left:
        if not asks_judge:
          tree = judge_afterwards(seat.judge, tree)
        finished[seat.index] = self._finish(seat, tree)
      yield True
      if not is_last_turn and asks_judge:
        judges = [seat and seat.judge for seat in seats]
        on_host = jax.device_get((leaf_BW, state.tree.num_made, expansion))
        judgement = judge_round(
          judges, *on_host, names_states=self._search.share_statistics
        )
        state = phases.insert(state, expansion, judgement)
      left = self._leave(state, seats)
    rounds_B, slots_B = jax.device_get((state.round, state.store.decode_slots))
    self.usage = Usage(
      self.usage.lane_rounds + int(rounds_B.sum()),
      self.usage.decode_slots + float(slots_B.sum()),
    )
    self._empty_tables.append(state)

  def _judge(self, job: Job) -> LineJudge:
    """Of a play that begins."""
    return LineJudge(
      self._domain,
      job.problem,
      self._vocabulary,
      by_token=self._by_token,
      steps=job.steps,
    )

  def _finish(self, seat: _Seat, tree: SearchTree) -> Played:
    """The play of a tree that is done and judged, its line chosen."""
    if self._search.choose_by != "score":

      def answer_of(candidate):
        return self._domain.answer(seat.problem, seat.judge.line(candidate))

      tree = votes.elect(tree, answer_of, self._search.choose_by)
    return Played(seat.problem, tree, seat.judge)

  def _take_table(self) -> SearchState:
    """A table at which nobody sits, its counters at 0."""
    if not self._empty_tables:
      return self._phases.empty()
    state = self._empty_tables.pop()
    slots_B = jnp.zeros_like(state.store.decode_slots)
    store = state.store._replace(decode_slots=slots_B)
    return state._replace(round=jnp.zeros_like(state.round), store=store)

  def _fill(
    self,
    params: Any,
    state: SearchState,
    seats: list[_Seat | None],
    queue: Iterator[tuple[int, Job]],
  ) -> tuple[SearchState, bool]:
    """Seats new problems, if there is room for a group of them.

    Returns:
      The table, and whether there may be more to come.
    """
    free = [row for row, seat in enumerate(seats) if seat is None]
    if len(free) < self._group_size * self._num_shards:
      return state, True
    # One on each shard, and then the next.
    free.sort(key=lambda row: row % self._shard_size)
    jobs = list(itertools.islice(queue, len(free)))
    rows = dict(zip(free, jobs, strict=False))
    for row, (index, job) in rows.items():
      seats[row] = _Seat(index, job.problem, self._judge(job))
    for group in self._groups(list(rows)):
      new = [rows[row][1] if row is not None else None for row in group]
      state = self._seat(params, state, group, new)
    return state, len(jobs) == len(free)

  def _leave(
    self, state: SearchState, seats: list[_Seat | None]
  ) -> list[tuple[_Seat, SearchTree]]:
    """Those whose trees are done leave the table with them."""
    is_done_B = np.asarray(state.tree.is_done)
    rows = [row for row, seat in enumerate(seats) if seat and is_done_B[row]]
    left = []
    for group in self._groups(rows):
      trees = jax.device_get(
        self._phases.take(state.tree, self._to_device(group))
      )
      for slot, row in enumerate(group):
        if row is not None:
          tree = jax.tree.map(lambda x, slot=slot: x[slot], trees)
          left.append((seats[row], tree))
          seats[row] = None
    return left

  def _groups(
    self, rows: Sequence[int], at_least: int = 0
  ) -> list[list[int | None]]:
    """Rows of the table in groups of as many for each shard, or None."""
    by_shard = [
      [row for row in rows if row // self._shard_size == shard]
      for shard in range(self._num_shards)
    ]
    size = self._group_size
    most = max(len(own) for own in by_shard)
    num_groups = max(-(-most // size), at_least)
    padded = [own + [None] * (num_groups * size - len(own)) for own in by_shard]
    return [
      [row for own in padded for row in own[i * size : (i + 1) * size]]
      for i in range(num_groups)
    ]

  def _to_device(self, group: Sequence[int | None]) -> jax.Array:
    """A group's places on their shards; those past the end are no place."""
    size = self._shard_size
    places = [size if row is None else row % size for row in group]
    return jax.device_put(np.array(places, np.int32), self._phases.by_tree)

  def _seat(
    self,
    params: Any,
    state: SearchState,
    group: Sequence[int | None],
    jobs: Sequence[Job | None],
  ) -> SearchState:
    """Puts jobs into the rows of a group."""
    size = len(group)
    prompt_GP = np.zeros((size, self._text.max_prompt_tokens), np.int32)
    length_G = np.ones((size,), np.int32)
    before_G = np.zeros((size,), np.int32)
    seed_G = np.zeros((size,), np.uint32)
    budget_G = np.zeros((size,), np.int32)
    for slot, job in enumerate(jobs):
      if job is None:
        continue
      prompt, steps = encode_line(
        self._vocabulary, job.problem.prompt, job.steps, is_finished=False
      )
      tokens = [*prompt, *itertools.chain(*steps)]
      before = len(tokens) - len(prompt) if self._by_token else len(steps)
      self._check(job, len(tokens), before)
      prompt_GP[slot, : len(tokens)] = tokens
      length_G[slot] = len(tokens)
      before_G[slot] = before
      seed_G[slot] = job.seed % 2**32
      budget_G[slot] = job.token_budget
    arrays = prompt_GP, length_G, before_G, seed_G, budget_G
    on_device = jax.device_put(arrays, self._phases.by_tree)
    return self._phases.seat(params, state, self._to_device(group), *on_device)

  def _check(self, job: Job, prompt_tokens: int, before: int) -> None:
    """UserError if the prompt or a line of the longest steps does not fit."""
    text, problem = self._text, job.problem
    if before >= text.max_steps:
      raise UserError(
        f"a line of problem {problem.key!r} has {len(job.steps)} steps already:"
        " must be fewer than text.max_steps, since nothing can follow; leave it"
        " out"
      )
    if prompt_tokens > text.max_prompt_tokens:
      prompt = problem.prompt + "\n".join(job.steps)
      raise UserError(
        f"prompt {prompt!r} has {prompt_tokens} tokens, over "
        f"text.max_prompt_tokens = {text.max_prompt_tokens}; raise that and "
        "train again, or give a shorter problem"
      )
    least = budget.least_tokens(
      prompt_tokens,
      text.max_steps,
      text.max_step_tokens,
      self._search.num_candidates,
    )
    if job.token_budget < least:
      raise UserError(
        f"budget {job.token_budget}: a line of problem {problem.key!r} may "
        f"take {least} tokens ({prompt_tokens} of the prompt, and "
        f"{text.max_steps} steps of {text.max_step_tokens} at most); give "
        f"{least} or more"
      )
