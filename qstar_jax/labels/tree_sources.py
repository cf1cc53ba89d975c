"""The sources that label the trees of a replay store, with no new play."""

import functools
from collections.abc import Callable, Iterator

from qstar_jax.config import SearchConfig
from qstar_jax.errors import UserError
from qstar_jax.labels.checked import checked
from qstar_jax.labels.tree_q import tree_q
from qstar_jax.records import Domain, LabelledLine, TreeRecord
from qstar_jax.text.vocabulary import Vocabulary

TREE_SOURCES = ("checked", "tree_q")


def tree_source(
  name: str, vocabulary: Vocabulary, domain: Domain, search: SearchConfig
) -> Callable[[TreeRecord], Iterator[LabelledLine]]:
  """What labels a tree.

  Args:
    name: one of `TREE_SOURCES`.
    vocabulary: that the trees' tokens are in.
    domain: of their problems.
    search: that made them.

  Raises:
    UserError: no such source, or it can say nothing of these trees.
  """
  if name not in TREE_SOURCES:
    raise UserError(
      f"--source {name!r}: must be one of {', '.join(TREE_SOURCES)}"
    )
  if name == "checked":
    return functools.partial(checked, vocabulary=vocabulary, domain=domain)
  if search.utility != "value":
    raise UserError(
      f"--source tree_q: search.utility of the run is {search.utility!r}, and "
      "Q is a probability of success only where it is 'value'; use checked"
    )
  return functools.partial(tree_q, vocabulary=vocabulary)
