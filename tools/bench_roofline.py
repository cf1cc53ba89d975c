"""How near do the learner and decoding come to plain matrix products?

usage: python tools/bench_roofline.py CONFIG [--repeats 5] [--json]
         [config overrides]

Takes gradient steps and decodes steps of the config's sizes (by sampling, with
replacement), on all its devices, and runs nothing but the matrix products that
these need, each in a loop of its own, on the same devices in the same process.
The products of a gradient step are read from its program, those of decoding are
listed in `search_parts.decode_products`. Figures are medians of the repeats,
which take turns; the share is that of the products' time in the whole. What the
operation of products alone reaches is the most that any program of these shapes
can.

Progress goes to stderr, the table to stdout.
"""

import argparse
import collections
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from etils import epath

from qstar_jax import configuration, validation
from qstar_jax.cli import runtime
from qstar_jax.config import ExperimentConfig, MeshConfig
from qstar_jax.errors import UserError

# Of a loop of products: enough that the call itself costs little.
_LOOP_SECONDS = 5e-3


class Dot(NamedTuple):
  """A product as `jax.lax.dot_general` takes it.

  Attributes:
    left: shape.
    right: shape.
    dimensions: contracted and batch axes of both.
    dtype: of the operands.
  """

  left: tuple[int, ...]
  right: tuple[int, ...]
  dimensions: Any
  dtype: str

  @property
  def operations(self) -> int:
    """Multiplications and additions."""
    (_, contracted), (_, batch) = self.dimensions
    free = [
      size
      for axis, size in enumerate(self.right)
      if axis not in (*contracted, *batch)
    ]
    return 2 * math.prod(self.left) * math.prod(free)


def dots_of(jaxpr: Any, times: int = 1) -> Iterator[tuple[Dot, int]]:
  """Every product of a program, and how often it runs.

  Args:
    jaxpr: of the program; its loops are scans.
    times: that the program runs.
  """
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
      left, right = (variable.aval for variable in equation.invars)
      dimensions = params["dimension_numbers"]
      yield Dot(left.shape, right.shape, dimensions, left.dtype.name), times
    inner_times = times * (params["length"] if name == "scan" else 1)
    for value in params.values():
      for inner in value if isinstance(value, tuple | list) else (value,):
        inner = getattr(inner, "jaxpr", inner)
        if hasattr(inner, "eqns"):
          assert name not in ("while", "cond") or not list(dots_of(inner)), name
          yield from dots_of(inner, inner_times)


def dot_seconds(dot: Dot, mesh: Any) -> Callable[[], float]:
  """Measures one product, which every device does for itself in a loop."""
  import jax
  from jax.sharding import NamedSharding
  from jax.sharding import PartitionSpec as P

  from tools.search_parts import best_seconds

  keys = jax.random.split(jax.random.key(0))
  left = jax.random.normal(keys[0], dot.left, dot.dtype)
  right = jax.random.normal(keys[1], dot.right, dot.dtype)
  left, right = jax.device_put((left, right), NamedSharding(mesh, P()))

  def loop(left, right, length):
    def body(_, left):
      y = jax.lax.dot_general(left, right, dot.dimensions)
      # The next product waits for this one, at the cost of one number.
      y = jax.lax.optimization_barrier(y)
      return left.at[(0,) * left.ndim].set(y[(0,) * y.ndim])

    return jax.lax.fori_loop(0, length, body, left)

  run = jax.jit(
    jax.shard_map(loop, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
  )

  def seconds(length):
    return best_seconds(lambda: run(left, right, length))

  length = 1
  while seconds(length) < _LOOP_SECONDS:
    length *= 4
  return lambda: seconds(length) / length


class Part(NamedTuple):
  """What is measured: both give seconds, the best of a few calls."""

  whole: Callable[[], float]
  products: Callable[[], float]


def learner_part(config: ExperimentConfig) -> Part:
  """A gradient step on lines of random legal play."""
  import jax
  import numpy as np

  from qstar_jax.distributed import rules
  from qstar_jax.distributed.mesh import make_mesh
  from qstar_jax.learner import train_step
  from qstar_jax.training import hindsight, inputs
  from qstar_jax.training.preemption import PreemptionFlag
  from qstar_jax.training.trainer import Trainer
  from tools.search_parts import best_seconds

  with tempfile.TemporaryDirectory() as directory:
    trainer = Trainer(config, epath.Path(directory), None, PreemptionFlag())
  setup = trainer.setup
  mesh = setup.mesh
  batch = hindsight.make_batch(
    setup.problems,
    setup.vocabulary,
    np.random.default_rng(0),
    config=config.warm_start,
    text=config.text,
    difficulties=inputs.difficulties(config),
    num_rows=config.learner.batch_size,
    lines_per_row=config.learner.lines_per_row,
  )
  # The share of one device, as its program sees it.
  num_shards = rules.num_shards(mesh.shape)
  share = jax.tree.map(lambda x: x[None, : len(x) // num_shards], batch)
  one = make_mesh(MeshConfig(), mesh.devices.flat[:1])
  steps = train_step.make_train_steps(
    setup.graphdef,
    train_step.make_optimizer(config.learner, total_steps=1),
    config.learner,
    one,
  )
  counts: collections.Counter[Dot] = collections.Counter()
  for dot, times in dots_of(jax.make_jaxpr(steps)(trainer.state, share).jaxpr):
    counts[dot] += times
  products = [(dot_seconds(dot, mesh), n) for dot, n in counts.items()]
  batches = train_step.put_batches([batch], mesh)
  state = [trainer.state]

  def step():
    state[0], metrics = trainer.train_steps(state[0], batches)
    return metrics

  return Part(
    lambda: best_seconds(step),
    lambda: sum(times * seconds() for seconds, times in products),
  )


def decoding_part(config: ExperimentConfig) -> Part:
  """Candidates of a step at the deepest nodes of a table of trees."""
  from qstar_jax.distributed import rules
  from qstar_jax.distributed.mesh import make_mesh
  from tools import search_parts
  from tools.search_engines import Case

  case = Case(
    prompt_tokens=config.text.max_prompt_tokens,
    step_tokens=config.text.max_step_tokens,
    max_steps=config.text.max_steps,
    num_trees=config.self_play.batch_size,
    num_nodes=1,
    num_candidates=config.search.num_candidates,
    vocabulary_size=config.text.vocabulary_size,
    model=config.model,
    num_devices=rules.num_shards(make_mesh(config.mesh).shape),
  )
  return Part(search_parts.decode(case), search_parts.products(case))


_PARTS = {"gradient step": learner_part, "decoding a step": decoding_part}


def measure(config: ExperimentConfig, repeats: int) -> list[dict[str, Any]]:
  """A row for each part."""
  parts = {name: make(config) for name, make in _PARTS.items()}
  for name, part in parts.items():
    print(f"compiling: {name}", file=sys.stderr, flush=True)
    part.whole()
    part.products()
  times: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
  for i in range(repeats):
    print(f"repeat {i + 1} of {repeats}", file=sys.stderr, flush=True)
    for name, part in parts.items():
      times[name].append((part.whole(), part.products()))
  return [
    {
      "part": name,
      "seconds": statistics.median(whole for whole, _ in pairs),
      "products_seconds": statistics.median(own for _, own in pairs),
      "share": statistics.median(own / whole for whole, own in pairs),
      "shares": [own / whole for whole, own in pairs],
    }
    for name, pairs in times.items()
  ]


def table(rows: list[dict[str, Any]]) -> str:
  """The rows in markdown."""
  lines = [
    "| | ms | products alone, ms | share, % | by repeat |",
    "|---" * 5 + "|",
  ]
  for row in rows:
    shares = ", ".join(f"{100 * share:.0f}" for share in row["shares"])
    lines.append(
      f"| {row['part']} | {1e3 * row['seconds']:.1f} "
      f"| {1e3 * row['products_seconds']:.1f} | {100 * row['share']:.0f} "
      f"| {shares} |"
    )
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("config", help="a name from configs/, or a YAML file")
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--json", action="store_true")
  args, overrides = parser.parse_known_args()
  config = configuration.load(args.config, overrides)
  runtime.start_runtime(config)
  import jax

  validation.validate_for_devices(config, jax.device_count())
  if config.mesh.model > 1:
    raise UserError("mesh.model: products of a network in parts are not known")
  rows = measure(config, args.repeats)
  print(json.dumps(rows) if args.json else table(rows))


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    sys.exit(f"bench_roofline.py: {error}")
