"""Searchers compared: same problems, same seeds, same budgets of tokens."""

import collections
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qstar_jax.config import SearchConfig
from qstar_jax.evaluation import metrics
from qstar_jax.evaluation.evaluate import Evaluation, evaluate
from qstar_jax.evaluation.opened import Opened
from qstar_jax.records import Domain, Outcome, Problem
from qstar_jax.search import searchers
from qstar_jax.search.tree import NONE, UNLIMITED, SearchTree
from qstar_jax.selfplay import plays
from qstar_jax.selfplay.player import Played, Usage

# Of pass@k and maj@k.
_KS = (1, 4, 16)
# What every table has: the policy alone.
BASELINE = "greedy"


@dataclasses.dataclass
class _Tally:
  """What is counted over the batches of one row."""

  domain: Domain
  leaves_per_round: int
  lines: list[list[plays.FinishedLine]] = dataclasses.field(
    default_factory=list
  )
  kv_sharing: list[float] = dataclasses.field(default_factory=list)
  rounds_at_work: int = 0
  tokens_sampled: int = 0

  def add(self, played: Played) -> None:
    tree = played.tree
    self.lines.append(plays.finished_lines(self.domain, played))
    self.rounds_at_work += int(tree.num_nodes) // self.leaves_per_round
    sampled = int(tree.length.sum())
    prompt = int(tree.tokens_used) - sampled - _rerun_tokens(tree)
    self.kv_sharing.append(metrics.kv_sharing(tree, prompt))
    self.tokens_sampled += sampled


def _rerun_tokens(tree: SearchTree) -> int:
  """Tokens of the chosen steps that were run again into their blocks."""
  if tree.count.shape[1] == 1:
    return 0
  nodes = np.flatnonzero(tree.parent != NONE)
  return int(tree.length[tree.parent[nodes], tree.candidate[nodes]].sum())


def _lines_summary(
  lines: Sequence[Sequence[plays.FinishedLine]], seed: int
) -> dict[str, float]:
  """pass@k and maj@k over plays, every sample a line."""
  summary = {}
  for k in _KS:
    passed, voted = [], []
    for of_play in lines:
      counts = [line.count for line in of_play]
      scores = np.repeat([line.score for line in of_play], counts)
      answers = np.repeat([line.answer for line in of_play], counts)
      num_correct = int((scores == 1).sum())
      passed.append(metrics.pass_at_k(len(scores), num_correct, k))
      voted.append(metrics.maj_at_k(answers.tolist(), scores, k, seed))
    summary[f"pass@{k}"] = float(np.mean(passed))
    summary[f"maj@{k}"] = float(np.mean(voted))
  return summary


def summarize(
  opened: Opened,
  searcher: str,
  evaluation: Evaluation,
  *,
  terminal_value: str,
  seed: int,
) -> dict[str, Any]:
  """What every evaluation reports, JSON-able.

  `failures` counts the committed lines that are not correct by outcome.
  """
  outcomes = collections.Counter(
    play.verdict.outcome for play in evaluation.results
  )
  return {
    "searcher": searcher,
    "problems": evaluation.problems,
    "top1": evaluation.top1,
    "any": evaluation.any,
    "mean": evaluation.mean,
    "ci95": list(evaluation.ci95),
    "tokens_per_problem": evaluation.tokens_per_problem,
    "terminal_value": terminal_value,
    "seed": seed,
    "checkpoint_step": opened.loaded.step,
    "failures": {
      outcome.name.lower(): outcomes[outcome]
      for outcome in Outcome
      if outcome != Outcome.CORRECT
    },
  }


def run(
  opened: Opened,
  *,
  problems: Sequence[Problem],
  searches: Mapping[str, SearchConfig],
  budgets: Sequence[int],
  terminal_value: str,
  seed: int,
  num_seeds: int = 1,
  on_row: Callable[[dict[str, Any], list[dict[str, Any]]], None],
  on_progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> None:
  """Plays the problems with every searcher at every budget.

  Args:
    opened: the checkpoint.
    problems: to play.
    searches: by name, as they were asked for.
    budgets: tokens per problem; empty for none, as the config has it.
    terminal_value: `value`, or `outcome` to let the searches ask the verifier.
    seed: of the play.
    num_seeds: plays of each problem.
    on_row: called with each summary and the records of its plays.
    on_progress: called with searcher, plays done and all; may raise to stop.

  Raises:
    UserError: unknown searcher, or a budget too small for a line.
  """
  num_trees = min(
    opened.config.evaluation.batch_size, num_seeds * len(problems)
  )
  for name, asked in searches.items():
    search = searchers.for_evaluation(
      asked, asked.searcher, terminal_value=terminal_value
    )
    if budgets:
      search = searchers.sized_for_budget(
        search, max(budgets), opened.config.text
      )
    player = opened.player(search, num_trees)
    # No row's time is to hold a compilation.
    player.compile(opened.loaded.params)
    for budget in budgets or [UNLIMITED]:
      tally = _Tally(opened.domain, search.leaves_per_round)
      start = time.monotonic()
      evaluation = evaluate(
        player,
        opened.loaded.params,
        opened.domain,
        problems,
        seed=seed,
        num_seeds=num_seeds,
        token_budget=budget,
        on_play=tally.add,
        on_progress=lambda done, name=name: on_progress(
          name, done, num_seeds * len(problems)
        ),
      )
      seconds = time.monotonic() - start
      row = summarize(
        opened,
        name,
        evaluation,
        terminal_value=search.terminal_value,
        seed=seed,
      )
      row |= {"budget": budget if budgets else None, "num_seeds": num_seeds}
      row |= _lines_summary(tally.lines, seed)
      row |= _costs(evaluation, tally, player.usage, seconds)
      on_row(row, _play_records(row, problems, evaluation, tally))


def _costs(
  evaluation: Evaluation, tally: _Tally, usage: Usage, seconds: float
) -> dict[str, float]:
  """What a row's plays took, and how well lanes, slots and cache were used."""
  tokens = sum(play.tokens for play in evaluation.results)
  expansions = [play.expansions for play in evaluation.results]
  return {
    "expansions_per_problem": float(np.mean(expansions)),
    "seconds": seconds,
    "tokens_per_second": tokens / seconds,
    "lane_utilisation": tally.rounds_at_work / usage.lane_rounds,
    "decode_utilisation": tally.tokens_sampled / usage.decode_slots,
    "kv_sharing": float(np.mean(tally.kv_sharing)),
  }


def _play_records(row, problems, evaluation, tally) -> list[dict[str, Any]]:
  """One JSON-able record for each play of a row."""
  records = []
  for i, play in enumerate(evaluation.results):
    lines = tally.lines[i]
    records.append(
      {
        "searcher": row["searcher"],
        "budget": row["budget"],
        "problem": problems[i % len(problems)].key,
        "seed": row["seed"] + i,
        "score": play.verdict.score,
        "outcome": play.verdict.outcome.name.lower(),
        "any": play.any_score,
        "mean": play.mean_score,
        "tokens": play.tokens,
        "expansions": play.expansions,
        "lines": sum(line.count for line in lines),
        "lines_correct": sum(line.count for line in lines if line.score == 1),
        "kv_sharing": tally.kv_sharing[i],
        "steps": list(play.steps),
      }
    )
  return records
