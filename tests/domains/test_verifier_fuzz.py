"""The verifiers against independent ones, on generated and mutated lines.

The checkers here share nothing with the package: rationals are reduced pairs
of integers, expressions are read by shunting-yard, and arithmetic is checked on
flat token lists instead of trees.
"""

import itertools
import math
import random
import time
from collections import Counter

import pytest

from qstar_jax.domains.arithmetic import Arithmetic
from qstar_jax.domains.countdown import Countdown
from qstar_jax.records import Outcome

DIGITS = "0123456789"
MAX_SECONDS = 0.01


class Refused(Exception):
  """The reference refuses a line."""


def need(condition):
  if not condition:
    raise Refused


# Rationals: (numerator, denominator), reduced, denominator > 0.


def ratio(numerator, denominator=1):
  need(denominator != 0)
  divisor = math.gcd(numerator, denominator)
  divisor = -divisor if denominator < 0 else divisor
  return numerator // divisor, denominator // divisor


def combine(a, op, b):
  (p, q), (r, s) = a, b
  if op == "+":
    return ratio(p * s + r * q, q * s)
  if op == "-":
    return ratio(p * s - r * q, q * s)
  if op == "*":
    return ratio(p * r, q * s)
  return ratio(p * s, q * r)


def show(value):
  return str(value[0]) if value[1] == 1 else f"{value[0]}/{value[1]}"


def natural(text):
  need(0 < len(text) <= 40 and all(c in DIGITS for c in text))
  need(text == "0" or text[0] != "0")
  return int(text)


def rational(text):
  sign, text = (-1, text[1:]) if text.startswith("-") else (1, text)
  top, slash, bottom = text.partition("/")
  p, q = natural(top), natural(bottom) if slash else 1
  need(q > 1 or not slash)
  need(math.gcd(p, q) == 1 and not (p == 0 and sign == -1))
  return sign * p, q


# Expressions.


def tokens_of(text):
  tokens, i, operand_due = [], 0, True
  while i < len(text):
    c = text[i]
    j = i + 1
    if c == " ":
      i = j
      continue
    if c in DIGITS or (c == "-" and operand_due and text[j : j + 1].isdigit()):
      while j < len(text) and text[j] in DIGITS:
        j += 1
      word = text[i:j]
      value = -natural(word[1:]) if c == "-" else natural(word)
      need(word != "-0" and operand_due)
      tokens.append((value, 1))
      operand_due = False
    else:
      need(c in "+-*/()")
      need((c == "(") == operand_due)
      tokens.append(c)
      operand_due = c != ")"
    i = j
  need(not operand_due)
  return tokens


def calculate(text):
  """Value, integers and operations of an expression, by shunting-yard."""
  output, operators, operations, numbers = [], [], [], []

  def reduce_top():
    op, b, a = operators.pop(), output.pop(), output.pop()
    operations.append((a, op, b))
    output.append(combine(a, op, b))

  rank = {"+": 1, "-": 1, "*": 2, "/": 2, "(": 0}
  for token in tokens_of(text):
    if isinstance(token, tuple):
      output.append(token)
      numbers.append(token)
    elif token == "(":
      operators.append(token)
      need(operators.count("(") <= 50)
    elif token == ")":
      while operators and operators[-1] != "(":
        reduce_top()
      need(operators)
      operators.pop()
    else:
      while operators and rank[operators[-1]] >= rank[token]:
        reduce_top()
      operators.append(token)
  while operators:
    need(operators[-1] != "(")
    reduce_top()
  need(len(numbers) <= 100)
  return output[0], numbers, operations


def either_way(operation):
  a, op, b = operation
  return (min(a, b), op, max(a, b)) if op in "+*" else operation


def play(hand, operations):
  """Numbers left after operations; Refused if one cannot be made."""
  left = list(hand)
  for a, op, b in operations:
    for number in (a, b):
      need(number in left)
      left.remove(number)
    left.append(combine(a, op, b))
  return left


def answer_goes_on(hand, made, operations):
  """Whether some order of `operations` starts with `made` and can be played."""
  for order in itertools.permutations(operations):
    if [*map(either_way, order[: len(made)])] == [*map(either_way, made)]:
      try:
        play(hand, order)
      except Refused:
        continue
      return True
  return False


def reference_accepts(numbers, target, steps):
  """Whether the line is correct."""
  hand = [(n, 1) for n in numbers]
  goal = (target, 1)
  made, left, answered = [], hand, False
  try:
    need(sum(map(len, steps)) <= 1000)
    for step in steps:
      need(not answered)
      if step[:8] == "Answer: ":
        need(step.count("=") == 1)
        text, right_side = step[8:].split("=")
        need(rational(right_side.strip(" ")) == goal)
        value, used, operations = calculate(text)
        need(sorted(used) == sorted(hand) and value == goal)
        if len(left) == 1:
          need(left == [goal])
        else:
          need(answer_goes_on(hand, made, operations))
        left, answered = [goal], True
        continue
      need(len(left) > 1)
      need(step.count(" (left: ") == 1 and step[-1] == ")")
      equation, listed = step[:-1].split(" (left: ")
      words = equation.split(" ")
      need(len(words) == 5 and words[3] == "=")
      need(len(words[1]) == 1 and words[1] in "+-*/")
      operation = rational(words[0]), words[1], rational(words[2])
      left = play(left, [operation])
      made.append(operation)
      need(rational(words[4]) == left[-1])
      need(sorted(map(rational, listed.split(" "))) == sorted(left))
    return left == [goal]
  except Refused:
    return False


# Lines to check.


def random_line(rng):
  """Numbers, target and a line of random legal play, perhaps with an answer."""
  numbers = [rng.randint(1, 13) for _ in range(rng.choice((2, 3, 3, 4, 4, 5)))]
  left = [((n, 1), str(n)) for n in numbers]
  steps = []
  while len(left) > 1:
    rng.shuffle(left)
    (a, text_a), (b, text_b) = left.pop(), left.pop()
    op = rng.choice("+-*/" if b[0] else "+-*")
    result = combine(a, op, b)
    left.append((result, f"({text_a}{rng.choice((op, f' {op} '))}{text_b})"))
    shown = [show(value) for value, _ in left]
    rng.shuffle(shown)
    steps.append(
      f"{show(a)} {op} {show(b)} = {show(result)} (left: {' '.join(shown)})"
    )
  ((p, q), text) = left[0]
  target = p if q == 1 and 0 < p < 10**6 else rng.randint(1, 30)
  if rng.random() < 0.1:
    target = rng.randint(1, 30)
  if rng.random() < 0.4:
    text = text[1:-1] if rng.random() < 0.5 else text
    kept = len(steps) if rng.random() < 0.4 else rng.randint(0, len(steps))
    steps[kept:] = [f"Answer: {text} = {target}"]
  return numbers, target, steps


def mutate(rng, steps):
  """One small change somewhere in the line."""
  index = rng.randrange(len(steps))
  step = steps[index]
  at = rng.randrange(len(step) + 1)
  kind = rng.randrange(8)
  if kind == 0:
    new = rng.choice("0123456789+-*/()=: .!x\u0663\u00b2\n")
    steps[index] = step[:at] + new + step[at + 1 :]
  elif kind == 1:
    steps[index] = step[:at] + step[at + 1 :]
  elif kind == 2:
    steps[index] = step[:at] + rng.choice("0123456789-+*/() ") + step[at:]
  elif kind == 3:
    del steps[index]
  elif kind == 4:
    steps.insert(rng.randrange(len(steps) + 1), step)
  elif kind == 5:
    words = step.split(" ")
    numeric = [i for i, w in enumerate(words) if w.strip("()-").isdecimal()]
    if numeric:
      i = rng.choice(numeric)
      old = words[i].strip("()-")
      new = str(max(0, int(old) + rng.choice((-1, 1))))
      words[i] = words[i].replace(old, new)
      steps[index] = " ".join(words)
  elif kind == 6:
    words = step.split(" ")
    i, j = rng.randrange(len(words)), rng.randrange(len(words))
    words[i], words[j] = words[j], words[i]
    steps[index] = " ".join(words)
  else:
    i, j = rng.randrange(len(steps)), rng.randrange(len(steps))
    steps[i], steps[j] = steps[j], steps[i]


def timed_verdict(domain, problem, line):
  """The verdict; fails if it takes over MAX_SECONDS three times."""
  for _ in range(3):
    start = time.perf_counter()
    verdict = domain.verify(problem, line)
    if time.perf_counter() - start <= MAX_SECONDS:
      return verdict
  pytest.fail(f"verifying {line} takes over {MAX_SECONDS} s")


def test_number_games_agree_with_the_reference():
  rng = random.Random(0)
  domain = Countdown()
  counts = Counter()
  for _ in range(100_000):
    numbers, target, steps = random_line(rng)
    num_mutations = rng.choice((0, 1, 1, 2))
    for _ in range(num_mutations):
      if steps:
        mutate(rng, steps)
    line = tuple(steps)
    problem = domain.parse(f"{' '.join(map(str, numbers))} -> {target}")
    accepted = reference_accepts(numbers, target, steps)
    verdict = timed_verdict(domain, problem, line)
    assert (verdict.outcome == Outcome.CORRECT) == accepted, (
      f"{problem.prompt!r} {line}: {verdict}, reference says {accepted}"
    )
    has_answer = any(step.startswith("Answer: ") for step in steps)
    counts[accepted, has_answer, num_mutations > 0] += 1
    counts[verdict.outcome] += 1
  # Every kind of line is there in numbers.
  assert counts[True, False, False] > 5000
  assert counts[True, True, False] > 1000
  assert counts[True, False, True] > 200
  assert counts[True, True, True] > 200
  assert counts[Outcome.WRONG] > 20_000
  assert counts[Outcome.UNPARSEABLE] > 10_000


# Arithmetic, on token lists.


def reduce_brackets(tokens):
  """Drops brackets around single numbers."""
  for i in range(len(tokens) - 2):
    if tokens[i] == "(" and tokens[i + 2] == ")":
      return reduce_brackets([*tokens[:i], tokens[i + 1], *tokens[i + 3 :]])
  return tokens


def joined(tokens):
  return " ".join(map(str, tokens)).replace("( ", "(").replace(" )", ")")


def rewritings(tokens):
  """(step text, tokens left) for every operation that comes first somewhere."""
  rank = {"+": 1, "-": 1, "*": 2}
  for i in range(1, len(tokens) - 1):
    a, op, b = tokens[i - 1 : i + 2]
    if op not in rank or not (isinstance(a, int) and isinstance(b, int)):
      continue
    before = tokens[i - 2] if i >= 2 else "("
    after = tokens[i + 2] if i + 2 < len(tokens) else ")"
    if rank.get(before, 0) < rank[op] >= rank.get(after, 0):
      value = combine((a, 1), op, (b, 1))[0]
      left = reduce_brackets([*tokens[: i - 1], value, *tokens[i + 2 :]])
      yield f"{a} {op} {b} = {value} (left: {joined(left)})", left


def random_expression(rng, num_operations):
  """Tokens of a random expression, bracketed only where it groups."""
  if num_operations == 0:
    return [rng.randint(1, 20)], 3
  num_left = rng.randrange(num_operations)
  op = rng.choice("+-*")
  own = 2 if op == "*" else 1
  left, left_rank = random_expression(rng, num_left)
  right, right_rank = random_expression(rng, num_operations - 1 - num_left)
  if left_rank < own:
    left = ["(", *left, ")"]
  if right_rank <= own:
    right = ["(", *right, ")"]
  return [*left, op, *right], own


def test_arithmetic_agrees_with_the_reference():
  rng = random.Random(0)
  domain = Arithmetic()
  counts = Counter()
  for _ in range(15_000):
    tokens, _ = random_expression(rng, rng.randint(1, 5))
    problem = domain.parse(joined(tokens))
    assert problem.prompt == f"{joined(tokens)} -> ?\n"
    steps, left = [], tokens
    while len(left) > 1:
      step, left = rng.choice(list(rewritings(left)))
      steps.append(step)
    for _ in range(rng.choice((0, 1, 1, 2))):
      if steps:
        mutate(rng, steps)
    left = tokens
    for step in steps:
      left = dict(rewritings(left)).get(step) if left else None
    accepted = bool(left) and len(left) == 1
    verdict = timed_verdict(domain, problem, tuple(steps))
    assert (verdict.outcome == Outcome.CORRECT) == accepted, (
      f"{problem.prompt!r} {steps}: {verdict}, reference says {accepted}"
    )
    counts[accepted] += 1
  assert counts[True] > 3000 and counts[False] > 8000
