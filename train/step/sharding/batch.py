"""Batches from the host to the devices."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from nfnet.errors import UserError
from train.config.experiment import Experiment
from train.step.mixing import IMAGES_MULTIPLE
from train.step.sharding.mesh import DATA_AXES

_ON_DEVICE = ("image", "labels", "weight")


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Examples spread over all devices."""
  return NamedSharding(mesh, P(DATA_AXES))


def put_batch(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """The arrays that a step uses, spread over the devices; the ids stay behind.

  Examples are dealt out to a process's devices as `train.data.batches` deals them out to
  processes: each of n devices gets every n-th example of the global batch.

  Args:
    batch: what this process has of it, as `train.data.batches` deals it out.
    mesh: of devices.

  Returns:
    The arrays of all processes, with "position" in the global batch.
  """
  local = {name: batch[name] for name in _ON_DEVICE}
  batch_size = len(batch["weight"]) * jax.process_count()
  local["position"] = (batch["position"] % batch_size).astype(np.int32)
  sharding = batch_sharding(mesh)
  devices = len(sharding.addressable_devices)
  return {
    name: jax.make_array_from_process_local_data(
      sharding, np.concatenate([array[i::devices] for i in range(devices)])
    )
    for name, array in local.items()
  }


def check_batch_size(field: str, batch_size: int, mesh: jax.sharding.Mesh) -> None:
  """Raises UserError unless every device gets the same number of examples.

  Args:
    field: of the configuration, named in the message.
    batch_size: over all devices.
    mesh: of devices.
  """
  _check_multiple(field, batch_size, mesh, parts=1)


def check_train_batch(
  experiment: Experiment, mesh: jax.sharding.Mesh, *, field: str = "data.batch_size"
) -> None:
  """Raises UserError unless the devices get equal examples, in each of their parts and groups.

  Args:
    experiment: with gradient accumulation and SAM, or without.
    mesh: of devices.
    field: named in the message.
  """
  batch_size, parts = experiment.data.batch_size, experiment.optimizer.gradient_accumulation
  _check_multiple(field, batch_size, mesh, parts)
  if experiment.mixing.is_on and batch_size // mesh.size % IMAGES_MULTIPLE:
    raise UserError(
      f"{field}={batch_size} gives each of {mesh.size} devices {batch_size // mesh.size} images; "
      f"MixUp and CutMix (mixing) mix quarters of them, so take a multiple of {IMAGES_MULTIPLE}"
    )
  group_images = experiment.sharpness.group_images
  if group_images is None:
    return
  images = batch_size // mesh.size
  if images % group_images:
    raise UserError(
      f"sharpness.group_images={group_images} does not divide the {images} examples that each of "
      f"{mesh.size} devices has of {field}={batch_size}; take a divisor"
    )
  groups = images // group_images
  if max(groups, parts) % min(groups, parts):
    raise UserError(
      f"optimizer.gradient_accumulation={parts} and sharpness.group_images={group_images}: each of "
      f"{mesh.size} devices has {groups} groups; take a multiple or a divisor of that for the parts"
    )


def _check_multiple(field: str, batch_size: int, mesh: jax.sharding.Mesh, parts: int) -> None:
  if batch_size % (mesh.size * parts):
    split = f"{mesh.size} devices" + (f" x {parts} accumulated parts" if parts > 1 else "")
    raise UserError(f"{field}={batch_size} does not divide among {split}; take a multiple")
