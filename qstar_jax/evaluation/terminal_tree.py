"""A search and its answer as a person reads them in a terminal.

Model text is shown, never interpreted: neither as markup of `rich` nor as
control characters of the terminal, which appear as escapes (`\\x1b`).
"""

import heapq
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from qstar_jax.errors import UserError
from qstar_jax.evaluation.tree_reading import Edge, TreeReading
from qstar_jax.records import Domain, Outcome, Problem, TreeRecord, Verdict
from qstar_jax.text.vocabulary import Vocabulary

_LEGEND = (
  "* committed, N visits, Q search value, P prior, V value, R step score"
)
_FATE_STYLES = {
  "correct": "green",
  "unjudged": "dim",
  "unexpanded": "dim",
  "expanded": "dim",
}


def tree_view(
  record: TreeRecord, vocabulary: Vocabulary, *, max_nodes: int = 40
) -> Tree:
  """A search tree, a line for each step that was considered.

  A line has the step's text, N (visits), Q, P (prior over the node's
  candidates), V and R (the PRM score), all but N in [0, 1], and why the branch
  ends there. The committed line is marked `*`. Candidates stand by visits, then
  Q; the least visited give way to `… 5 more`.

  Args:
    record: of the tree.
    vocabulary: that its tokens are in.
    max_nodes: lines of the view at most, >= 2.

  Returns:
    A renderable.

  Raises:
    UserError: max_nodes is less than 2.
  """
  if max_nodes < 2:
    raise UserError(
      f"max_nodes is {max_nodes}: a tree needs at least 2 lines, its problem "
      "and the number of steps left out"
    )
  reading = TreeReading(record, vocabulary)
  shown = _choose(reading, max_nodes)
  label = Text.assemble(
    (printable(record.prompt.removesuffix("\n")), "bold"),
    (f"  V={record.node_value[0]:.2f}", "dim"),
  )
  root = Tree(label)
  _grow(root, 0, reading, shown)
  return root


def _label(reading: TreeReading, edge: Edge) -> Text:
  """A candidate's line."""
  record = reading.record
  mark, style = ("* ", "bold green") if reading.is_committed(edge) else ("", "")
  numbers = (
    f"  N={record.visits[edge]} Q={record.q[edge]:.2f} "
    f"P={reading.prior[edge]:.2f} V={record.value[edge]:.2f} "
    f"R={record.prm[edge]:.2f}  "
  )
  fate = reading.fate(edge)
  return Text.assemble(
    (mark + printable(reading.text(edge)), style),
    (numbers, "dim"),
    (fate.words, _FATE_STYLES.get(fate.kind, "red")),
  )


def _grow(
  branch: Tree, node: int, reading: TreeReading, shown: set[Edge]
) -> None:
  candidates = reading.candidates(node)
  for edge in candidates:
    if edge in shown:
      below = branch.add(_label(reading, edge))
      if edge in reading.child:
        _grow(below, reading.child[edge], reading, shown)
  if num_hidden := sum(edge not in shown for edge in candidates):
    branch.add(Text(f"… {num_hidden} more", style="dim"))


def _choose(reading: TreeReading, max_nodes: int) -> set[Edge]:
  """The candidates to show: the committed line, then by visits, then Q.

  A node whose candidates are not all shown takes a line to say so.
  """
  shown: set[Edge] = set()
  full: set[int] = set()  # Nodes that show no more candidates.
  num_hidden: dict[int, int] = {}
  frontier: list[tuple] = []

  def reach(node: int) -> None:
    candidates = reading.candidates(node)
    num_hidden[node] = len(candidates)
    for rank, edge in enumerate(candidates):
      visits, q = reading.record.visits[edge], reading.record.q[edge]
      is_aside = not reading.is_committed(edge)
      heapq.heappush(frontier, (is_aside, -visits, -q, node, rank, edge))

  reach(0)
  num_lines = 2
  while frontier:
    *_, node, _, edge = heapq.heappop(frontier)
    is_last, is_expanded = num_hidden[node] == 1, edge in reading.child
    cost = 1 - is_last + is_expanded
    if node in full or num_lines + cost > max_nodes:
      full.add(node)
      continue
    shown.add(edge)
    num_lines += cost
    num_hidden[node] -= 1
    if is_expanded:
      reach(reading.child[edge])
  return shown


def print_tree(
  record: TreeRecord,
  vocabulary: Vocabulary,
  *,
  max_nodes: int = 40,
  console: Console | None = None,
) -> None:
  """Prints a legend and `tree_view`, on standard output by default."""
  view = tree_view(record, vocabulary, max_nodes=max_nodes)
  console = console or Console()
  console.print(Text(_LEGEND, style="dim"))
  console.print(view)


def solution_text(
  domain: Domain, problem: Problem, steps: Sequence[str], verdict: Verdict
) -> str:
  """A line as plain text: its steps, its answer and the verdict.

      3 + 5 = 8 (left: 8 9)
      8 * 9 = 72 (left: 72)
      Answer: (3 + 5) * 9
      solved

  Args:
    domain: writes the answer.
    problem: that was to be solved.
    steps: texts of the line.
    verdict: of the line; one that is not correct reads `not solved: reason`.

  Returns:
    Lines without a newline at the end.
  """
  answer = printable(domain.answer(problem, tuple(steps))) or "none"
  is_solved = verdict.outcome == Outcome.CORRECT
  end = "solved" if is_solved else f"not solved: {printable(verdict.reason)}"
  return "\n".join([*map(printable, steps), f"Answer: {answer}", end])


def printable(text: str) -> str:
  """`text` with escapes for what a terminal may obey or cannot show."""
  return "".join(
    char if char.isprintable() else repr(char)[1:-1] for char in text
  )
