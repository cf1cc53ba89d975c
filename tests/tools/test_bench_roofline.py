"""The products of a program, and one small measurement."""

import collections

import jax
import jax.numpy as jnp
import pytest

from tools import bench_roofline
from tools.bench_roofline import dots_of

pytest_plugins = ["tests.training.micro_run"]


def _loss(weight, inputs):
  def layer(x, _):
    return jnp.tanh(x @ weight), None

  x, _ = jax.lax.scan(layer, inputs, length=3)
  return jnp.einsum("bthc,bshc->bhts", x[..., None, :], x[..., None, :]).sum()


def test_products_are_counted_through_loops_and_gradients():
  weight, inputs = jnp.ones((8, 8)), jnp.ones((2, 5, 8))
  counts = collections.Counter()
  program = jax.make_jaxpr(jax.jit(jax.grad(_loss)))(weight, inputs)
  for dot, times in dots_of(program.jaxpr):
    counts[dot.operations] += times
  # Three layers, each with a product forward and two backward; then one whose
  # gradient to either side has one more. 2 b t m m, and 2 b t t c.
  layer, scores = 2 * 2 * 5 * 8 * 8, 2 * 2 * 5 * 5 * 8
  assert counts == {layer: 3 + 2 * 3, scores: 1 + 2}


def test_a_product_in_a_loop_of_unknown_length_is_refused():
  def fn(x):
    return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)

  program = jax.make_jaxpr(fn)(jnp.ones((2, 2)))
  with pytest.raises(AssertionError, match="while"):
    list(dots_of(program.jaxpr))


def test_a_small_measurement(micro_config):
  rows = bench_roofline.measure(micro_config, repeats=1)
  assert [row["part"] for row in rows] == ["gradient step", "decoding a step"]
  for row in rows:
    assert 0 < row["share"] < 2
    assert row["share"] == row["products_seconds"] / row["seconds"]
  assert "| gradient step |" in bench_roofline.table(rows)
