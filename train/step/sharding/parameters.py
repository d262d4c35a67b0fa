"""Which device holds what.

The devices are a grid of replicas and shards. Examples are spread over all of them. Large
parameters, with their momentum and moving average, are cut into one part for each shard, along the
output channels where that is possible: what the optimizer computes of them, norms of filters among
it, then needs no other device. Devices of one shard in different replicas hold the same. With one
shard, everything is on every device.

Paper A, section 2, names no layout; this is what is elsewhere called sharded data parallelism
(https://arxiv.org/abs/2004.13336), with replicas so that a shard stays wide enough for the lanes of
a TPU on slices of any size.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from nfnet.block_arrangement import is_stacked
from train.step.optimizer import SGDAGCState
from train.step.parameter_groups import parameter_name
from train.step.sharding.mesh import DATA_AXES, REPLICA_AXIS, SHARD_AXIS
from train.step.state import TrainState


def parameter_specs(parameters: Any, mesh: Mesh) -> Any:
  """The tree of what each parameter is cut along.

  Filters and matrices are cut along their outputs; the classifier's weight, which AGC leaves alone
  and whose outputs are the classes, along its inputs. Vectors, and what does not divide, are whole
  everywhere.

  Args:
    parameters: arrays or shapes in the arrangement in which they run.
    mesh: of `make_mesh`.
  """
  shards = mesh.shape[SHARD_AXIS]

  def spec(path, leaf):
    stacked = any(is_stacked(key.key) for key in path)
    axis = leaf.ndim - (2 if parameter_name(path) == "classifier/weight" else 1)
    if leaf.ndim - stacked < 2 or shards == 1 or leaf.shape[axis] % shards:
      return P()
    return P(*[None] * axis, SHARD_AXIS)

  return jax.tree_util.tree_map_with_path(spec, parameters)


def state_specs(specs: Any, *, has_ema: bool) -> TrainState:
  """Of a whole training state, given those of its parameters."""
  optimizer = SGDAGCState(step=P(), momentum=specs)
  return TrainState(specs, optimizer, specs if has_ema else None)


def shardings(specs: Any, mesh: Mesh) -> Any:
  """The same tree, of shardings."""
  return jax.tree.map(
    lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P)
  )


def gather(parameters: Any, specs: Any, dtype: jnp.dtype) -> Any:
  """Whole float32 parameters on each device, of type "varying".

  To be called inside of `shard_map`. Parts are rounded to `dtype` before they travel: they are
  multiplied in it anyway. What is whole already stays as it is.
  """

  def whole(leaf: Array, spec: P) -> Array:
    if SHARD_AXIS in spec:
      axis = spec.index(SHARD_AXIS)
      leaf = jax.lax.all_gather(leaf.astype(dtype), SHARD_AXIS, axis=axis, tiled=True)
    missing = set(DATA_AXES) - jax.typeof(leaf).manual_axis_type.varying
    return jax.lax.pcast(leaf, tuple(missing), to="varying").astype(jnp.float32)

  return jax.tree.map(whole, parameters, specs)


def sum_gradients(gradients: Any, specs: Any, dtype: jnp.dtype) -> Any:
  """Sums over all devices, cut as the parameters are and of `dtype`; inside of `shard_map`.

  Args:
    gradients: of the examples of each device, float32.
    specs: of `parameter_specs`.
    dtype: in which gradients travel; each sum of two is rounded to it.
  """

  def total(gradient: Array, spec: P) -> Array:
    gradient = gradient.astype(dtype)
    if SHARD_AXIS not in spec:
      return jax.lax.psum(gradient, DATA_AXES)
    axis = spec.index(SHARD_AXIS)
    part = jax.lax.psum_scatter(gradient, SHARD_AXIS, scatter_dimension=axis, tiled=True)
    return jax.lax.psum(part, REPLICA_AXIS)

  return jax.tree.map(total, gradients, specs)
