"""Datasets of labelled lines, of this project and of others, by one name."""

from collections.abc import Callable, Iterator, Mapping

from etils import epath

from qstar_jax.data import math_aps, math_shepherd, prm800k, prmbench
from qstar_jax.data.reading import Report
from qstar_jax.domains.readers import find_file
from qstar_jax.errors import UserError
from qstar_jax.labels.codec import LINES
from qstar_jax.records import LabelledLine
from qstar_jax.store.reader import StoreReader

# Readers of outside files, by the FORMAT of `FORMAT:FILE`.
READERS: Mapping[
  str, Callable[[epath.Path, Report], Iterator[LabelledLine]]
] = {
  "prm800k": prm800k.read,
  "math_shepherd": math_shepherd.read,
  "math_aps": math_aps.read,
  "prmbench": prmbench.read,
}


def is_outside(source: str) -> bool:
  """Whether a source is an outside file, `FORMAT:FILE`, and no directory."""
  name, colon, file = source.partition(":")
  # A bucket's gs:// is no format.
  return bool(colon) and "/" not in name and not file.startswith("//")


def read_outside(source: str, report: Report) -> Iterator[LabelledLine]:
  """The lines of an outside file, one at a time.

  Args:
    source: `FORMAT:FILE`, of a key of READERS; a relative FILE that is not here
      is looked for in the folder QSTAR_DATA_DIR.
    report: counts, and says what happens to bad records.

  Raises:
    UserError: unknown format, no such file, or a bad record.
  """
  name, _, file = source.partition(":")
  if name not in READERS:
    raise UserError(
      f"{source}: there is no format {name!r}; known ones are "
      f"{', '.join(READERS)}"
    )
  return READERS[name](find_file(file), report)


def read(source: str, report: Report) -> Iterator[LabelledLine]:
  """The lines of a dataset of either kind, in its order.

  Args:
    source: as of `DataConfig.labels`.
    report: as of `read_outside`.

  Raises:
    UserError: there is no such dataset, or it is damaged.
  """
  if is_outside(source):
    return read_outside(source, report)
  return iter(StoreReader(source, LINES))
