"""Lines to be labelled: those of stored trees, and fresh samples."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from qstar_jax.config import ModelConfig, SearchConfig, TextConfig
from qstar_jax.labels import step_tree
from qstar_jax.labels.lines import Line
from qstar_jax.records import Domain, Problem, TreeRecord
from qstar_jax.search import searchers
from qstar_jax.selfplay import plays
from qstar_jax.selfplay.player import Job, Player
from qstar_jax.text.vocabulary import Vocabulary

# Numbers of lines that a tree has for itself; more than it can have lines.
_LINES_PER_TREE = 2**24
# Keeps the seeds of samples apart from those of self-play.
_STREAM = int.from_bytes(b"samples", "big")


def tree_lines(
  record: TreeRecord,
  vocabulary: Vocabulary,
  domain: Domain,
  *,
  which: Literal["committed", "all"],
  number: int,
) -> Iterator[Line]:
  """Lines of a tree.

  Args:
    record: the tree.
    vocabulary: that its tokens are in.
    domain: of its problem.
    which: the line that the search has committed, without a last step that was
      cut; or every line to a step that no other follows, so that each step of
      the tree is to have one label.
    number: of the tree among all that are to be labelled, >= 0.

  Raises:
    UserError: the vocabulary or the domain is not the tree's.
  """
  problem = step_tree.read_problem(record, domain)
  steps = step_tree.read_steps(record, vocabulary)
  if which == "committed":
    tips = _committed(record, steps)
  else:
    tips = sorted(set(range(len(steps))) - {step.above for step in steps})
  seen: set[int] = set()
  for i, tip in enumerate(tips):
    line = step_tree.line_to(steps, tip)
    yield Line(
      number * _LINES_PER_TREE + i,
      problem,
      tuple(steps[index].text for index in line),
      steps[tip].ended,
      step_tree.origin(record),
      begin=len(seen.intersection(line)),
    )
    seen.update(line)


def _committed(record: TreeRecord, steps: list[step_tree.Step]) -> list[int]:
  """The last whole step of the committed line, if it has one."""
  edges = set(
    zip(
      record.committed_node.tolist(),
      record.committed_candidate.tolist(),
      strict=True,
    )
  )
  on_line = [
    i for i, step in enumerate(steps) if edges.intersection(step.edges)
  ]
  return on_line[-1:]


# Trees of problems, in order; the first of them has the number that is given.
SampleFn = Callable[[Iterable[Problem], int], Iterator[TreeRecord]]


def make_sample_fn(
  graphdef: nnx.GraphDef,
  params: Any,
  domain: Domain,
  vocabulary: Vocabulary,
  *,
  model: ModelConfig,
  text: TextConfig,
  search: SearchConfig,
  num_trees: int,
  mesh: Mesh,
  seed: int,
  params_version: int,
) -> SampleFn:
  """Samples of the policy, `search.num_lines` of each problem, as trees.

  Args:
    graphdef: structure of the network.
    params: of the network.
    domain: of the problems.
    vocabulary: of the network.
    model: shapes of the network.
    text: limits of prompts and steps.
    search: gives the number of lines.
    num_trees: problems at a time; divides by the mesh's data * fsdp.
    mesh: problems are split over its axes data and fsdp.
    seed: of the play; with a problem's number it determines its lines.
    params_version: of `params`.
  """
  search = searchers.for_evaluation(search, "best_of_n")
  player = Player(
    graphdef,
    domain,
    vocabulary,
    model=model,
    text=text,
    search=search,
    num_trees=num_trees,
    mesh=mesh,
  )

  def job(problem: Problem, number: int) -> Job:
    entropy = np.random.SeedSequence([seed, _STREAM, number])
    return Job(problem, int(entropy.generate_state(1)[0]))

  def sample(problems: Iterable[Problem], first: int) -> Iterator[TreeRecord]:
    jobs = (job(problem, first + i) for i, problem in enumerate(problems))
    for i, played in enumerate(player.play(params, jobs)):
      yield plays.to_record(
        domain,
        played,
        actor_id=0,
        sequence=first + i,
        params_version=params_version,
        search=search,
        prompt_tokens=vocabulary.encode_prompt(played.problem.prompt),
      )

  return sample
