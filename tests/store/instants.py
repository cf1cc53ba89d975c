"""What a folder holds, at every instant at which a program could be killed."""

import os
import pathlib
import shutil

import pytest

from qstar_jax.store import files


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  """Its files by path, without what a killed program leaves for the next."""
  folder = pathlib.Path(folder)
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob("*")
    if path.is_file() and not files.is_own_litter(path.name)
  }


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
