"""Costs read from compiled programs, against closed forms."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from qstar_jax.distributed import hlo, hlo_costs, hlo_loops, hlo_program

M, K, N = 24, 40, 56


def _compile(fn, *shapes, **options):
  arguments = [
    shape
    if isinstance(shape, jax.ShapeDtypeStruct)
    else jax.ShapeDtypeStruct(shape, jnp.float32)
    for shape in shapes
  ]
  compiled = jax.jit(fn, **options).lower(*arguments).compile()
  return hlo_program.parse(compiled.as_text())


def _scan(x, w, length):
  step = lambda x, _: (jnp.tanh(x @ w), None)  # noqa: E731
  return jax.lax.scan(step, x, None, length=length)[0]


def test_a_product_costs_two_operations_for_each_pair():
  program = _compile(lambda x, w: x @ w, (M, K), (K, N))
  assert hlo_costs.total_flops(program) == 2 * M * K * N


def test_batches_of_products_are_counted():
  program = _compile(
    lambda x, y: jnp.einsum("bmk,bnk->bmn", x, y), (5, M, K), (5, N, K)
  )
  assert hlo_costs.total_flops(program) == 5 * 2 * M * K * N


def test_a_scan_costs_as_many_bodies_as_it_runs():
  program = _compile(functools.partial(_scan, length=7), (M, K), (K, K))
  assert hlo_costs.total_flops(program) == 7 * 2 * M * K * K
  assert not hlo_loops.unbounded_loops(program)


def test_loops_inside_loops_are_multiplied():
  def fn(x, w):
    body = lambda _, x: _scan(x, w, length=3)  # noqa: E731
    return jax.lax.fori_loop(2, 13, body, x)

  program = _compile(fn, (M, K), (K, K))
  assert hlo_costs.total_flops(program) == 11 * 3 * 2 * M * K * K


def test_gradients_run_their_loops_backwards():
  def loss(x, w):
    return jnp.sum(_scan(x, w, length=6))

  program = _compile(jax.grad(loss, argnums=(0, 1)), (M, K), (K, K))
  # Forwards, and once for each of the two gradients.
  assert hlo_costs.total_flops(program) == 3 * 6 * 2 * M * K * K


def test_a_loop_that_may_end_early_costs_its_bound():
  def fn(x, w):
    def goes_on(state):
      step, x = state
      return (step < 17) & jnp.any(x > 0)

    body = lambda state: (state[0] + 1, state[1] @ w)  # noqa: E731
    return jax.lax.while_loop(goes_on, body, (0, x))[1]

  program = _compile(fn, (M, K), (K, K))
  assert hlo_costs.total_flops(program) == 17 * 2 * M * K * K
  assert not hlo_loops.unbounded_loops(program)


def test_a_loop_without_a_bound_costs_one_body_and_is_told_of():
  def fn(x, w):
    goes_on = lambda x: jnp.any(x > 0)  # noqa: E731
    return jax.lax.while_loop(goes_on, lambda x: x @ w, x)

  program = _compile(fn, (M, K), (K, K))
  assert hlo_costs.total_flops(program) == 2 * M * K * K
  (name,) = hlo_loops.unbounded_loops(program)
  assert "while" in name


# A loop as the TPU compiler writes it: its bound is an element of the state
# that the body hands on, and it was unrolled by two.
_STATE = "(s32[]{:T(128)}, f32[24,40]{1,0}, /*index=2*/f32[40,40]{1,0}, s32[])"
_TPU_LOOP = f"""\
HloModule jit_f, is_scheduled=true, num_partitions=16

%body (p.1: (s32[], f32[24,40], f32[40,40], s32[])) -> (s32[], f32[24,40]) {{
  %p.1 = {_STATE} parameter(0)
  %two = s32[]{{:T(128)}} constant(2)
  %i = s32[]{{:T(128)}} get-tuple-element(%p.1), index=0
  %x = f32[24,40]{{1,0:T(8,128)}} get-tuple-element(%p.1), index=1
  %w = f32[40,40]{{1,0:T(8,128)}} get-tuple-element(%p.1), index=2
  %n = s32[]{{:T(128)}} get-tuple-element(%p.1), index=3
  %next = s32[]{{:T(128)}} add(%i, %two)
  %y = f32[24,40]{{1,0:T(8,128)S(1)}} convolution(%x, %w), dim_labels=bf_io->bf
  ROOT %t = {_STATE} tuple(%next, %y, %w, %n)
}}

%compare (a: s32[], b: s32[]) -> pred[] {{
  %a = s32[]{{:T(128)}} parameter(0)
  %b = s32[]{{:T(128)}} parameter(1)
  ROOT %lt = pred[]{{:T(512)}} compare(%a, %b), direction=LT
}}

%condition (p.2: (s32[], f32[24,40], f32[40,40], s32[])) -> pred[] {{
  %p.2 = {_STATE} parameter(0)
  %j = s32[]{{:T(128)}} get-tuple-element(%p.2), index=0
  %m = s32[]{{:T(128)}} get-tuple-element(%p.2), index=3
  ROOT %f = pred[]{{:T(512)}} fusion(%j, %m), kind=kLoop, calls=%compare
}}

ENTRY %main (x.1: f32[24,40], w.1: f32[40,40]) -> f32[24,40] {{
  %x.1 = f32[24,40]{{1,0:T(8,128)}} parameter(0)
  %w.1 = f32[40,40]{{1,0:T(8,128)}} parameter(1)
  %zero = s32[]{{:T(128)}} constant(0)
  %nine = s32[]{{:T(128)}} constant(9)
  %copy = s32[]{{:T(128)}} copy(%zero)
  %start = {_STATE} tuple(%copy, %x.1, %w.1, %nine)
  %loop = {_STATE} while(%start), condition=%condition, body=%body
  ROOT %out = f32[24,40]{{1,0:T(8,128)}} get-tuple-element(%loop), index=1
}}
"""


def test_a_loop_of_the_tpu_compiler_is_understood():
  program = hlo_program.parse(_TPU_LOOP)
  assert program.num_partitions == 16
  # 0, 2, 4, 6, 8.
  assert hlo_costs.total_flops(program) == 5 * 2 * 24 * 40 * 40


def test_what_lies_on_the_chip_is_no_traffic():
  program = hlo_program.parse(_TPU_LOOP)
  product = next(
    x
    for x in hlo_costs.operations(program)
    if x.instruction.opcode == "convolution"
  )
  # Both operands; the result has S(1) in its layout.
  assert product.hbm_bytes == 4 * (24 * 40 + 40 * 40)


def test_a_slice_that_is_only_begun_is_no_copy_of_the_whole():
  text = """\
HloModule m

ENTRY %main (x: bf16[100,64]) -> bf16[2,64] {
  %x = bf16[100,64]{1,0} parameter(0)
  %s = ((bf16[100,64]{1,0}), bf16[2,64]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x)
  ROOT %d = bf16[2,64]{1,0:S(1)} slice-done(%s)
}
"""
  # What is read: the result is on the chip.
  assert hlo_costs.total_bytes(hlo_program.parse(text)) == 2 * 2 * 64


_PIECE = """\
%piece.{i} (x: f32[8,64], y: f32[32,64]) -> (f32[8,64], f32[32,64], f32[64]) {{
  %x.{i} = f32[8,64]{{1,0}} parameter(0)
  %y.{i} = f32[32,64]{{1,0}} parameter(1)
  %c.{i} = f32[64]{{0}} constant(0)
  %g.{i} = f32[32,64]{{1,0}} all-gather(%x.{i}), channel_id=7, \
replica_groups={{{{0,1,2,3}}}}, dimensions={{0}}
  ROOT %t.{i} = (f32[8,64], f32[32,64], f32[64]) tuple(%x.{i}, %g.{i}, %c.{i})
}}
"""
_PIECES = f"""\
HloModule m, num_partitions=4

{_PIECE.format(i=1)}
{_PIECE.format(i=2)}
ENTRY %main (x: f32[8,64], y: f32[32,64]) -> f32[32,64] {{
  %x = f32[8,64]{{1,0}} parameter(0)
  %y = f32[32,64]{{1,0}} parameter(1)
  %f = (f32[8,64], f32[32,64], f32[64]) fusion(%x, %y), calls=%piece.1
  %x.3 = f32[8,64]{{1,0}} get-tuple-element(%f), index=0
  %y.3 = f32[32,64]{{1,0}} get-tuple-element(%f), index=1
  %h = (f32[8,64], f32[32,64], f32[64]) fusion(%x.3, %y.3), calls=%piece.2
  ROOT %r = f32[32,64]{{1,0}} get-tuple-element(%h), index=1
}}
"""


def test_a_collective_in_pieces_counts_once():
  program = hlo_program.parse(_PIECES)
  (gather,) = hlo.collectives(program, {"fsdp": 4})
  assert (gather.kind, gather.axes, gather.times) == ("all-gather", {"fsdp"}, 1)
  assert gather.num_bytes == 4 * 32 * 64
  # The fusions that it runs beside hand its arrays on, and write one.
  assert hlo_costs.total_bytes(program) == 2 * 4 * 64


def test_a_batch_in_a_convolutions_window_is_no_more_work():
  """As TPUs do batches of products: the batch is a dilated spatial axis."""
  window = "{size=5 stride=4 pad=0_0 lhs_dilate=5}, dim_labels=0bf_0io->0bf"
  text = f"""\
HloModule m

ENTRY %main (x: f32[5,24,40], y: f32[5,40,56]) -> f32[5,24,56] {{
  %x = f32[5,24,40]{{2,1,0}} parameter(0)
  %y = f32[5,40,56]{{2,1,0}} parameter(1)
  ROOT %c = f32[5,24,56]{{2,1,0}} convolution(%x, %y), window={window}
}}
"""
  program = hlo_program.parse(text)
  assert hlo_costs.total_flops(program) == 5 * 2 * 24 * 40 * 56


def test_an_image_convolution_counts_what_meets_its_padding():
  def fn(image, kernel):
    return jax.lax.conv_general_dilated(
      image,
      kernel,
      (1,),
      [(1, 1)],
      dimension_numbers=("NWC", "WIO", "NWC"),
    )

  program = _compile(fn, (2, 10, 3), (3, 3, 7))
  # 10 positions of 3 taps, without the two that fall off the ends.
  assert hlo_costs.total_flops(program) == 2 * 2 * 7 * 3 * (10 * 3 - 2)


def test_a_sum_reads_both_and_writes_one():
  program = _compile(lambda x, y: x + y, (M, N), (M, N))
  assert hlo_costs.total_bytes(program) == 3 * 4 * M * N


def test_slices_and_updates_in_place_count_alone():
  def fn(table, index):
    row = jax.lax.dynamic_index_in_dim(table, index, keepdims=True)
    return jax.lax.dynamic_update_slice(table, 2 * row, (0, 0))

  program = _compile(
    fn, (1000, N), jax.ShapeDtypeStruct((), jnp.int32), donate_argnums=0
  )
  # The whole table is 1000 rows.
  assert hlo_costs.total_bytes(program) < 8 * 4 * N


@pytest.fixture(scope="module")
def mesh():
  return jax.make_mesh(
    (2, 2, 2), ("data", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3
  )


def _on(mesh, shape, *spec):
  sharding = NamedSharding(mesh, P(*spec))
  return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def test_gathers_in_a_loop_are_counted_with_their_axes(mesh):
  def fn(x, w_LKK):
    def body(x, w):
      w = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
      return jnp.tanh(x @ w), None

    return jax.lax.scan(body, x, w_LKK)[0]

  x = _on(mesh, (64, 32), ("data", "fsdp"))
  program = _compile(
    fn, x, _on(mesh, (5, 32, 32), None, "fsdp"), out_shardings=x.sharding
  )
  found = [
    x for x in hlo.collectives(program, mesh.shape) if x.kind == "all-gather"
  ]
  gathered = sum(x.times * x.num_bytes for x in found)
  assert gathered == 5 * 4 * 32 * 32
  assert {x.axes for x in found} == {frozenset({"fsdp"})}
  assert sum(x.times * x.wire_bytes for x in found) == gathered / 2


def test_what_collectives_send(mesh):
  """A reduction sends what a scatter and a gather of the sums send."""
  x = _on(mesh, (64, 32), ("data", "fsdp"))
  program = _compile(
    lambda x: jnp.sum(x, axis=0), x, out_shardings=NamedSharding(mesh, P())
  )
  (reduction,) = hlo.collectives(program, mesh.shape)
  assert reduction.axes == {"data", "fsdp"}
  assert reduction.group_size == 4
  assert reduction.wire_bytes == 2 * 3 / 4 * 4 * 32
  scatter = reduction._replace(
    kind="reduce-scatter", num_bytes=reduction.num_bytes // 4
  )
  gather = reduction._replace(kind="all-gather")
  both = scatter.wire_bytes + gather.wire_bytes
  assert reduction.wire_bytes == both


def test_text_that_is_no_program_is_refused():
  with pytest.raises(ValueError, match="ENTRY"):
    hlo_program.parse("module @jit_f {}")
