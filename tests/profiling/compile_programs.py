"""Makes the optimized HLO programs that the parser's tests read.

    python tests/profiling/compile_programs.py tests/profiling/excerpts

Needs the extra `tpu`. Large constants of the compiler's configuration are removed from the text.
"""

import os
import pathlib
import re
import sys

os.environ.update(
  JAX_PLATFORMS="cpu",
  TPU_SKIP_MDS_QUERY="1",
  TPU_ACCELERATOR_TYPE="v4-8",
  TPU_WORKER_HOSTNAMES="localhost",
  ALLOW_MULTIPLE_LIBTPU_LOAD="1",
)
sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from profiling.compile.topology import describe_devices, parse_topology

RING = [(device, (device + 1) % 4) for device in range(4)]


def loops(x, w):
  """Computes a product, a loop of three steps with an inner loop of four, and a sum."""
  x = jnp.dot(x, w[0])

  def outer(x, weight):
    x = jax.lax.fori_loop(0, 4, lambda i, x: jnp.tanh(jnp.dot(x, weight)), x)
    return jnp.dot(x, weight), None

  with jax.named_scope("stage_3"):
    x, _ = jax.lax.scan(outer, x, w)
  return jax.lax.psum(x, "data")


def branches(x, w):
  """Computes one product in one branch and three in the other."""
  return jax.lax.cond(
    x[0, 0] > 0, lambda: jnp.dot(x, w[0]), lambda: jnp.dot(jnp.dot(jnp.dot(x, w[0]), w[1]), w[2])
  )


def transfers(x, w):
  """Gathers weights and passes the input around a ring while it multiplies, also in a loop."""

  def step(passed, weight):
    product = jnp.tanh(jnp.dot(passed, weight))
    moved = jax.lax.ppermute(passed, "data", RING)
    # Without this, the compiler ends the transfer before the product.
    moved, product = jax.lax.optimization_barrier((moved, product))
    return moved + product, None

  x, _ = jax.lax.scan(step, x, w)
  gathered = jax.lax.all_gather(w[0, :128], "data", axis=0, tiled=True)
  x, gathered = jax.lax.optimization_barrier((jnp.dot(x, w[1]), gathered))
  return jnp.dot(x, gathered)


def main(folder):
  mesh = jax.make_mesh(
    (4,),
    ("data",),
    (jax.sharding.AxisType.Auto,),
    devices=describe_devices(parse_topology("v4:2x2x1")),
  )
  x = jax.ShapeDtypeStruct((2048, 512), jnp.bfloat16, sharding=NamedSharding(mesh, P("data")))
  w = jax.ShapeDtypeStruct((3, 512, 512), jnp.bfloat16, sharding=NamedSharding(mesh, P()))
  for name, function, out, options in (
    ("loops", loops, P(), {}),
    ("branches", branches, P("data"), {}),
    ("transfers", transfers, P("data"), {"xla_enable_async_all_gather": "true"}),
  ):
    sharded = jax.shard_map(
      function, mesh=mesh, in_specs=(P("data"), P()), out_specs=out, check_vma=False
    )
    text = jax.jit(sharded).lower(x, w).compile(compiler_options=options).as_text()
    text = re.sub(r'"debug":"[^"]*"', '"debug":""', text)
    (pathlib.Path(folder) / f"{name}.hlo").write_text(text)


if __name__ == "__main__":
  main(*sys.argv[1:])
