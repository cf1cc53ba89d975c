"""Domains by name and options, built in and the user's own."""

import re
import textwrap

import pytest

from qstar_jax.domains import DOMAINS, make_domain
from qstar_jax.domains.countdown import Countdown
from qstar_jax.errors import UserError


def refused(name, options, *, match):
  with pytest.raises(UserError, match=re.escape(match)) as info:
    make_domain(name, options)
  assert "\n" not in str(info.value)


def test_options_set_fields():
  domain = make_domain("countdown", {"max_number": 25, "integers_only": False})
  assert domain == Countdown(max_number=25, integers_only=False)
  assert make_domain("countdown") == Countdown()


def test_unknown_name_lists_the_known_ones():
  refused("countdwon", {}, match=", ".join(DOMAINS))


def test_unknown_option_suggests_and_lists():
  refused("countdown", {"max_numbers": 3}, match="did you mean max_number?")
  refused(
    "game24", {"zzz": 3}, match="known ones are max_target, max_number, i"
  )


@pytest.mark.parametrize(
  ("name", "options", "match"),
  [
    ("countdown", {"max_number": "ten"}, "must be int, not str"),
    ("countdown", {"max_number": True}, "must be int, not bool"),
    ("countdown", {"max_number": 2.0}, "must be int, not float"),
    ("countdown", {"integers_only": 1}, "must be bool, not int"),
    ("countdown", {"min_number": 0}, "need 1 <= min_number"),
    ("countdown", {"min_number": 11}, "min_number 11 and max_number 10"),
    ("countdown", {"max_number": 10_000}, "<= 9999"),
    ("countdown", {"max_target": 0}, "max_target is 0: need 1 to"),
    ("game24", {"max_target": 23}, "max_target is 23: need 24 to"),
    ("arithmetic", {"max_number": 0}, "max_number is 0: need 1 to"),
    ("arithmetic", {"max_value": 8}, "need max_number (9) to"),
  ],
)
def test_bad_values_are_refused(name, options, match):
  refused(name, options, match=match)


@pytest.fixture
def own_module(tmp_path, monkeypatch):
  """A module of the user's, importable as `own_rules`."""
  (tmp_path / "own_rules.py").write_text(
    textwrap.dedent("""
      import dataclasses
      from typing import ClassVar
      from qstar_jax.domains.countdown import Countdown

      @dataclasses.dataclass(frozen=True)
      class Small(Countdown):
        name: ClassVar[str] = "small"
        max_number: int = 3
        share: float = 0.5

      @dataclasses.dataclass(frozen=True)
      class Empty:
        name: ClassVar[str] = "empty"

      class Plain:
        pass
    """)
  )
  monkeypatch.syspath_prepend(tmp_path)


def test_domain_of_the_users_own(own_module):
  domain = make_domain("own_rules:Small", {"share": 1, "max_target": 9})
  assert (domain.name, domain.max_number, domain.share) == ("small", 3, 1)
  assert domain.parse("1 2 -> 3").domain == "small"


def test_bad_domain_of_the_users_own(own_module):
  refused("own_rules:Missing", {}, match="no dataclass 'Missing'")
  refused("own_rules:Plain", {}, match="no dataclass 'Plain'")
  refused("own_rules:Empty", {}, match="needs version, sample, parse, split")
  refused("no_such_module:X", {}, match="cannot import 'no_such_module'")
  refused(":X", {}, match="cannot import ''")
  refused("own_rules:Small", {"share": "x"}, match="must be float, not str")
