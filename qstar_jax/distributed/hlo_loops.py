"""How often the instructions of a compiled program run.

XLA's own cost analysis counts the body of a loop once. Here it counts as often
as it runs at most: a loop ends when its counter reaches a constant, or before
that. A loop without such a bound counts once and is told of.
"""

import dataclasses
import re
from collections.abc import Iterator

from qstar_jax.distributed.hlo_program import Computation, Instruction, Program

# What runs a computation once.
_CALLS = frozenset(
  ("fusion", "call", "conditional", "async-start", "custom-call")
)
# What leaves a number as it is.
_SAME_VALUE = frozenset(("bitcast", "convert", "copy", "reshape"))
# (counter is the left operand, what the bound has to be raised by).
_COMPARISONS = {"LT": (True, 0), "LE": (True, 1), "GT": (False, 0)}
_COMPARISONS |= {"GE": (False, 1)}


@dataclasses.dataclass(frozen=True)
class Scope:
  """A computation where it is run.

  Attributes:
    computation: that is run.
    times: as often as the program runs it.
    is_fused: a fusion runs it, without storing what its instructions make.
    caller: the instruction that runs it; None for the program's entry.
    outer: where the caller stands.
  """

  computation: Computation
  times: int = 1
  is_fused: bool = False
  caller: Instruction | None = None
  outer: "Scope | None" = None


def scopes(program: Program) -> Iterator[tuple[Scope, Instruction]]:
  """Every instruction that is run, where it is run.

  All branches of a conditional are taken to be run. Computations that are
  applied to single numbers, such as a reduction's sum, are left out.
  """
  yield from _visit(program, Scope(program.computations[program.entry]))


def unbounded_loops(program: Program) -> list[str]:
  """Loops whose length is not known, which count once."""
  return [
    loop.op_name
    for scope, loop in scopes(program)
    if loop.opcode == "while" and trip_count(program, scope, loop) is None
  ]


def _visit(
  program: Program, scope: Scope
) -> Iterator[tuple[Scope, Instruction]]:
  for instruction in scope.computation.instructions.values():
    yield scope, instruction
    opcode = instruction.opcode
    if opcode == "while":
      times = trip_count(program, scope, instruction)
      times = scope.times * (1 if times is None else times)
    elif opcode in _CALLS:
      times = scope.times
    else:
      continue
    for callee in instruction.callees:
      inner = Scope(
        program.computations[callee],
        times,
        scope.is_fused or opcode == "fusion",
        instruction,
        scope,
      )
      yield from _visit(program, inner)


def trip_count(program: Program, scope: Scope, loop: Instruction) -> int | None:
  """How often a loop's body runs at most; None if nothing tells.

  Args:
    program: that the loop is of.
    scope: where the loop stands.
    loop: a `while`.
  """
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
  if known:
    return int(known.group(1))
  condition, body = (
    Scope(program.computations[_callee(loop, name)], 1, False, loop, scope)
    for name in ("condition", "body")
  )
  counts = [
    count
    for at, compare in _conjuncts(
      program, condition, condition.computation.root
    )
    if (count := _count(program, at, compare, body)) is not None
  ]
  return min(counts, default=None)


def _callee(loop: Instruction, name: str) -> str:
  return loop.attribute(name).removeprefix("%")


def _conjuncts(
  program: Program, scope: Scope, root: Instruction
) -> Iterator[tuple[Scope, Instruction]]:
  """The comparisons that must all hold for a truth value to be true."""
  scope, root = _source(program, scope, root)
  if root.opcode == "and":
    for index in range(2):
      operand = scope.computation.operand(root, index)
      yield from _conjuncts(program, scope, operand)
  elif root.opcode == "compare":
    yield scope, root


def _count(
  program: Program, scope: Scope, compare: Instruction, body: Scope
) -> int | None:
  """Trips that one comparison of a condition allows."""
  direction = compare.attribute("direction")
  if direction not in _COMPARISONS:
    return None
  is_left, raised = _COMPARISONS[direction]
  sides = [
    _source(program, scope, scope.computation.operand(compare, index))
    for index in range(2)
  ]
  (_, counter), (at, limit) = sides if is_left else sides[::-1]
  bound = _constant(program, at, limit)
  if bound is None or counter.opcode != "get-tuple-element":
    return None
  index = int(counter.attribute("index"))
  outer = body.outer
  start = _element(outer.computation.operand(body.caller, 0), outer, index)
  first = _constant(program, *start) if start else None
  step = _step(program, body, index)
  return max(0, -(-(bound + raised - (first or 0)) // step))


def _step(program: Program, body: Scope, index: int) -> int:
  """What a body adds to an element of its state; 1 if nothing tells."""
  new = _element(body.computation.root, body, index)
  if new is None:
    return 1
  scope, add = _source(program, *new)
  if add.opcode != "add":
    return 1
  steps = (
    _constant(program, scope, scope.computation.operand(add, i))
    for i in range(2)
  )
  return next((step for step in steps if step), 1)


def _element(
  made: Instruction, scope: Scope, index: int
) -> tuple[Scope, Instruction] | None:
  """What stands in a tuple, where the tuple is made in this computation."""
  while made.opcode in ("copy", "bitcast", "optimization-barrier"):
    made = scope.computation.operand(made, 0)
  if made.opcode != "tuple":
    return None
  return scope, scope.computation.operand(made, index)


def _constant(
  program: Program, scope: Scope, instruction: Instruction
) -> int | None:
  """The whole number that an instruction always makes, if it does."""
  _, source = _source(program, scope, instruction)
  if source.opcode != "constant":
    return None
  number = re.match(r"value=(-?\d+)\b(?!\.)", source.attributes)
  return int(number.group(1)) if number else None


def _source(
  program: Program, scope: Scope, instruction: Instruction
) -> tuple[Scope, Instruction]:
  """Where a value comes from, as far as it only is handed on."""
  while True:
    nearer = _one_nearer(program, scope, instruction)
    if nearer is None:
      return scope, instruction
    scope, instruction = nearer


def _one_nearer(
  program: Program, scope: Scope, instruction: Instruction
) -> tuple[Scope, Instruction] | None:
  computation, caller = scope.computation, scope.caller
  if instruction.opcode in _SAME_VALUE:
    return scope, computation.operand(instruction, 0)
  if instruction.opcode in ("fusion", "call"):
    inner = program.computations[instruction.callees[0]]
    is_fused = scope.is_fused or instruction.opcode == "fusion"
    return Scope(inner, scope.times, is_fused, instruction, scope), inner.root
  if instruction.opcode == "parameter":
    if caller is None or caller.opcode not in ("fusion", "call"):
      return None
    number = int(instruction.operands[0])
    return scope.outer, scope.outer.computation.operand(caller, number)
  if instruction.opcode == "get-tuple-element":
    return _out_of_tuple(program, scope, instruction)
  return None


def _out_of_tuple(
  program: Program, scope: Scope, instruction: Instruction
) -> tuple[Scope, Instruction] | None:
  """What a loop was begun with, of an element that its body leaves alone."""
  made = scope.computation.operand(instruction, 0)
  index = int(instruction.attribute("index"))
  if made.opcode == "while":
    loop, outside = made, scope
  elif made.opcode == "parameter" and scope.caller is not None:
    loop, outside = scope.caller, scope.outer
  else:
    return _element(made, scope, index)
  if loop.opcode != "while" or not _is_kept(program, loop, index):
    return None
  return _element(outside.computation.operand(loop, 0), outside, index)


def _is_kept(program: Program, loop: Instruction, index: int) -> bool:
  """Whether a loop hands an element on as it is."""
  body = program.computations[_callee(loop, "body")]
  if body.root.opcode != "tuple":
    return False
  last = body.operand(body.root, index)
  if last.opcode != "get-tuple-element":
    return False
  is_own = body.operand(last, 0).opcode == "parameter"
  return is_own and int(last.attribute("index")) == index
