"""The exceptions that a user, not a developer, is meant to read.

And the numbers that their messages offer instead of the wrong one.
"""

import os


class UserError(ValueError):
  """A mistake in a config, a command line or an input file.

  The message is one or more lines, each naming the value, the rule it breaks
  and the fix. Commands print it without a traceback.

  Attributes:
    exit_code: of the command.
  """

  exit_code = 2


class LostHostError(Exception):
  """Other processes of the program did not come, or are gone.

  Nobody made a mistake: the same command may succeed when it is run again, on
  all hosts. Commands print the message.

  Attributes:
    exit_code: of the command.
  """

  exit_code = os.EX_TEMPFAIL  # 75


def nearest_divisors(whole: int, near: int) -> str:
  """The divisors of `whole` next to `near`, e.g. "4 or 8" of 16 near 5."""
  divisors = [d for d in range(1, whole + 1) if whole % d == 0]
  below = [d for d in divisors if d < near][-1:]
  above = [d for d in divisors if d > near][:1]
  return " or ".join(map(str, below + above))


def nearest_multiples(of: int, near: int) -> str:
  """The multiples next to `near`, e.g. "96 or 104" of 8 near 100."""
  below = near // of * of
  return " or ".join(str(m) for m in (below, below + of) if m > 0)
