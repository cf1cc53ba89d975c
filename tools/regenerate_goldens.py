"""Writes the golden files of the tests anew; look at the diff.

usage: python tools/regenerate_goldens.py
"""

import json
import pathlib
from typing import Any

SEARCH_TREE = (
  pathlib.Path(__file__).parents[1] / "tests/search/golden_tree.json"
)


def search_tree() -> dict[str, Any]:
  """A small play of the search in a made-up world, rounded to 5 decimals."""
  import jax
  import jax.numpy as jnp

  from qstar_jax.config import SearchConfig
  from qstar_jax.search import driver, testing, values
  from qstar_jax.search.tree import NONE

  max_steps = 4
  config = SearchConfig(num_candidates=4, num_simulations=8, leaves_per_round=2)

  @jax.jit
  def play(root_state_B):
    return driver.play(
      None,
      testing.new_state(root_state_B, config, max_steps),
      testing.make_hash_expand_fn(4, end_probability=0.25),
      config,
      max_steps,
    ).tree

  tree = play(jnp.asarray([5], jnp.uint32))
  q = values.q_values(tree)
  tree, q = jax.device_get((tree, q))
  nodes = [
    {
      "node": node,
      "parent": tree.parent[0, node].item(),
      "candidate": tree.candidate[0, node].item(),
      "visits": tree.visits[0, node].tolist(),
      "ended": tree.ended[0, node].astype(int).tolist(),
      "q": [round(float(value), 5) for value in q[0, node]],
    }
    for node in range(tree.parent.shape[1])
    if tree.depth[0, node] != NONE
  ]
  committed = [tree.root_parent[0].item(), tree.root_candidate[0].item()]
  return {"committed": committed, "nodes": nodes}


def write(golden: dict[str, Any]) -> str:
  """JSON with one node a line."""
  nodes = ",\n  ".join(json.dumps(node) for node in golden["nodes"])
  committed = json.dumps(golden["committed"])
  return f'{{"committed": {committed}, "nodes": [\n  {nodes}\n]}}\n'


if __name__ == "__main__":
  SEARCH_TREE.write_text(write(search_tree()), encoding="utf-8")
