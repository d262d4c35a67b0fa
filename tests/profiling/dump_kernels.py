"""Compiles small Pallas kernels for described TPUs and keeps what the compiler wrote about them.

    python tests/profiling/dump_kernels.py

writes all of `tests/profiling/excerpts/bundles/` anew, in about 20 seconds. Needs the extra `tpu`,
whose package holds the compiler, and no TPU.

For each kernel the final schedule. For v4 also the use of the units; for most on v5p the compiler's
own static profile, and the last lines of its trace of all bundles in the order of issue. Long texts
are compressed, and nothing in them is changed.
"""

import argparse
import functools
import gzip
import os
import pathlib
import resource
import subprocess
import sys
import tempfile

EXCERPTS = pathlib.Path(__file__).parent / "excerpts" / "bundles"
COMPRESS_ABOVE_BYTES = 12_000
TRACE_END_BYTES = 200

# For v4, two cores a chip and a grid that is split over them: "megacore".
TOPOLOGIES = {
  "v4": dict(topology_name="v4:2x2x1", chip_config_name="megacore"),
  "v5p": dict(topology_name="v5p:2x2x1"),
}
DUMPS = (
  ("v4", "matmul"),
  ("v4", "nested_loops"),
  ("v4", "first_and_last"),
  ("v4", "odd_grid"),
  ("v4", "region_by_data"),
  ("v4", "loop_by_data"),
  ("v4", "loop_after_region"),
  ("v4", "region_by_step_and_data"),
  ("v4", "loop_by_step"),
  ("v4", "arithmetic"),
  ("v5p", "matmul"),
  ("v5p", "nested_loops"),
  ("v5p", "normalize"),
  ("v5p", "convolution_3x3"),
  ("v5p", "weight_gradient"),
  ("v5p", "every_third"),
  ("v5p", "arithmetic"),
)
# The compiler aborts when it is asked for a profile of what its evaluator does not know: v4's
# copies, and on v5p a division by a constant.
WITH_PROFILE = tuple(dump for dump in DUMPS if dump[0] == "v5p" and dump[1] != "arithmetic")


def kernel_and_arguments(name):
  """Returns a function and the shapes of its arguments."""
  import jax
  import jax.numpy as jnp
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import tpu as pltpu

  f32, bf16 = jnp.float32, jnp.bfloat16
  shape = jax.ShapeDtypeStruct
  vector = shape((8, 128), f32)

  def call(body, *, out_shape, semantics=None, **keywords):
    return pl.pallas_call(
      body,
      out_shape=out_shape,
      name=name,
      compiler_params=pltpu.CompilerParams(dimension_semantics=semantics),
      **keywords,
    )

  def matmul():
    """The yardstick of profiling.kernels."""
    sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
    from profiling.compile.matmul_kernel import SIZE
    from profiling.compile.matmul_kernel import matmul as function

    return function, [shape((SIZE, SIZE), bf16)] * 2

  def nested_loops():
    """5 times 7 steps of an inner loop."""

    def body(x_ref, out_ref):
      def inner(_, sum_):
        return sum_ * 1.5 + x_ref[...]

      def outer(_, sum_):
        return jax.lax.fori_loop(0, 7, inner, sum_) - 1

      out_ref[...] = jax.lax.fori_loop(0, 5, outer, x_ref[...])

    return call(body, out_shape=vector), [vector]

  def first_and_last():
    """A sum over a grid of 6 steps, which is set at the first and written at the last."""

    def body(x_ref, out_ref, sum_ref):
      @pl.when(pl.program_id(0) == 0)
      def _():
        sum_ref[...] = jnp.zeros_like(sum_ref)

      sum_ref[...] += x_ref[0]

      @pl.when(pl.program_id(0) == 5)
      def _():
        out_ref[...] = jnp.exp(sum_ref[...])

    return call(
      body,
      grid=(6,),
      in_specs=[pl.BlockSpec((1, 8, 128), lambda i: (i, 0, 0))],
      out_specs=pl.BlockSpec((8, 128), lambda i: (0, 0)),
      out_shape=vector,
      scratch_shapes=[pltpu.VMEM((8, 128), f32)],
      semantics=("arbitrary",),
    ), [shape((6, 8, 128), f32)]

  def odd_grid():
    """A parallel axis of 5 steps, for two cores."""

    def body(x_ref, out_ref):
      out_ref[...] = jnp.exp(x_ref[...])

    block = pl.BlockSpec((1, 8, 128), lambda i: (i, 0, 0))
    return call(
      body,
      grid=(5,),
      in_specs=[block],
      out_specs=block,
      out_shape=shape((5, 8, 128), f32),
      semantics=("parallel",),
    ), [shape((5, 8, 128), f32)]

  def region_by_data():
    """A region that is entered if an argument says so, with a loop of 9 in it."""

    def body(number_ref, x_ref, out_ref):
      out_ref[...] = x_ref[...]

      @pl.when(number_ref[0] > 0)
      def _():
        out_ref[...] = jax.lax.fori_loop(0, 9, lambda _, sum_: sum_ * sum_ + 1.0, x_ref[...])

    smem = pl.BlockSpec(memory_space=pltpu.SMEM)
    vmem = pl.BlockSpec(memory_space=pltpu.VMEM)
    return call(body, out_shape=vector, in_specs=[smem, vmem]), [shape((1,), jnp.int32), vector]

  def loop_by_data():
    """A loop with as many steps as an argument says."""

    def body(number_ref, x_ref, out_ref):
      out_ref[...] = jax.lax.fori_loop(
        0, number_ref[0], lambda _, sum_: sum_ * sum_ + 1.0, x_ref[...]
      )

    smem = pl.BlockSpec(memory_space=pltpu.SMEM)
    vmem = pl.BlockSpec(memory_space=pltpu.VMEM)
    return call(body, out_shape=vector, in_specs=[smem, vmem]), [shape((1,), jnp.int32), vector]

  def loop_after_region():
    """A loop of 3 steps, or of 39 if a region by data is entered that computes this in a loop."""

    def body(number_ref, x_ref, out_ref):
      def longer():
        return jax.lax.fori_loop(
          0, 9, lambda i, carry: (carry[0] + i, carry[1] * carry[1] + 1.0), (3, x_ref[...])
        )

      steps, x = jax.lax.cond(number_ref[0] > 0, longer, lambda: (3, x_ref[...]))
      out_ref[...] = jax.lax.fori_loop(0, steps, lambda _, sum_: sum_ * 1.5, x)

    smem = pl.BlockSpec(memory_space=pltpu.SMEM)
    vmem = pl.BlockSpec(memory_space=pltpu.VMEM)
    return call(body, out_shape=vector, in_specs=[smem, vmem]), [shape((1,), jnp.int32), vector]

  def normalize():
    """Rows of 1024 to mean 0 and variance 1: elementwise operations and reductions."""

    def body(x_ref, out_ref):
      x = x_ref[...].astype(f32)
      x = x - jnp.mean(x, axis=1, keepdims=True)
      variance = jnp.mean(x * x, axis=1, keepdims=True)
      out_ref[...] = (x * jax.lax.rsqrt(variance + 1e-6)).astype(out_ref.dtype)

    block = pl.BlockSpec((64, 1024), lambda i: (i, 0))
    return call(
      body,
      grid=(64,),
      in_specs=[block],
      out_specs=block,
      out_shape=shape((4096, 1024), bf16),
      semantics=("parallel",),
    ), [shape((4096, 1024), bf16)]

  def convolution_3x3():
    """16 tiles, [4, 16, 16, 128] (padded) to [2, 14, 16, 128]: nine products an image row."""
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
    """x^T y with x and y [4096, 256]: both are contracted over rows."""
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
      body,
      grid=(steps,),
      in_specs=[block, block],
      out_specs=pl.BlockSpec((256, 256), lambda i: (0, 0)),
      out_shape=shape((256, 256), f32),
      scratch_shapes=[pltpu.VMEM((256, 256), f32)],
      semantics=("arbitrary",),
    ), [shape((4096, 256), bf16)] * 2

  def every_third():
    """A region that is entered in steps 0, 3, 6 and 9."""

    def body(x_ref, out_ref):
      out_ref[...] = x_ref[...]

      @pl.when(pl.program_id(0) % 3 == 0)
      def _():
        out_ref[...] = jnp.exp(x_ref[...])

    block = pl.BlockSpec((1, 8, 128), lambda i: (i, 0, 0))
    return call(
      body,
      grid=(10,),
      in_specs=[block],
      out_specs=block,
      out_shape=shape((10, 8, 128), f32),
      semantics=("arbitrary",),
    ), [shape((10, 8, 128), f32)]

  def arithmetic():
    """Regions in 4, 1 and 5 of 10 steps, by a remainder, a quotient and a negative number."""

    def body(x_ref, out_ref):
      step = pl.program_id(0)
      conditions = (step % 3 == 0, jax.lax.div(step, 3) == 3, step * 2 - 9 < 0)
      for i, condition in enumerate(conditions):

        @pl.when(condition)
        def _(i=i):
          out_ref[0, i] = jnp.exp(x_ref[0, i])

    block = pl.BlockSpec((1, 3, 8, 128), lambda i: (i, 0, 0, 0))
    return call(
      body,
      grid=(10,),
      in_specs=[block],
      out_specs=block,
      out_shape=shape((10, 3, 8, 128), f32),
      semantics=("arbitrary",),
    ), [shape((10, 3, 8, 128), f32)]

  def region_by_step_and_data():
    """A region that may be entered in the third of 6 steps."""

    def body(number_ref, x_ref, out_ref):
      out_ref[...] = x_ref[...]

      @pl.when((pl.program_id(0) == 2) & (number_ref[0] > 0))
      def _():
        out_ref[...] = jnp.exp(x_ref[...])

    block = pl.BlockSpec((1, 8, 128), lambda i: (i, 0, 0))
    return call(
      body,
      grid=(6,),
      in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), block],
      out_specs=block,
      out_shape=shape((6, 8, 128), f32),
      semantics=("arbitrary",),
    ), [shape((1,), jnp.int32), shape((6, 8, 128), f32)]

  def loop_by_step():
    """A loop of 39 steps in the third step of the grid, and of 3 in the other three."""

    def body(x_ref, out_ref):
      def longer():
        return jax.lax.fori_loop(
          0, 9, lambda i, carry: (carry[0] + i, carry[1] * carry[1] + 1.0), (3, x_ref[...])
        )

      steps, x = jax.lax.cond(pl.program_id(0) == 2, longer, lambda: (3, x_ref[...]))
      out_ref[...] = jax.lax.fori_loop(0, steps, lambda _, sum_: sum_ * 1.5, x)

    block = pl.BlockSpec((1, 8, 128), lambda i: (i, 0, 0))
    return call(
      body,
      grid=(4,),
      in_specs=[block],
      out_specs=block,
      out_shape=shape((4, 8, 128), f32),
      semantics=("arbitrary",),
    ), [shape((4, 8, 128), f32)]

  return locals()[name]()


def compile_one(chip, name):
  """In a process whose environment is `environment`'s."""
  import jax
  from jax.experimental import topologies

  topology = topologies.get_topology_desc(platform="tpu", **TOPOLOGIES[chip])
  sharding = jax.sharding.SingleDeviceSharding(topology.devices[0])
  function, arguments = kernel_and_arguments(name)
  arguments = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in arguments]
  jax.jit(function).lower(*arguments).compile()


def environment(chip, name, directory):
  """For a process that compiles a kernel for a chip and dumps into a directory."""
  flags = [
    f"--xla_jf_dump_to={directory}",
    "--xla_jf_dump_llo_text=true",
    "--xla_jf_dump_hlo_text=true",
    "--xla_jf_dump_llo_pass_label_regex=final",
  ]
  if (chip, name) in WITH_PROFILE:
    flags += [
      f"--xla_jf_dump_static_llo_profile_to={directory}",
      "--xla_tpu_impure_dump_unrolled_bundles=true",
    ]
  return os.environ | dict(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE=f"{chip}-8",
    TPU_WORKER_HOSTNAMES="localhost",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    LIBTPU_INIT_ARGS=" ".join(flags),
  )


def dump_texts(chip, name):
  """Returns the compiler's texts by the end of an excerpt's name."""
  with tempfile.TemporaryDirectory() as directory:
    subprocess.run(
      [sys.executable, __file__, f"--chip={chip}", f"--kernel={name}"],
      env=environment(chip, name, directory),
      check=True,
      preexec_fn=functools.partial(resource.setrlimit, resource.RLIMIT_CORE, (0, 0)),
    )

    def read(pattern):
      (path,) = pathlib.Path(directory).glob(pattern)
      return path.read_text()

    # Not the one whose name ends in "schedule-analysis_final_bundles.txt".
    texts = {"final_bundles.txt": read(f"*-{name}.*[0-9]-final_bundles.txt")}
    if chip == "v4":
      texts["utilization.txt"] = read(f"*-{name}.*-final_hlo-static-per-bundle-utilization.txt")
    if (chip, name) in WITH_PROFILE:
      texts["static_llo_profile.textproto"] = read(f"{name}.*_static_llo_profile.textproto")
      texts["trace_end.txt"] = read(f"{name}.*_bundles.txt")[-TRACE_END_BYTES:]
    return texts


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--chip", choices=TOPOLOGIES, help="with --kernel: only compile that one")
  parser.add_argument("--kernel")
  arguments = parser.parse_args()
  if arguments.kernel:
    compile_one(arguments.chip, arguments.kernel)
    return
  EXCERPTS.mkdir(parents=True, exist_ok=True)
  for path in EXCERPTS.iterdir():
    path.unlink()
  for chip, name in DUMPS:
    for end, text in dump_texts(chip, name).items():
      path = EXCERPTS / f"{chip}_{name}_{end}"
      if len(text) > COMPRESS_ABOVE_BYTES:
        path = path.with_name(path.name + ".gz")
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
      else:
        path.write_text(text)
      print(path.name, path.stat().st_size)


if __name__ == "__main__":
  main()
