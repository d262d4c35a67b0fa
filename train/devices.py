"""Batches from the host to the devices."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from nfnet.errors import UserError
from train.sharding import batch_sharding

_ON_DEVICE = ("image", "labels", "weight")


def put_batch(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """The arrays that a step uses, spread over the devices; the ids stay behind.

  Args:
    batch: what this process has of it, as `train.data` deals it out.
    mesh: of devices.

  Returns:
    The arrays of all processes, with "position" in the global batch.
  """
  local = {name: batch[name] for name in _ON_DEVICE}
  batch_size = len(batch["weight"]) * jax.process_count()
  local["position"] = (batch["position"] % batch_size).astype(np.int32)
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, array) for name, array in local.items()
  }


def check_batch_size(
  field: str, batch_size: int, mesh: jax.sharding.Mesh, *, parts: int = 1
) -> None:
  """Raises UserError unless every device gets the same number of examples in each part.

  Args:
    field: of the configuration, named in the message.
    batch_size: over all devices.
    mesh: of devices.
    parts: that each device's share is split into (gradient accumulation).
  """
  if batch_size % (mesh.size * parts):
    split = f"{mesh.size} devices" + (f" x {parts} accumulated parts" if parts > 1 else "")
    raise UserError(f"{field}={batch_size} does not divide among {split}; take a multiple")
