"""The mesh of devices: replicas x parameter shards."""

import jax
from jax.sharding import Mesh

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
    UserError: `parameter_shards` does not divide the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  shape = mesh_shape(len(devices), parameter_shards)
  return jax.make_mesh(shape, DATA_AXES, (jax.sharding.AxisType.Auto,) * 2, devices=devices)


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
