"""Sharding of parameters: which device holds which part, and how parts become whole again.

The devices are a grid of replicas and parameter shards. Examples are spread over all of them. Large
parameters, with their momentum and moving average, are divided into one part for each shard, along
the output channels where that is possible: what the optimizer computes of a part, norms of filters
among it, then needs no other device. Devices of one shard in different replicas hold the same. With
one shard, everything is on every device. `train.step.parameter_groups` names the axis of each
parameter.

Paper A, section 2, names no layout; this is what is elsewhere called sharded data parallelism
(https://arxiv.org/abs/2004.13336), with replicas so that a part stays wide enough for the lanes of
a TPU on slices of any size.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from nfnet.block_arrangement import arrange_blocks
from nfnet.model import NFNet
from train.step.parameter_groups import ParameterRole, parameter_roles
from train.step.sharding.mesh import DATA_AXES, REPLICA_AXIS, SHARD_AXIS


def put_parameters(model: NFNet, parameters: Any, mesh: Mesh) -> Any:
  """Puts parameters on the devices, in the arrangement in which a model runs its blocks.

  Args:
    model: the network.
    parameters: like `nfnet.model.parameter_shapes(model)`, on the host.
    mesh: of devices.
  """
  arranged = arrange_blocks(parameters, model.block_keys)
  return jax.device_put(arranged, shardings(parameter_specs(model, mesh), mesh))


def parameter_specs(model: NFNet, mesh: Mesh) -> Any:
  """Returns what each parameter of a network is divided along.

  Args:
    model: the network.
    mesh: of `train.step.sharding.mesh.make_mesh`.

  Returns:
    `PartitionSpec`s in a tree like `train.step.model.arranged_parameter_shapes(model)`.
  """
  return jax.tree.map(parameter_spec, parameter_roles(model, mesh))


def parameter_spec(role: ParameterRole) -> P:
  """Returns what a parameter is divided along; P() if it is whole on every device."""
  return P() if role.sharded_axis is None else P(*[None] * role.sharded_axis, SHARD_AXIS)


def shardings(specs: Any, mesh: Mesh) -> Any:
  """Returns a tree of `PartitionSpec`s as the same tree of `NamedSharding`s."""
  return jax.tree.map(
    lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P)
  )


def gather(parameters: Any, specs: Any, dtype: jnp.dtype) -> Any:
  """Returns whole float32 parameters on each device; to be called inside of `shard_map`.

  The results are marked as different on each device ("varying"). Differentiation by them then gives
  each device's own gradients, which `sum_gradients` adds up in one visible place; left to the
  derivative of replicated parameters, every operation would hide a sum.

  Args:
    parameters: the device's parts, float32.
    specs: of `parameter_specs`.
    dtype: that parts are rounded to before they travel: they are multiplied in it anyway. A
      parameter that is whole already is not rounded.
  """

  def whole(leaf: Array, spec: P) -> Array:
    varying_over = DATA_AXES
    if SHARD_AXIS in spec:
      axis = spec.index(SHARD_AXIS)
      leaf = jax.lax.all_gather(leaf.astype(dtype), SHARD_AXIS, axis=axis, tiled=True)
      # The gathered array is of a type that varies over the shards already.
      varying_over = (REPLICA_AXIS,)
    return jax.lax.pcast(leaf, varying_over, to="varying").astype(jnp.float32)

  return jax.tree.map(whole, parameters, specs)


def sum_gradients(gradients: Any, specs: Any, dtype: jnp.dtype) -> Any:
  """Returns sums over all devices, divided as the parameters are; for use inside of `shard_map`.

  Args:
    gradients: of the examples of each device, float32.
    specs: of `parameter_specs`.
    dtype: in which gradients travel and are returned; each sum of two is rounded to it.
  """

  def total(gradient: Array, spec: P) -> Array:
    gradient = gradient.astype(dtype)
    if SHARD_AXIS not in spec:
      return jax.lax.psum(gradient, DATA_AXES)
    axis = spec.index(SHARD_AXIS)
    part = jax.lax.psum_scatter(gradient, SHARD_AXIS, scatter_dimension=axis, tiled=True)
    return jax.lax.psum(part, REPLICA_AXIS)

  return jax.tree.map(total, gradients, specs)
