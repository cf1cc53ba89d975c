"""Problems that tests are made of, and training data without them."""

from collections.abc import Iterable, Iterator

from etils import epath

from qstar_jax.data import competition_math, prm800k, prmbench, reading
from qstar_jax.errors import UserError
from qstar_jax.records import LabelledLine

# Below the data folder; see docs/data.md.
_TEST_FILES = (
  (competition_math.read, "math", "math500*"),
  (prm800k.read, "prm800k", "phase?_test*"),
  (prmbench.read, "prmbench", "prm*.jsonl*"),
)


def held_out_keys(data_dir: epath.PathLike) -> frozenset[str]:
  """Keys of the problems that are tested on.

  Those of MATH-500, of the test files of PRM800K (which are among them) and of
  all of PRMBench: a part of it is made of training problems of PRM800K, which
  are held out as well.

  Args:
    data_dir: holds `math/math500*`, `prm800k/phase?_test*` and
      `prmbench/prm*.jsonl*`. Records that cannot be used are not tested on
      either, and skipped.

  Raises:
    UserError: some of them are missing.
  """
  report = reading.Report(on_error="skip")
  keys = set()
  for read, folder, pattern in _TEST_FILES:
    paths = sorted((epath.Path(data_dir) / folder).glob(pattern))
    if not paths:
      raise UserError(
        f"{data_dir} has no {folder}/{pattern}: without it test problems could"
        " not be kept out of training; docs/data.md says where it is from"
      )
    for path in paths:
      keys |= {record.problem_key for record in read(path, report)}
  return frozenset(keys)


def without(
  lines: Iterable[LabelledLine], keys: frozenset[str]
) -> Iterator[LabelledLine]:
  """The lines whose problems are not among `keys`."""
  return (line for line in lines if line.problem_key not in keys)
