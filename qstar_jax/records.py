"""The few records that cross the parts of the system: numpy and text.

Shape alphabet, used here and as suffixes of array names in model/, search/ and
learner/ (`logits_BTV`):

  B problems (trees)        W leaves expanded at once per tree
  A candidates per node     N expanded nodes per tree
  D depth in steps          T tokens (of a step, or of a training sequence)
  P prompt tokens           L layers, H heads, K key-value heads, C head dim
  M model dim, F ffn dim    V vocabulary
"""

import dataclasses
import enum
from typing import Any, Protocol

import numpy as np


class Outcome(enum.IntEnum):
  """What a verifier says of a finished line. Stored as its integer."""

  CORRECT = 0
  WRONG = 1
  UNPARSEABLE = 2
  TIMEOUT = 3


# Integer stored where no verifier has judged (yet).
NOT_JUDGED = -1


@dataclasses.dataclass(frozen=True)
class Problem:
  """One problem of a domain.

  Attributes:
    domain: name of the domain that made it.
    prompt: the text the model reads; ends in a newline, holds no other newline.
    key: canonical form. Two problems are the same problem exactly when their
      keys are equal; splits are made by key.
    payload: the domain's own data, JSON-able (ints, strings, lists of them);
      the domain rebuilds everything it needs from this and nothing else.
    difficulty: the domain's own scale, an integer >= 1.
  """

  domain: str
  prompt: str
  key: str
  payload: dict[str, Any]
  difficulty: int


@dataclasses.dataclass(frozen=True)
class StepCheck:
  """A domain's judgement of one step after given earlier steps.

  Attributes:
    is_legal: the step obeys the rules at this state.
    is_terminal: the line is finished after this step (False if illegal).
    reason: why the step is illegal, one line; empty if legal.
  """

  is_legal: bool
  is_terminal: bool
  reason: str = ""


@dataclasses.dataclass(frozen=True)
class Verdict:
  """A verifier's judgement of a whole line.

  Attributes:
    outcome: correct, wrong, unparseable or timeout.
    score: in [0, 1]; 1 for right and 0 for wrong. Graded domains use the range.
    reason: why it is not correct, one line; empty if correct.
  """

  outcome: Outcome
  score: float
  reason: str = ""


class Domain(Protocol):
  """Rules: samples problems, checks a step, verifies a line. No JAX, no model.

  Implementations are frozen dataclasses whose fields are the options that a
  config may set. Every method is deterministic in its arguments. Needed by some
  configs only: `legal_steps` and `corrupt` (`warm_start.corrupt_share`),
  `state_key` (`search.share_statistics`), and `sample_related(rng, difficulty)
  -> Problem` (`curriculum.related_share`).

  Attributes:
    name: registry name, lower case.
    version: integer, changed whenever behaviour does; stored with every tree.
  """

  name: str
  version: int

  def sample(self, rng: np.random.Generator, difficulty: int) -> Problem:
    """A random problem. Solvable in domains that can tell."""

  def parse(self, text: str) -> Problem:
    """The problem a user typed; ValueError with rule and fix if malformed."""

  def split_key(self, problem: Problem) -> str:
    """What splits are made by: `problem.key`, or coarser where two different
    problems should never lie on two sides of a split."""

  def check_step(
    self, problem: Problem, steps: tuple[str, ...], step: str
  ) -> StepCheck:
    """Judges `step` after `steps` (all legal; texts without delimiter)."""

  def verify(self, problem: Problem, steps: tuple[str, ...]) -> Verdict:
    """Judges a whole line, replaying every step."""

  def answer(self, problem: Problem, steps: tuple[str, ...]) -> str:
    """The answer that a finished line commits to, right or wrong, so that
    lines which mean the same give the same text. Votes count it: a line that
    breaks the rules has one too, as it is written. Empty if it has none."""

  def random_play(
    self, rng: np.random.Generator, difficulty: int
  ) -> tuple[Problem, tuple[str, ...]]:
    """Random legal play, relabelled in hindsight: the problem it solves."""

  def legal_steps(self, problem: Problem, steps: tuple[str, ...]) -> list[str]:
    """Every legal step after `steps`; empty once the line is finished."""

  def corrupt(
    self, rng: np.random.Generator, problem: Problem, steps: tuple[str, ...]
  ) -> tuple[tuple[str, ...], int]:
    """A line that leaves legal `steps` with a mistake at the index returned."""

  def state_key(self, problem: Problem, steps: tuple[str, ...]) -> str | None:
    """The state after `steps` (legal, not finished), for shared statistics.

    After lines of equal keys the same may follow, up to the names of things,
    and is as good. None is a state like no other.
    """


@dataclasses.dataclass(frozen=True)
class TreeRecord:
  """One play of one problem as replay stores it: raw facts, never targets.

  n is the number of expanded nodes, A the candidates per node. Node rows are in
  order of expansion; a parent precedes its children and row 0 is a root. A
  search that draws whole lines has a root for each of them. Candidate arrays
  are [n, A]. A candidate with `count` 0 is no candidate (a duplicate merged
  into another, or an empty slot): ignore its other fields.

  Attributes:
    domain: name of the domain.
    domain_version: its version when the tree was made.
    problem_key: canonical form of the problem.
    prompt: the problem's text.
    actor_id: who made the tree, >= 0.
    sequence: number of this tree among its actor's, from 0. (actor_id,
      sequence) identifies a tree: it is counted once by the learner.
    params_version: learner step whose params drove the search, >= 0.
    terminal_value: "outcome" if the search used the verifier, else "value".
    temperature: tau that candidates were sampled at, > 0.
    prompt_tokens: int32 [p].
    node_parent: int32 [n], row of the parent node; -1 for roots.
    node_candidate: int32 [n], index in 0..A-1 of the parent's candidate that
      this node expands; -1 for roots.
    node_value: float32 [n], V of the node itself in [0, 1].
    tokens: int32 [sum(length)], the candidates' tokens one after another in row
      order, their last token (delimiter or end) included.
    length: int32 [n, A], tokens of each candidate; 0 where count is 0.
    count: int32 [n, A], how many of the samples were this candidate.
    log_prob: float32 [n, A], nats, sum over tokens, at temperature 1.
    proposal_log_prob: float32 [n, A], nats, under what was sampled from: of one
      draw with replacement, or of being among the A without it.
    value: float32 [n, A], V after the candidate, in [0, 1].
    prm: float32 [n, A], PRM score of the candidate, in [0, 1].
    ended: bool [n, A], the candidate finishes its line.
    visits: int32 [n, A], expansions at or below the candidate while it stood
      below the root of the move; those of later moves do not count.
    q: float32 [n, A], search value of the candidate in [0, 1]; V (or the
      terminal value) where visits is 0.
    legal: int8 [n, A], the domain's check: 1 legal, 0 illegal, -1 not checked.
    outcome: int8 [n, A], Outcome of the line that ends here, else NOT_JUDGED.
    score: float32 [n, A], Verdict.score where outcome is set, else 0.
    committed_node: int32 [d], rows of the nodes on the committed line.
    committed_candidate: int32 [d], the candidate committed at each.
    final_outcome: Outcome (as int) of the committed line.
    final_score: its score in [0, 1].
  """

  domain: str
  domain_version: int
  problem_key: str
  prompt: str
  actor_id: int
  sequence: int
  params_version: int
  terminal_value: str
  temperature: float
  prompt_tokens: np.ndarray
  node_parent: np.ndarray
  node_candidate: np.ndarray
  node_value: np.ndarray
  tokens: np.ndarray
  length: np.ndarray
  count: np.ndarray
  log_prob: np.ndarray
  proposal_log_prob: np.ndarray
  value: np.ndarray
  prm: np.ndarray
  ended: np.ndarray
  visits: np.ndarray
  q: np.ndarray
  legal: np.ndarray
  outcome: np.ndarray
  score: np.ndarray
  committed_node: np.ndarray
  committed_candidate: np.ndarray
  final_outcome: int
  final_score: float


# In the label's place where a step has none.
NO_LABEL = -1.0


@dataclasses.dataclass(frozen=True)
class LabelledLine:
  """A line of which some steps have been judged: process supervision.

  Steps without a label are context for those that have one. A label speaks of
  its step after the steps before it; where one of those is wrong the line is
  lost already, and so is the step.

  Attributes:
    domain: name of the domain, or of the dataset that the line comes from.
    problem_key: canonical form of the problem; splits are made by it.
    prompt: the problem's text; ends in a newline, holds no other.
    steps: texts without delimiter, at least one.
    is_finished: the last step finishes the line.
    label: float32 [len(steps)] in [0, 1], or `NO_LABEL`.
    kind: what a label is: `hard`, a yes or no, 1 or 0; `soft`, a probability.
    source: who says so, a name of `labels.SOURCES`.
    params_version: learner step of the network that was asked; -1 if none was.
    tokens: generated and prefilled to find these labels, >= 0.
    origin: where the line comes from, for a person to look it up: a tree, or a
      file and its record.
  """

  domain: str
  problem_key: str
  prompt: str
  steps: tuple[str, ...]
  is_finished: bool
  label: np.ndarray
  kind: str
  source: str
  params_version: int
  tokens: int
  origin: str


@dataclasses.dataclass(frozen=True)
class TrainBatch:
  """Lines of text with weights, the one input of the learner.

  Place t holds token t; all targets at t speak of token t itself or of the
  state just after it. The same record serves self-play trees, offline data and
  human labels.

  Attributes:
    tokens: int32 [B, T], padded with 0.
    policy_weight: float32 [B, T] >= 0, weight of -log p(tokens[t] | before it);
      0 at the prompt and at padding.
    value_target: float32 [B, T] in [0, 1], P(solved) after token t.
    value_weight: float32 [B, T] >= 0; 0 where there is no target.
    prm_target: float32 [B, T] in [0, 1], label of the step that ends at t.
    prm_weight: float32 [B, T] >= 0; 0 where there is no label.

  A row is one line, prompt and steps, or trees of lines in preorder, in which
  what lines have in common stands once. Then three fields say which tokens are
  on a line together; elsewhere they are None.

    position: int32 [B, T], of the token in its line.
    previous: int32 [B, T], place of the token before it in its line; 0 at a
      line's first token, which nothing predicts.
    last: int32 [B, T], place of the last token that comes after it in some
      line: the token at t sees that at s if s <= t <= last[s].

  Fields that the losses of a run do not read are None. Three are of tokens as
  actions, for reinforcement learning:

    reward: float32 [B, T], of the step that ends at t; 0 elsewhere.
    discount: float32 [B, T] in [0, 1], of what comes after token t: 0 where
      the line is over, that of a step where one ends, 1 within a step.
    action_weight: float32 [B, T] >= 0; 0 where the reward is not known.

  And two are of a step's rival, a better one that stands beside it:

    rival: int32 [B, T], place where the rival of the step that ends at t ends.
    rival_weight: float32 [B, T] >= 0; 0 where there is no rival.
  """

  tokens: np.ndarray
  policy_weight: np.ndarray
  value_target: np.ndarray
  value_weight: np.ndarray
  prm_target: np.ndarray
  prm_weight: np.ndarray
  position: np.ndarray | None = None
  previous: np.ndarray | None = None
  last: np.ndarray | None = None
  reward: np.ndarray | None = None
  discount: np.ndarray | None = None
  action_weight: np.ndarray | None = None
  rival: np.ndarray | None = None
  rival_weight: np.ndarray | None = None
