"""Sharding of parameters: which device holds which part, and how parts become whole again.

The devices are a grid of replicas and parameter shards. Examples are spread over all of them. Large
parameters, with their momentum and moving average, are divided into one part for each shard, along
the output channels where that is possible: the optimizer can then update a part, including the
norms of its filters, without any other device. Devices of the same shard in different replicas hold
the same values. With one shard, every device holds everything. `train.step.parameter_groups` names
the axis of each parameter.

Paper A, section 2, does not describe its layout. This one is known as sharded data parallelism
(https://arxiv.org/abs/2004.13336); the replicas keep each part wide enough for the lanes of a TPU
on slices of any size.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from kernels import Implementation, StandardizedFilters
from kernels.scaled_ws_conv.filters import with_gradient_sink
from nfnet.block_arrangement import arrange_blocks
from nfnet.model import NFNet, parameter_name
from train.step.parameter_groups import ParameterRole, parameter_roles
from train.step.sharding.mesh import DATA_AXES, REPLICA_AXIS, SHARD_AXIS
from train.step.sharding.rings import Rings, finish, start_rings
from train.step.sharding.standardized_filters import is_filters

SMALL_ELEMENTS_MAX = 1 << 15
"""Largest size of a gradient that is not rounded for its way to other devices if it is not divided
among them. These are gains and biases for the most part, a thousand arrays with less than a
hundredth of all bytes: rounding each of them would take longer than sending them all."""


def put_parameters(model: NFNet, parameters: Any, mesh: Mesh) -> Any:
  """Puts parameters on the devices, in the arrangement in which a model runs its blocks.

  Args:
    model: the network.
    parameters: like `nfnet.model.parameter_shapes(model)`, on the host.
    mesh: mesh of devices.
  """
  arranged = arrange_blocks(parameters, model.block_keys)
  return jax.device_put(arranged, shardings(parameter_specs(model, mesh), mesh))


def parameter_specs(model: NFNet, mesh: Mesh) -> Any:
  """Returns the partition spec of each parameter of a network.

  Args:
    model: the network.
    mesh: mesh from `train.step.sharding.mesh.make_mesh`.

  Returns:
    `PartitionSpec`s in a tree like `train.step.model.arranged_parameter_shapes(model)`.
  """
  return jax.tree.map(parameter_spec, parameter_roles(model, mesh))


def parameter_spec(role: ParameterRole) -> P:
  """Returns the partition spec of a parameter; P() if it is whole on every device."""
  return P() if role.sharded_axis is None else P(*[None] * role.sharded_axis, SHARD_AXIS)


def shardings(specs: Any, mesh: Mesh) -> Any:
  """Returns a tree of `PartitionSpec`s as the same tree of `NamedSharding`s."""
  return jax.tree.map(
    lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P)
  )


def gather(parameters: Any, specs: Any, dtype: jnp.dtype) -> Any:
  """Returns whole parameters on each device, in float32; to be called inside of `shard_map`.

  The results are marked as different on each device ("varying"). Differentiating with respect to
  them therefore gives each device's own gradients, which `sum_gradients` adds up in one visible
  place; with replicated parameters, the derivative of every operation would hide a sum.

  Args:
    parameters: the device's parts: float32, or standardized filters, which keep their dtype.
    specs: partition specs of `train.step.sharding.standardized_filters.differentiated(parameters)`.
    dtype: dtype that parts are rounded to before they travel, since the network multiplies in it
      anyway. A parameter that is whole already is not rounded.
  """

  def whole(leaf: Array | StandardizedFilters, spec: P) -> Array | StandardizedFilters:
    if is_filters(leaf):
      rows = varying(leaf.rows, spec)
      return with_gradient_sink(rows, leaf.gradient_sink.dtype)
    return varying(leaf if SHARD_AXIS not in spec else leaf.astype(dtype), spec).astype(jnp.float32)

  def varying(leaf: Array, spec: P) -> Array:
    varying_over = DATA_AXES
    if SHARD_AXIS in spec:
      axis = spec.index(SHARD_AXIS)
      leaf = jax.lax.all_gather(leaf, SHARD_AXIS, axis=axis, tiled=True)
      # The type of the gathered array varies over the shards already.
      varying_over = (REPLICA_AXIS,)
    return jax.lax.pcast(leaf, varying_over, to="varying")

  return jax.tree.map(whole, parameters, specs, is_leaf=is_filters)


def rounded_for_gradients(
  parameters: Any, roles: Any, dtype: jnp.dtype, gradient_dtype: jnp.dtype
) -> Any:
  """Returns parameters in which weights whose gradients kernels compute have the gradients' dtype.

  If gradients travel in another dtype than weights, nothing is changed, since that would round the
  weights once more.

  Args:
    parameters: whole parameters, as `gather` returns them.
    roles: `ParameterRole`s of the parameters.
    dtype: compute dtype, to which such weights have been rounded.
    gradient_dtype: dtype in which gradients travel.
  """
  if dtype != gradient_dtype:
    return parameters
  return jax.tree.map(
    lambda leaf, role: leaf.astype(dtype) if role.has_gradient_kernel else leaf,
    parameters,
    roles,
    is_leaf=is_filters,
  )


def start_sums(
  gradients: Any, specs: Any, dtype: jnp.dtype, implementation: Implementation
) -> Rings:
  """Returns sums over the shards that are about to start.

  Args:
    gradients: gradients of this device's examples, for all parameters or some.
    specs: partition specs of the gradients of all parameters. Those that are not divided are left
      out.
    dtype: dtype in which gradients travel; each sum of two is rounded to it.
    implementation: "reference" or "pallas".
  """
  axes = {
    parameter_name(path): spec.index(SHARD_AXIS)
    for path, spec in jax.tree.leaves_with_path(specs, is_leaf=lambda x: isinstance(x, P))
    if SHARD_AXIS in spec
  }
  divided = {
    name: gradient.astype(dtype)
    for path, gradient in jax.tree.leaves_with_path(gradients)
    if (name := parameter_name(path)) in axes
  }
  return start_rings(divided, axes, implementation)


def sum_gradients(gradients: Any, rings: Rings, dtype: jnp.dtype) -> Any:
  """Returns sums over all devices, divided as the parameters are; for use inside of `shard_map`.

  Args:
    gradients: gradients of this device's examples, float32 or `dtype`.
    rings: those sums over the shards that have been started.
    dtype: dtype in which gradients travel and are returned; each sum of two is rounded to it. Small
      gradients stay as they are.
  """
  parts = finish(rings)

  def total(path: Any, gradient: Array) -> Array:
    name = parameter_name(path)
    if name in parts:
      return jax.lax.psum(parts[name], REPLICA_AXIS)
    if gradient.size > SMALL_ELEMENTS_MAX:
      gradient = gradient.astype(dtype)
    return jax.lax.psum(gradient, DATA_AXES)

  return jax.tree.map_with_path(total, gradients)
