"""Standardizes filters once per step, before they travel to the other devices.

The gradient of the standardization is linear in the incoming gradient, so it is applied after the
sum over devices, to a device's own part of the filters. In between, a filter is a
`kernels.StandardizedFilters`, whose gradient belongs to its `gradient_sink`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from kernels import StandardizedFilters
from nfnet.model import NFNet, standardized
from train.step.sharding.mesh import SHARD_AXIS


def is_filters(leaf: Any) -> bool:
  """Returns whether a part of a parameter tree is to be treated as a leaf: standardized filters."""
  return isinstance(leaf, StandardizedFilters)


def standardize(
  model: NFNet, parameters: Any, specs: Any, gradient_dtype: jnp.dtype
) -> tuple[Any, Callable[[Any], Any]]:
  """Returns parameters with standardized filters, and the function that takes gradients back.

  Args:
    model: the network.
    parameters: a device's parts of the parameters.
    specs: partition specs of the parameters; where a weight is divided, this is to be called inside
      of `shard_map`.
    gradient_dtype: dtype of the gradients of the filters.

  Returns:
    Parameters for `nfnet.model.apply`, and a function from gradients like
    `differentiated(parameters)` to gradients like the parameters that were given.
  """

  def filters_and_all(parameters):
    own = _with_gains_of_part(parameters, specs)
    prepared = jax.tree.map(
      lambda new, old: new if is_filters(new) else old,
      standardized(model, own, gradient_dtype=gradient_dtype),
      parameters,
      is_leaf=is_filters,
    )
    return list(filter(is_filters, jax.tree.leaves(prepared, is_leaf=is_filters))), prepared

  _, pull_back, prepared = jax.vjp(filters_and_all, parameters, has_aux=True)

  def gradients_of_parameters(gradients: Any) -> Any:
    leaves = jax.tree.leaves(prepared, is_leaf=is_filters)
    cotangents = [
      StandardizedFilters(jnp.zeros_like(leaf.rows), gradient)
      for leaf, gradient in zip(leaves, jax.tree.leaves(gradients), strict=True)
      if is_filters(leaf)
    ]
    (of_filters,) = pull_back(cotangents)
    return _with_filters(prepared, gradients, of_filters)

  return prepared, gradients_of_parameters


def _with_gains_of_part(parameters: Any, specs: Any) -> Any:
  """Returns parameters in which gains, which every device has whole, are cut as their weights are.

  The derivative adds the shards' parts of a gain's gradient up.
  """
  if not isinstance(parameters, Mapping):
    return parameters
  if "gain" in parameters and SHARD_AXIS in specs["weight"]:
    outputs = parameters["weight"].shape[-1]
    first = jax.lax.axis_index(SHARD_AXIS) * outputs
    gain = jax.lax.dynamic_slice_in_dim(parameters["gain"], first, outputs, axis=-1)
    return {**parameters, "gain": gain}
  return {key: _with_gains_of_part(parameters[key], specs[key]) for key in parameters}


def _with_filters(prepared: Any, gradients: Any, of_filters: Any) -> Any:
  """Returns gradients in which those of standardized layers' weights and gains are replaced."""
  if not isinstance(prepared, Mapping):
    return gradients
  if is_filters(prepared.get("weight")):
    return {**gradients, "weight": of_filters["weight"], "gain": of_filters["gain"]}
  return {key: _with_filters(prepared[key], gradients[key], of_filters[key]) for key in prepared}


def differentiated(parameters: Any) -> Any:
  """Returns what a gradient is taken of: the parameters, and the sinks of standardized filters."""
  return jax.tree.map(
    lambda leaf: leaf.gradient_sink if is_filters(leaf) else leaf, parameters, is_leaf=is_filters
  )


def with_differentiated(parameters: Any, arrays: Any) -> Any:
  """Returns the parameters with other arrays in place of `differentiated(parameters)`."""
  return jax.tree.map(
    lambda leaf, array: leaf._replace(gradient_sink=array) if is_filters(leaf) else array,
    parameters,
    arrays,
    is_leaf=is_filters,
  )


def specs_of_filters(prepared: Any, specs: Any) -> Any:
  """Returns the partition specs of `differentiated(prepared)`.

  Args:
    prepared: parameters with standardized filters.
    specs: partition specs of the parameters, which divide filters along their last axis if at all.
  """

  def spec_of(leaf, spec: P) -> P:
    if not is_filters(leaf) or SHARD_AXIS not in spec:
      return spec
    # [kh, kw, i, o] has become [taps, tiles of i, o, 128].
    return P(*[None] * (spec.index(SHARD_AXIS) - 1), SHARD_AXIS)

  return jax.tree.map(spec_of, prepared, specs, is_leaf=is_filters)
