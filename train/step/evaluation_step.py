"""The evaluation step and the step that computes features, as pure functions over a mesh."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from nfnet.images.normalization import normalize
from nfnet.model import NFNet, apply, pooled_features
from train.config.experiment import Loss
from train.step.losses import targets_from_labels
from train.step.scores import score_sums
from train.step.sharding.batch import Batch
from train.step.sharding.mesh import DATA_AXES
from train.step.sharding.parameters import gather, parameter_specs


def make_evaluation_step(
  model: NFNet, loss: Loss, mesh: Mesh, *, counts_confusion: bool = False
) -> Callable[[Any, Batch], dict[str, Array]]:
  """Returns the pure function (parameters, batch) -> `score_sums` over the global batch.

  Args:
    model: the network; it runs without dropout and stochastic depth.
    loss: kind of loss; its label smoothing is ignored.
    mesh: mesh of devices.
    counts_confusion: see `score_sums`.
  """
  specs = parameter_specs(model, mesh)

  def step_on_device(parameters: Any, batch: Batch) -> dict[str, Array]:
    parameters = gather(parameters, specs, model.compute_dtype)
    logits = apply(model, parameters, normalize(batch["image"]))
    targets = targets_from_labels(batch["labels"], logits.shape[-1])
    sums = score_sums(loss, logits, targets, batch["weight"], counts_confusion=counts_confusion)
    return jax.lax.psum(sums, DATA_AXES)

  return jax.shard_map(step_on_device, mesh=mesh, in_specs=(specs, P(DATA_AXES)), out_specs=P())


def make_feature_step(model: NFNet, mesh: Mesh) -> Callable[[Any, Batch], Float[Array, "n c"]]:
  """Returns the pure function (parameters, batch) -> the classifier's input for each example.

  Args:
    model: the network; it runs without stochastic depth.
    mesh: mesh of devices.
  """
  specs = parameter_specs(model, mesh)

  def step_on_device(parameters: Any, batch: Batch) -> Float[Array, "n c"]:
    parameters = gather(parameters, specs, model.compute_dtype)
    return pooled_features(model, parameters, normalize(batch["image"]))

  return jax.shard_map(
    step_on_device, mesh=mesh, in_specs=(specs, P(DATA_AXES)), out_specs=P(DATA_AXES)
  )
