"""Writes the golden files of the tests anew; look at the diff.

usage: python tools/regenerate_goldens.py
"""

import contextlib
import io
import json
import pathlib
from collections.abc import Iterator
from typing import Any

_TESTS = pathlib.Path(__file__).parents[1] / "tests"
SEARCH_TREE = _TESTS / "search/golden_tree.json"
LAUNCHES = _TESTS / "tools/goldens"

_PLACE = ("--project=project", "--zone=us-west4-a")
_ACCOUNT = "--service-account=trainer@project.iam.gserviceaccount.com"
_FLAGS_OF_TARGET = {
  "queued-resources": (*_PLACE, _ACCOUNT),
  "gke": ("--service-account=trainer",),
  "xpk": (*_PLACE, "--cluster=cluster"),
  "skypilot": ("--zone=us-west4-a",),
}


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


def launches() -> Iterator[tuple[str, list[str]]]:
  """Name of a golden file and flags of tools/launch_tpu.py: targets x modes."""
  from tools import launch_tpu
  from tools.launch import plan

  for target in launch_tpu.TARGETS:
    for mode in plan.MODES:
      flags = [
        *("qwen3_0p6b_v5e16", f"--target={target}", "--topology=v5e:4x4"),
        *("--run-dir=gs://bucket/runs/first", f"--mode={mode}", "--spot"),
        *("--image=us-docker.pkg.dev/project/images/qstar:1", "--dry-run"),
        *_FLAGS_OF_TARGET[target],
      ]
      if mode == "files":
        flags += ["--actors=2", "--evaluator-topology=v5e:2x4"]
      if mode == "split":
        flags += ["--mesh.actor-devices=8", "--mesh.fsdp=8"]
      yield f"launch_{target}_{mode}.txt", flags


def render_launch(flags: list[str]) -> str:
  """What tools/launch_tpu.py prints."""
  from tools import launch_tpu

  printed = io.StringIO()
  with contextlib.redirect_stdout(printed):
    assert launch_tpu.main(flags) == 0
  return printed.getvalue()


if __name__ == "__main__":
  SEARCH_TREE.write_text(write(search_tree()), encoding="utf-8")
  LAUNCHES.mkdir(exist_ok=True)
  for file_name, launch_flags in launches():
    text = render_launch(launch_flags)
    (LAUNCHES / file_name).write_text(text, encoding="utf-8")
