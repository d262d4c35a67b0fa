"""The mesh of devices: replicas x parameter shards."""

import jax
from jax.sharding import Mesh

from nfnet.errors import UserError

REPLICA_AXIS, SHARD_AXIS = "replica", "shard"
DATA_AXES = (REPLICA_AXIS, SHARD_AXIS)
"""Over which examples are spread."""


def make_mesh(devices: list[jax.Device] | None = None, *, parameter_shards: int = 1) -> Mesh:
  """A mesh of all devices (or of `devices`).

  Args:
    devices: in the order in which they get examples.
    parameter_shards: devices that hold one copy of the parameters together.

  Raises:
    UserError: the devices cannot be divided so.
  """
  devices = jax.devices() if devices is None else devices
  shape = mesh_shape(len(devices), parameter_shards)
  return jax.make_mesh(shape, DATA_AXES, (jax.sharding.AxisType.Auto,) * 2, devices=devices)


def mesh_shape(devices: int, parameter_shards: int) -> tuple[int, int]:
  """Replicas and shards of a mesh.

  Raises:
    UserError: the devices cannot be divided so.
  """
  if devices % parameter_shards:
    raise UserError(
      f"parallelism.parameter_shards={parameter_shards} does not divide the {devices} devices"
    )
  return devices // parameter_shards, parameter_shards
