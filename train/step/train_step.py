"""One step of training as a pure function over a mesh of devices.

    batch       mixed by MixUp and CutMix                  mixing
    parameters  filters standardized, if kernels run       sharding.standardized_filters
                gathered from the parameter shards         sharding.parameters
    loss        mean over the global batch                 losses
    gradients   of this device, segment by segment,        gradients.backpropagation
                in parts or in groups of its examples      gradients.accumulation, .sharpness_aware
                summed over devices                        sharding.rings, sharding.parameters
                through the standardization's derivative   sharding.standardized_filters
    state       the next parameters, momentum and average  optimizer

All arithmetic of a device is inside `shard_map`, where Pallas kernels see their local shard. This
package imports no input pipeline, checkpoint or metrics code, so that `profiling` can compile
exactly the step that `train.run` runs.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from nfnet.images.normalization import normalize
from nfnet.model import NFNet
from train.config.experiment import Experiment
from train.step.example_keys import example_keys
from train.step.gradients.accumulation import accumulate
from train.step.gradients.backpropagation import backpropagate
from train.step.gradients.sharpness_aware import sharpness_aware
from train.step.losses import example_losses, example_weights
from train.step.mixing import mix, mixed_targets
from train.step.optimizer import Optimizer
from train.step.parameter_groups import parameter_roles
from train.step.scores import hits_in_top
from train.step.sharding.batch import Batch
from train.step.sharding.mesh import DATA_AXES
from train.step.sharding.parameters import (
  gather,
  parameter_spec,
  rounded_for_gradients,
  start_sums,
  sum_gradients,
)
from train.step.sharding.rings import Rings
from train.step.sharding.standardized_filters import (
  specs_of_filters,
  standardize,
)
from train.step.state import TrainState, skip_step, state_specs

Metrics = dict[str, Float[Array, ""]]

COMPILER_OPTIONS = {
  "tpu": {
    "xla_enable_async_all_gather": True,
    # By default, one gather ends before the next one starts, all of them before the first kernel.
    "xla_max_concurrent_async_all_gathers": 8,
  }
}
"""Options of XLA by platform. On a TPU, filters are gathered while earlier kernels run."""


def make_train_step(
  experiment: Experiment,
  model: NFNet,
  optimizer: Optimizer,
  learning_rate: optax.Schedule,
  mesh: Mesh,
  *,
  class_weights: np.ndarray | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """Returns the jitted function (state, batch) -> (next state, metrics).

  It overwrites the state that it is given. The loss is the mean over the examples of the global
  batch that have weight 1. With `mixing`, images are mixed before anything else is done with them,
  and top1 is the share of the predicted class in an image. With `sharpness`, each group's loss,
  top1 and gradient are computed at the parameters after the group's own ascent step.

  A step whose loss is not finite, or larger than `faults.loss_max`, is skipped: it leaves
  parameters, momentum and moving average as they are, to the bit, and counts as a step. After a
  step that was not skipped, a gradient_norm that is not finite means that the state is not finite
  either.

  Args:
    experiment: what to train.
    model: network from `train.step.model.make_model`.
    optimizer: optimizer from `train.step.optimizer.make_optimizer`.
    learning_rate: schedule that the optimizer was made with; used here for the metrics only.
    mesh: mesh from `train.step.sharding.mesh.make_mesh`.
    class_weights: float32 [classes], by which the losses of the examples are multiplied; None
      multiplies by nothing.

  Returns:
    The function. Its metrics are float32 scalars: loss, top1 (share of the batch), gradient_norm
    (before clipping; NaN for a skipped step), learning_rate, examples (of weight 1) and skipped (1
    or 0).
  """
  roles = parameter_roles(model, mesh)
  specs = jax.tree.map(parameter_spec, roles)
  gradients_and_rings = _make_gradients(experiment, model, class_weights)
  gradient_dtype = jnp.dtype(experiment.parallelism.gradient_dtype)
  # Sharpness-aware minimization takes its ascent step in the weights themselves.
  standardizes = experiment.model.kernels == "pallas" and experiment.sharpness.radius is None

  def step_on_device(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    step = state.optimizer.step
    keys = example_keys(experiment.seed, step, batch["position"])
    if experiment.mixing.is_on:
      with jax.named_scope("mixing"):
        batch = mix(batch, keys, experiment.mixing)
    prepared, pull_back = state.parameters, lambda gradients: gradients
    if standardizes:
      with jax.named_scope("standardization"):
        prepared, pull_back = standardize(model, state.parameters, specs, gradient_dtype)
    prepared_specs = specs_of_filters(prepared, specs)
    with jax.named_scope("parameter_gather"):
      parameters = gather(prepared, prepared_specs, model.compute_dtype)
      if standardizes:
        parameters = rounded_for_gradients(parameters, roles, model.compute_dtype, gradient_dtype)
    examples = jax.lax.psum(jnp.sum(batch["weight"]), DATA_AXES)
    # The loss is divided by the number of examples, so that no gradient has to be.
    share = jax.lax.pcast(1 / jnp.maximum(examples, 1), DATA_AXES, to="varying")

    def start(gradients: Any) -> Rings:
      return start_sums(gradients, prepared_specs, gradient_dtype, experiment.model.kernels)

    sums, gradients, rings = gradients_and_rings(parameters, batch, keys, share, start)
    with jax.named_scope("gradient_sum"):
      loss, hits = jax.lax.psum(sums, DATA_AXES)
      gradients = sum_gradients(gradients, rings, gradient_dtype)
    with jax.named_scope("standardization"):
      gradients = pull_back(gradients)
    with jax.named_scope("optimizer"):
      is_good = jnp.isfinite(loss)
      if experiment.faults.loss_max is not None:
        is_good &= loss <= experiment.faults.loss_max
      # The norm of the gradients cannot decide this: the kernels compute it in the same pass over
      # memory that updates the parameters.
      new_state, gradient_norm = choose(is_good, update, skip, state, gradients)
    metrics = {
      "loss": loss,
      "top1": hits,
      "gradient_norm": gradient_norm,
      "learning_rate": jnp.asarray(learning_rate(step), jnp.float32),
      "examples": examples,
      "skipped": 1 - is_good.astype(jnp.float32),
    }
    return new_state, metrics

  def update(state: TrainState, gradients: Any) -> tuple[TrainState, Float[Array, ""]]:
    new = optimizer.step(gradients, state.optimizer, state.parameters, state.ema)
    return TrainState(new.parameters, new.state, new.ema), new.gradient_norm

  def skip(state: TrainState, unused_gradients: Any) -> tuple[TrainState, Float[Array, ""]]:
    return skip_step(state), jnp.full((), jnp.nan)

  # Kernels work in place, so they must not run in a step that is skipped. With XLA's own
  # operations, it is cheaper to choose each value where it is computed: for a branch, XLA would
  # copy the whole state, which takes 4.5 of F0's 43.5 ms.
  choose = jax.lax.cond if experiment.model.kernels == "pallas" else _choose_values
  state = state_specs(experiment, model, mesh)
  step = jax.shard_map(
    step_on_device, mesh=mesh, in_specs=(state, P(DATA_AXES)), out_specs=(state, P())
  )
  options = COMPILER_OPTIONS.get(mesh.devices.flat[0].platform)
  return jax.jit(step, donate_argnums=0, compiler_options=options)


def _make_gradients(
  experiment: Experiment, model: NFNet, class_weights: np.ndarray | None
) -> Callable[..., Any]:
  """Returns the function that computes the gradients of a device's examples.

  Its arguments are those of a `GradientFunction` and a function from gradients to the `Ring`s that
  sum them. Its results are the loss and the share of hits, the gradients, and these rings.
  """

  def of_examples(parameters, batch, keys, share, start_sums):

    def losses(logits):
      """Returns this device's contribution to the mean loss and to the share of hits."""
      targets, weight = mixed_targets(batch, logits.shape[-1]), batch["weight"]
      of_examples = example_losses(experiment.loss, logits, targets)
      if class_weights is not None:
        of_examples *= example_weights(targets, jnp.asarray(class_weights))
      loss = share * jnp.sum(of_examples * weight)
      return loss, share * jnp.sum(hits_in_top(1, logits, targets) * weight)

    images = normalize(batch["image"])
    return backpropagate(model, parameters, images, keys, losses, start_sums)

  def of_part(parameters, batch, keys, share):
    values, gradients, _ = of_examples(parameters, batch, keys, share, lambda gradients: ())
    return values, gradients

  parts = experiment.optimizer.gradient_accumulation
  if experiment.sharpness.radius is not None:
    of_parts = sharpness_aware(of_part, experiment.sharpness, accumulated_parts=parts)
  elif parts > 1:
    of_parts = accumulate(of_part, parts)
  else:
    return of_examples

  def summed_at_the_end(parameters, batch, keys, share, start_sums):
    values, gradients = of_parts(parameters, batch, keys, share)
    return values, gradients, start_sums(gradients)

  return summed_at_the_end


def _choose_values(
  condition: Array, if_true: Callable[..., Any], if_false: Callable[..., Any], *operands: Any
) -> Any:
  """Computes both branches, unlike `jax.lax.cond`, and chooses each value of the results."""
  return jax.tree.map(
    functools.partial(jnp.where, condition), if_true(*operands), if_false(*operands)
  )
