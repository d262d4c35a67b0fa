"""Compiles for a TPU, with the options of the training step, what gathers weights and uses them.

`python -m tests.train.step.gathering_program` prints the compiled program. It needs the environment
of `profiling.compile.worker_process`.
"""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from profiling.compile.topology import describe_devices, parse_topology
from train.step.sharding.mesh import DATA_AXES, SHARD_AXIS, make_mesh
from train.step.train_step import COMPILER_OPTIONS

LAYERS = 6


def layers(weights, x):
  """Multiplies with one whole weight after another."""
  gathered = [jax.lax.all_gather(weight, SHARD_AXIS, tiled=True) for weight in weights]
  for weight in gathered:
    x = jnp.tanh(x @ weight)
  return x


if __name__ == "__main__":
  mesh = make_mesh(describe_devices(parse_topology("v4:2x2x1")), parameter_shards=4)

  def described(rows, spec):
    return jax.ShapeDtypeStruct((rows, 2048), jnp.bfloat16, sharding=NamedSharding(mesh, spec))

  program = jax.shard_map(
    layers, mesh=mesh, in_specs=(P(SHARD_AXIS), P(DATA_AXES)), out_specs=P(DATA_AXES)
  )
  operands = [described(2048, P(SHARD_AXIS))] * LAYERS, described(4096, P(DATA_AXES))
  jitted = jax.jit(program, compiler_options=COMPILER_OPTIONS["tpu"])
  print(jitted.lower(*operands).compile().as_text())
