"""Sharding of a batch over the devices, and checks that its size divides among them."""

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

Batch = Mapping[str, Any]
"""Arrays of a global batch: image uint8 [n, h, w, 3]; labels int32 [n, l], -1 for none; weight
float32 [n], 0 or 1; position int32 [n] in the global batch."""

_FROM_PIPELINE = ("image", "labels", "weight")


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of a batch's arrays: examples spread over all devices."""
  return NamedSharding(mesh, P(DATA_AXES))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
  """Puts the arrays that a step uses on the devices; the ids stay on the host.

  Examples are distributed over a process's devices as `train.data` distributes them over processes:
  each of n devices gets every n-th example of the global batch.

  Args:
    batch: this process's part of the batch, from `train.data`.
    mesh: mesh of devices.

  Returns:
    A `Batch` of all processes.
  """
  local = {name: batch[name] for name in _FROM_PIPELINE}
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


def check_batch_size(field: str, batch_size: int, mesh: Mesh) -> None:
  """Raises UserError unless every device gets the same number of examples.

  Args:
    field: name of the configuration's field, for the message.
    batch_size: number of images per step over all devices.
    mesh: mesh of devices.
  """
  _check_multiple(field, batch_size, mesh, parts=1)


def check_train_batch(
  experiment: Experiment, mesh: Mesh, *, field: str = "data.batch_size"
) -> None:
  """Raises UserError unless all devices get the same number of examples, parts and groups.

  Gradient accumulation needs equal parts, SAM whole groups, and MixUp and CutMix quarters.

  Args:
    experiment: experiment to be trained.
    mesh: mesh of devices.
    field: name of the field that the batch size comes from, for the message.
  """
  batch_size, parts = experiment.data.batch_size, experiment.optimizer.gradient_accumulation
  _check_multiple(field, batch_size, mesh, parts)
  images = batch_size // mesh.size
  if experiment.mixing.is_on and images % IMAGES_MULTIPLE:
    raise UserError(
      f"{field}={batch_size} gives each of {mesh.size} devices {images} images; MixUp and CutMix "
      f"(mixing) mix quarters of them, so take a multiple of {IMAGES_MULTIPLE * mesh.size}"
    )
  group_images = experiment.sharpness.group_images
  if group_images is None:
    return
  if images % group_images:
    raise UserError(
      f"sharpness.group_images={group_images} does not divide the {images} examples that each of "
      f"{mesh.size} devices has of {field}={batch_size}; take a divisor"
    )
  groups = images // group_images
  if max(groups, parts) % min(groups, parts):
    raise UserError(
      f"optimizer.gradient_accumulation={parts} and sharpness.group_images={group_images}: each of "
      f"{mesh.size} devices has {groups} groups; the number of accumulated parts must be a "
      "multiple or a divisor of that"
    )


def _check_multiple(field: str, batch_size: int, mesh: Mesh, parts: int) -> None:
  if batch_size % (mesh.size * parts):
    split = f"{mesh.size} devices" + (f" x {parts} accumulated parts" if parts > 1 else "")
    raise UserError(
      f"{field}={batch_size} does not divide among {split}; take a multiple of {mesh.size * parts}"
    )
