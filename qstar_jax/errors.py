"""The one exception that a user, not a developer, is meant to read."""


class UserError(ValueError):
  """A mistake in a config, a command line or an input file.

  The message is one or more lines, each naming the value, the rule it breaks
  and the fix. Commands print it without a traceback and exit with code 2.
  """
