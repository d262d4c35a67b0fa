"""Defines small Pallas kernels, whose compiled texts the tests of the parsers read.

Every function returns a kernel and the shapes of its arguments. `dump_kernels.py` compiles them.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from profiling.compile import matmul_kernel

f32, bf16 = jnp.float32, jnp.bfloat16
shape = jax.ShapeDtypeStruct
vector = shape((8, 128), f32)


def call(name, body, *, out_shape, semantics=None, **keywords):
  """Returns a call of a kernel whose name survives into the compiler's texts."""
  return pl.pallas_call(
    body,
    out_shape=out_shape,
    name=name,
    compiler_params=pltpu.CompilerParams(dimension_semantics=semantics),
    **keywords,
  )


def matmul():
  """Returns the yardstick of `profiling.kernels`, a product of two 4096 x 4096 matrices."""
  return matmul_kernel.matmul, [shape((matmul_kernel.SIZE, matmul_kernel.SIZE), bf16)] * 2


def nested_loops():
  """Runs an inner loop of 7 steps 5 times."""

  def body(x_ref, out_ref):
    def inner(_, sum_):
      return sum_ * 1.5 + x_ref[...]

    def outer(_, sum_):
      return jax.lax.fori_loop(0, 7, inner, sum_) - 1

    out_ref[...] = jax.lax.fori_loop(0, 5, outer, x_ref[...])

  return call("nested_loops", body, out_shape=vector), [vector]


def first_and_last():
  """Sums over a grid of 6 steps; the sum is reset in the first and written in the last."""

  def body(x_ref, out_ref, sum_ref):
    @pl.when(pl.program_id(0) == 0)
    def _():
      sum_ref[...] = jnp.zeros_like(sum_ref)

    sum_ref[...] += x_ref[0]

    @pl.when(pl.program_id(0) == 5)
    def _():
      out_ref[...] = jnp.exp(sum_ref[...])

  return call(
    "first_and_last",
    body,
    grid=(6,),
    in_specs=[pl.BlockSpec((1, 8, 128), lambda i: (i, 0, 0))],
    out_specs=pl.BlockSpec((8, 128), lambda i: (0, 0)),
    out_shape=vector,
    scratch_shapes=[pltpu.VMEM((8, 128), f32)],
    semantics=("arbitrary",),
  ), [shape((6, 8, 128), f32)]


def odd_grid():
  """Runs a parallel axis of 5 steps on two cores."""

  def body(x_ref, out_ref):
    out_ref[...] = jnp.exp(x_ref[...])

  block = pl.BlockSpec((1, 8, 128), lambda i: (i, 0, 0))
  return call(
    "odd_grid",
    body,
    grid=(5,),
    in_specs=[block],
    out_specs=block,
    out_shape=shape((5, 8, 128), f32),
    semantics=("parallel",),
  ), [shape((5, 8, 128), f32)]


def region_by_data():
  """Enters a region, with a loop of 9 steps in it, if an argument says so."""

  def body(number_ref, x_ref, out_ref):
    out_ref[...] = x_ref[...]

    @pl.when(number_ref[0] > 0)
    def _():
      out_ref[...] = jax.lax.fori_loop(0, 9, lambda _, sum_: sum_ * sum_ + 1.0, x_ref[...])

  smem = pl.BlockSpec(memory_space=pltpu.SMEM)
  vmem = pl.BlockSpec(memory_space=pltpu.VMEM)
  return call("region_by_data", body, out_shape=vector, in_specs=[smem, vmem]), [
    shape((1,), jnp.int32),
    vector,
  ]


def loop_by_data():
  """Runs a loop of as many steps as an argument says."""

  def body(number_ref, x_ref, out_ref):
    out_ref[...] = jax.lax.fori_loop(
      0, number_ref[0], lambda _, sum_: sum_ * sum_ + 1.0, x_ref[...]
    )

  smem = pl.BlockSpec(memory_space=pltpu.SMEM)
  vmem = pl.BlockSpec(memory_space=pltpu.VMEM)
  return call("loop_by_data", body, out_shape=vector, in_specs=[smem, vmem]), [
    shape((1,), jnp.int32),
    vector,
  ]


def loop_after_region():
  """Runs a loop of 3 steps, or of 39 if a region by data is entered that counts to it."""

  def body(number_ref, x_ref, out_ref):
    def longer():
      return jax.lax.fori_loop(
        0, 9, lambda i, carry: (carry[0] + i, carry[1] * carry[1] + 1.0), (3, x_ref[...])
      )

    steps, x = jax.lax.cond(number_ref[0] > 0, longer, lambda: (3, x_ref[...]))
    out_ref[...] = jax.lax.fori_loop(0, steps, lambda _, sum_: sum_ * 1.5, x)

  smem = pl.BlockSpec(memory_space=pltpu.SMEM)
  vmem = pl.BlockSpec(memory_space=pltpu.VMEM)
  return call("loop_after_region", body, out_shape=vector, in_specs=[smem, vmem]), [
    shape((1,), jnp.int32),
    vector,
  ]


def normalize():
  """Normalizes rows of 1024 to mean 0 and variance 1: elementwise operations and reductions."""

  def body(x_ref, out_ref):
    x = x_ref[...].astype(f32)
    x = x - jnp.mean(x, axis=1, keepdims=True)
    variance = jnp.mean(x * x, axis=1, keepdims=True)
    out_ref[...] = (x * jax.lax.rsqrt(variance + 1e-6)).astype(out_ref.dtype)

  block = pl.BlockSpec((64, 1024), lambda i: (i, 0))
  return call(
    "normalize",
    body,
    grid=(64,),
    in_specs=[block],
    out_specs=block,
    out_shape=shape((4096, 1024), bf16),
    semantics=("parallel",),
  ), [shape((4096, 1024), bf16)]


def convolution_3x3():
  """Convolves 16 tiles, [4, 16, 16, 128] (padded) to [2, 14, 16, 128]: nine products per row."""
  tiles, rows, pixels, images = 16, 2, 14, 16

  def body(x_ref, weight_ref, out_ref):
    for i in range(rows):
      sum_ = jnp.zeros((pixels * images, 128), f32)
      for di in range(3):
        for dj in range(3):
          x = x_ref[0, i + di, dj : dj + pixels].reshape(pixels * images, 128)
          sum_ += jnp.dot(x, weight_ref[di, dj], preferred_element_type=f32)
      out_ref[0, i] = jax.nn.relu(sum_).astype(bf16).reshape(pixels, images, 128)

  return call(
    "convolution_3x3",
    body,
    grid=(tiles,),
    in_specs=[
      pl.BlockSpec((1, rows + 2, pixels + 2, images, 128), lambda i: (i, 0, 0, 0, 0)),
      pl.BlockSpec((3, 3, 128, 128), lambda i: (0, 0, 0, 0)),
    ],
    out_specs=pl.BlockSpec((1, rows, pixels, images, 128), lambda i: (i, 0, 0, 0, 0)),
    out_shape=shape((tiles, rows, pixels, images, 128), bf16),
    semantics=("parallel",),
  ), [
    shape((tiles, rows + 2, pixels + 2, images, 128), bf16),
    shape((3, 3, 128, 128), bf16),
  ]


def weight_gradient():
  """Computes x^T y for x and y [4096, 256]: both are contracted over rows."""
  steps = 16

  def body(x_ref, y_ref, out_ref, sum_ref):
    @pl.when(pl.program_id(0) == 0)
    def _():
      sum_ref[...] = jnp.zeros_like(sum_ref)

    sum_ref[...] += jax.lax.dot_general(
      x_ref[...], y_ref[...], (((0,), (0,)), ((), ())), preferred_element_type=f32
    )

    @pl.when(pl.program_id(0) == steps - 1)
    def _():
      out_ref[...] = sum_ref[...]

  block = pl.BlockSpec((256, 256), lambda i: (i, 0))
  return call(
    "weight_gradient",
    body,
    grid=(steps,),
    in_specs=[block, block],
    out_specs=pl.BlockSpec((256, 256), lambda i: (0, 0)),
    out_shape=shape((256, 256), f32),
    scratch_shapes=[pltpu.VMEM((256, 256), f32)],
    semantics=("arbitrary",),
  ), [shape((4096, 256), bf16)] * 2


def every_third():
  """Enters a region in steps 0, 3, 6 and 9."""

  def body(x_ref, out_ref):
    out_ref[...] = x_ref[...]

    @pl.when(pl.program_id(0) % 3 == 0)
    def _():
      out_ref[...] = jnp.exp(x_ref[...])

  block = pl.BlockSpec((1, 8, 128), lambda i: (i, 0, 0))
  return call(
    "every_third",
    body,
    grid=(10,),
    in_specs=[block],
    out_specs=block,
    out_shape=shape((10, 8, 128), f32),
    semantics=("arbitrary",),
  ), [shape((10, 8, 128), f32)]


def arithmetic():
  """Enters regions in 4, 1 and 5 of 10 steps, by a remainder, a quotient and a negative number."""

  def body(x_ref, out_ref):
    step = pl.program_id(0)
    conditions = (step % 3 == 0, jax.lax.div(step, 3) == 3, step * 2 - 9 < 0)
    for i, condition in enumerate(conditions):

      @pl.when(condition)
      def _(i=i):
        out_ref[0, i] = jnp.exp(x_ref[0, i])

  block = pl.BlockSpec((1, 3, 8, 128), lambda i: (i, 0, 0, 0))
  return call(
    "arithmetic",
    body,
    grid=(10,),
    in_specs=[block],
    out_specs=block,
    out_shape=shape((10, 3, 8, 128), f32),
    semantics=("arbitrary",),
  ), [shape((10, 3, 8, 128), f32)]


def region_by_step_and_data():
  """Enters a region in the third of 6 steps if an argument says so."""

  def body(number_ref, x_ref, out_ref):
    out_ref[...] = x_ref[...]

    @pl.when((pl.program_id(0) == 2) & (number_ref[0] > 0))
    def _():
      out_ref[...] = jnp.exp(x_ref[...])

  block = pl.BlockSpec((1, 8, 128), lambda i: (i, 0, 0))
  return call(
    "region_by_step_and_data",
    body,
    grid=(6,),
    in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), block],
    out_specs=block,
    out_shape=shape((6, 8, 128), f32),
    semantics=("arbitrary",),
  ), [shape((1,), jnp.int32), shape((6, 8, 128), f32)]


def loop_by_step():
  """Runs a loop of 39 steps in the third step of the grid, and of 3 in the other three."""

  def body(x_ref, out_ref):
    def longer():
      return jax.lax.fori_loop(
        0, 9, lambda i, carry: (carry[0] + i, carry[1] * carry[1] + 1.0), (3, x_ref[...])
      )

    steps, x = jax.lax.cond(pl.program_id(0) == 2, longer, lambda: (3, x_ref[...]))
    out_ref[...] = jax.lax.fori_loop(0, steps, lambda _, sum_: sum_ * 1.5, x)

  block = pl.BlockSpec((1, 8, 128), lambda i: (i, 0, 0))
  return call(
    "loop_by_step",
    body,
    grid=(4,),
    in_specs=[block],
    out_specs=block,
    out_shape=shape((4, 8, 128), f32),
    semantics=("arbitrary",),
  ), [shape((4, 8, 128), f32)]
