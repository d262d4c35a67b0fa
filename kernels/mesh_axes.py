"""Marks the operands of an op as different on each device, where one of them is."""

from typing import Any

import jax


def vary_alike(*operands: Any) -> tuple[Any, ...]:
  """Returns operands that all vary over the mesh axes over which one of them does.

  Inside `shard_map`, JAX's own ops do this to their operands: images vary, and a weight that all
  devices share is marked as varying, which sums its gradient over the devices. An op that has a
  derivative of its own, or that depends on the platform, needs operands for which it is done. In
  any other place, and with `check_vma=False`, nothing varies.

  Args:
    *operands: trees of arrays.
  """
  leaves = jax.tree.leaves(operands)
  axes = sorted(set().union(*map(_axes, leaves)), key=str)

  def vary(leaf):
    missing = tuple(axis for axis in axes if axis not in _axes(leaf))
    return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

  return jax.tree.map(vary, operands)


def _axes(leaf: Any) -> frozenset[Any]:
  return jax.typeof(leaf).manual_axis_type.varying
