"""Copies of a folder at every instant at which a program could be killed."""

import os
import pathlib
import shutil

import pytest


class Instants:
  """Copies the folder before and after every rename, while patched.

  Attributes:
    copies: of the folder, in order.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    copies: pathlib.Path,
    patch: pytest.MonkeyPatch,
  ):
    """Patches `os.replace`; the copies go to another folder."""
    self._folder, self._copies_dir = folder, copies
    self.copies: list[pathlib.Path] = []
    replace = os.replace

    def replace_between_copies(source, target):
      self.copy()
      replace(source, target)
      self.copy()

    patch.setattr(os, "replace", replace_between_copies)

  def copy(self) -> None:
    """Makes one more copy."""
    self.copies.append(self._copies_dir / f"copy_{len(self.copies)}")
    shutil.copytree(self._folder, self.copies[-1])
