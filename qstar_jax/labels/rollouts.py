"""Labels by playing on: Monte-Carlo roll-outs after every step of a line.

Math-Shepherd (Wang et al. 2024, arXiv:2312.08935): K independent samples of the
policy go on from a step to the end of the line. The step's soft label is the
share of them that are solved, its hard label whether any is.

The only fact used is the verdict on whole lines. The domain is not asked about
a step: one that breaks a rule is known by nothing being solved after it, and a
sample ends where the network says so, or at the longest line. A soft label is
an unbiased estimate of the probability that this policy solves the problem from
here, not of whether it can be solved; a hard 1 is a proof that it can, and a
hard 0 is none that it cannot.

Deviations: policy and completer are one network, at temperature 1.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from qstar_jax.config import ModelConfig, SearchConfig, TextConfig
from qstar_jax.labels.lines import Line, labelled, play_seed
from qstar_jax.records import NO_LABEL, Domain, LabelledLine, Outcome, Problem
from qstar_jax.search import searchers
from qstar_jax.search.tree import line_index
from qstar_jax.selfplay.player import Job, Played, Player, text_for_prefixes
from qstar_jax.text.steps import count_tokens
from qstar_jax.text.vocabulary import Vocabulary


class Prefix(NamedTuple):
  """Where roll-outs begin.

  Attributes:
    problem: the problem.
    steps: that stand already.
    is_finished: they are a whole line.
    seed: any integer; with the params it determines the roll-outs.
  """

  problem: Problem
  steps: tuple[str, ...]
  is_finished: bool
  seed: int


class Rollout(NamedTuple):
  """One sample.

  Attributes:
    steps: the whole line, its prefix included.
    is_finished: the line has an end token.
    is_solved: the verifier calls it correct.
  """

  steps: tuple[str, ...]
  is_finished: bool
  is_solved: bool


class Rollouts(NamedTuple):
  """What became of a prefix.

  Attributes:
    samples: K of them; the line itself where nothing can follow; none where the
      network cannot read the prefix.
    tokens: generated and prefilled.
  """

  samples: tuple[Rollout, ...]
  tokens: int

  def value(self, kind: str) -> float:
    """The share of samples that are solved (`soft`), or whether any is
    (`hard`); `NO_LABEL` without samples."""
    if not self.samples:
      return NO_LABEL
    is_solved = [sample.is_solved for sample in self.samples]
    return float(np.mean(is_solved) if kind == "soft" else any(is_solved))


# What becomes of every prefix, in order. Prefixes are drawn as there is room.
RolloutFn = Callable[[Iterable[Prefix]], Iterator[Rollouts]]


def make_rollout_fn(
  graphdef: nnx.GraphDef,
  params: Any,
  domain: Domain,
  vocabulary: Vocabulary,
  *,
  model: ModelConfig,
  text: TextConfig,
  num_rollouts: int,
  num_trees: int,
  mesh: Mesh,
) -> RolloutFn:
  """Roll-outs of a network: all K samples of a prefix share one prefill.

  A line that is finished or has text.max_steps steps stands as it is, and its
  verdict costs no tokens. A prefix of more tokens than prompt and steps of that
  many may have is not played.

  Args:
    graphdef: structure of the network.
    params: of the network.
    domain: verifies the lines.
    vocabulary: of the network.
    model: shapes of the network.
    text: limits of prompts and steps.
    num_rollouts: K.
    num_trees: prefixes at a time; divides by the mesh's data * fsdp.
    mesh: prefixes are split over its axes data and fsdp.
  """
  text = text_for_prefixes(text)
  search = SearchConfig(num_lines=num_rollouts, beam_width=num_rollouts)
  player = Player(
    graphdef,
    domain,
    vocabulary,
    model=model,
    text=text,
    search=searchers.for_evaluation(search, "best_of_n"),
    num_trees=num_trees,
    mesh=mesh,
  )

  def is_closed(prefix: Prefix) -> bool:
    return prefix.is_finished or len(prefix.steps) >= text.max_steps

  def is_played(prefix: Prefix) -> bool:
    if is_closed(prefix):
      return False
    num_tokens = count_tokens(vocabulary, prefix.problem.prompt, prefix.steps)
    return num_tokens <= text.max_prompt_tokens

  def roll_out(prefixes: Iterable[Prefix]) -> Iterator[Rollouts]:
    prefixes, ahead = itertools.tee(prefixes)
    played = player.play(
      params,
      (Job(p.problem, p.seed, steps=p.steps) for p in ahead if is_played(p)),
    )
    for prefix in prefixes:
      if is_played(prefix):
        yield _of_tree(next(played))
      elif is_closed(prefix):
        yield _as_it_stands(domain, prefix)
      else:
        yield Rollouts((), 0)
    # To its end, where the tables are free for the next call.
    next(played, None)

  return roll_out


def _of_tree(played: Played) -> Rollouts:
  """The lines of a tree of samples."""
  tree = played.tree
  samples = tuple(
    Rollout(
      played.judge.line(int(line_index(tree, node, a))),
      bool(tree.ended[node, a]),
      bool(tree.outcome[node, a] == Outcome.CORRECT),
    )
    for node, a in np.argwhere((tree.sampled > 0) & tree.is_terminal)
  )
  return Rollouts(samples, int(tree.tokens_used))


def _as_it_stands(domain: Domain, prefix: Prefix) -> Rollouts:
  """A line that nothing can follow."""
  verdict = domain.verify(prefix.problem, prefix.steps)
  is_solved = verdict.outcome == Outcome.CORRECT
  sample = Rollout(prefix.steps, prefix.is_finished, is_solved)
  return Rollouts((sample,), 0)


def label_lines(
  rollout_fn: RolloutFn,
  lines: Iterable[Line],
  *,
  kind: Literal["hard", "soft"],
  seed: int,
  params_version: int,
) -> Iterator[LabelledLine]:
  """Labels the steps of every line, from `begin` on, by roll-outs.

  The steps of all lines share the tables, which stay full to the last lines.

  Args:
    rollout_fn: plays on.
    lines: of one step or more; drawn as there is room for them.
    kind: of the labels.
    seed: of all roll-outs.
    params_version: of the network that plays on.

  Yields:
    The lines, in order, with `source` `rollouts_hard` or `rollouts_soft`.
  """
  lines, ahead = itertools.tee(lines)
  found = rollout_fn(
    prefix for line in ahead for prefix in _prefixes(line, seed)
  )
  for line in lines:
    of_steps = list(itertools.islice(found, len(line.steps) - line.begin))
    label = [rollouts.value(kind) for rollouts in of_steps]
    yield labelled(
      line,
      [NO_LABEL] * line.begin + label,
      kind=kind,
      source=f"rollouts_{kind}",
      params_version=params_version,
      tokens=sum(rollouts.tokens for rollouts in of_steps),
    )


def _prefixes(line: Line, seed: int) -> Iterator[Prefix]:
  """The line up to and with each of its steps that wants a label."""
  for i in range(line.begin + 1, len(line.steps) + 1):
    is_finished = line.is_finished and i == len(line.steps)
    number = play_seed(seed, line, i)
    yield Prefix(line.problem, line.steps[:i], is_finished, number)
