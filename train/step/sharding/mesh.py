"""The mesh of devices: replicas x parameter shards."""

import collections
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from nfnet.errors import UserError

REPLICA_AXIS, SHARD_AXIS = "replica", "shard"
DATA_AXES = (REPLICA_AXIS, SHARD_AXIS)
"""Axes over which the examples of a batch are spread."""


def make_mesh(devices: list[jax.Device] | None = None, *, parameter_shards: int = 1) -> Mesh:
  """Returns a mesh of devices.

  Args:
    devices: devices in the order in which they get examples; None takes all devices.
    parameter_shards: number of devices that hold one copy of the parameters together.

  Raises:
    UserError: `parameter_shards` does not divide the number of devices, or these are of several
      slices.
  """
  grid = device_grid(jax.devices() if devices is None else devices, parameter_shards)
  return Mesh(grid, DATA_AXES, axis_types=(AxisType.Auto,) * 2)


def device_grid(devices: Sequence[Any], parameter_shards: int) -> np.ndarray:
  """Returns devices as a grid [replicas, shards], in which successive shards are neighbors.

  Args:
    devices: devices of JAX, or what describes them.
    parameter_shards: number of devices in a row.

  Raises:
    UserError: see `make_mesh`.
  """
  shape = mesh_shape(len(devices), parameter_shards)
  slices = {getattr(device, "slice_index", 0) for device in devices}
  if len(slices) > 1:
    raise UserError(
      f"the devices are of {len(slices)} TPU slices; train on one, whose links connect all chips"
    )
  grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  return np.stack([np.array(_in_ring(row)) for row in grid])


def _in_ring(devices: Sequence[Any], axis: int = 0) -> list[Any]:
  """Returns the devices of a row along a way on which each is linked with the next one.

  It runs to and fro along the last axis. If there are two chips or a torus along the first one, the
  last device is linked with the first, too.
  """
  coordinates = getattr(devices[0], "coords", ())
  if axis >= len(coordinates):
    return list(devices)
  groups = collections.defaultdict(list)
  for device in devices:
    groups[device.coords[axis]].append(device)
  ring = []
  for number, place in enumerate(sorted(groups)):
    along = _in_ring(groups[place], axis + 1)
    ring += reversed(along) if number % 2 else along
  return ring


def mesh_shape(devices: int, parameter_shards: int) -> tuple[int, int]:
  """Returns the numbers of replicas and of parameter shards of a mesh.

  Raises:
    UserError: `parameter_shards` does not divide the number of devices.
  """
  if devices % parameter_shards:
    raise UserError(
      f"parallelism.parameter_shards={parameter_shards} does not divide the {devices} devices; "
      "take a divisor"
    )
  return devices // parameter_shards, parameter_shards


def cores_of(device: jax.Device) -> int:
  """Returns the number of cores of a device: a TPU v4 chip is one device with two cores."""
  return getattr(device, "num_cores", None) or 1
