"""One step of training and one of evaluation, as pure functions over a mesh of devices.

Imports no input pipeline, checkpoint or metrics code, so that `profiling` can compile exactly this.
`train.step.sharding` says which device holds what. All arithmetic of a device is inside
`shard_map`, where Pallas kernels see their local shard.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Key

from nfnet.block_arrangement import arrange_blocks
from nfnet.images.normalization import normalize
from nfnet.model import NFNet, apply, apply_features, parameter_shapes
from train.config.experiment import Experiment, Loss
from train.step.losses import example_losses, hits_in_top, mixed_targets, targets_from_labels
from train.step.mixing import mix
from train.step.optimizer import OnePassTransformation, sgd_agc
from train.step.scores import score_sums
from train.step.sharding.mesh import DATA_AXES
from train.step.sharding.parameters import (
  gather,
  parameter_specs,
  shardings,
  state_specs,
  sum_gradients,
)
from train.step.sharpness_aware import ascent_images, perturb, split_in_groups
from train.step.state import TrainState

Batch = Mapping[str, Any]
"""image uint8 [n, h, w, 3]; labels int32 [n, l], -1 for none; weight float32 [n], 0 or 1; position
int32 [n] in the global batch, of which `put_batch` gives each device every n-th example."""
Metrics = dict[str, Any]


def put_parameters(model: NFNet, parameters: Any, mesh: Mesh) -> Any:
  """Parameters on the devices, in the arrangement in which `model` runs its blocks.

  Args:
    model: the structure.
    parameters: like `nfnet.model.parameter_shapes(model)`, on the host.
    mesh: of devices.
  """
  arranged = arrange_blocks(parameters, model.block_keys)
  return jax.device_put(arranged, shardings(parameter_specs(arranged, mesh), mesh))


def make_model(experiment: Experiment) -> NFNet:
  """The network that the experiment describes.

  Raises:
    ValueError: the experiment names something that there is not.
  """
  model = experiment.model
  return NFNet(
    model.variant,
    experiment.data.num_classes,
    activation=model.activation,
    stochastic_depth_rate=model.stochastic_depth_rate,
    dropout_rate=model.dropout_rate,
    bottleneck=model.bottleneck,
    block_execution=model.block_execution,
    rematerialize=model.rematerialize,
    compute_dtype=jnp.dtype(model.compute_dtype),
    implementation=model.kernels,
  )


def make_optimizer(experiment: Experiment, learning_rate: optax.Schedule) -> OnePassTransformation:
  """The optimizer that the experiment describes."""
  optimizer = experiment.optimizer
  return sgd_agc(
    learning_rate,
    momentum=optimizer.momentum,
    weight_decay=optimizer.weight_decay,
    clipping=optimizer.agc_clipping,
    average_decay=optimizer.ema_decay,
    implementation=experiment.model.kernels,
  )


def initial_state(
  experiment: Experiment, optimizer: OnePassTransformation, parameters: Any
) -> TrainState:
  """The state before the first step."""
  average = None
  if experiment.optimizer.ema_decay is not None:
    # A copy, since the state is donated and a buffer can be donated once only.
    average = jax.tree.map(jnp.array, parameters)
  return TrainState(parameters, optimizer.init(parameters), average)


def make_train_step(
  experiment: Experiment,
  model: NFNet,
  optimizer: OnePassTransformation,
  learning_rate: optax.Schedule,
  mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """The pure function (state, batch) -> (next state, metrics); to be jitted, donating the state.

  The loss is the mean over the examples of the global batch that have weight 1. Every example
  draws dropout and stochastic depth from a key of (seed, step, position in the global batch) alone,
  so that results do not depend on how many devices there are.

  With `mixing`, images are mixed before anything else is done with them, and top1 is the share of
  the predicted class in an image.

  With `sharpness`, each group's gradient is that of its examples at parameters of its own, and so
  is what it adds to loss and top1.

  A step whose loss is not finite, or larger than `faults.loss_max`, is skipped: it leaves
  parameters, momentum and average as they are, to the bit, and the count of steps goes on. After a
  step that was not skipped, a gradient_norm that is not finite means that the state is not either.

  Metrics are float32 scalars: loss, top1 (share of the batch), gradient_norm (before clipping; NaN
  of a skipped step), learning_rate, examples (of weight 1), skipped (1 or 0).
  """
  accumulation = experiment.optimizer.gradient_accumulation
  sharpness = experiment.sharpness
  loss_max = experiment.faults.loss_max

  def loss_and_hits(parameters, batch, keys, share):
    """The part that this device has in the mean loss and in the share of hits."""
    logits = apply(model, parameters, normalize(batch["image"]), keys=keys)
    targets = _targets(batch, logits.shape[-1])
    weight = batch["weight"]
    losses = example_losses(experiment.loss, logits, targets)
    hits = hits_in_top(1, logits, targets)
    return share * jnp.sum(losses * weight), share * jnp.sum(hits * weight)

  differentiate = jax.value_and_grad(loss_and_hits, has_aux=True)

  def sums_over(split, count, part_sums, parameters, batch, keys, share):
    """What `part_sums` makes of each of so many parts of the examples, added up."""
    if count == 1:
      return part_sums(parameters, batch, keys, share)

    def add_part(sums, part):
      return jax.tree.map(jnp.add, sums, part_sums(parameters, *part, share)), None

    # From zeros, since a first part outside of the loop would be compiled a second time.
    zeros = jax.tree.map(
      lambda x: jax.lax.pcast(jnp.zeros(x.shape, x.dtype), DATA_AXES, to="varying"),
      ((share, share), parameters),
    )
    sums, _ = jax.lax.scan(add_part, zeros, split((batch, keys), count))
    return sums

  def local_sums(parameters, batch, keys, share):
    """Sums over this device's examples: ((loss, hits), gradients of the loss)."""
    if sharpness.radius is None:
      return sums_over(_in_parts, accumulation, differentiate, parameters, batch, keys, share)
    groups = len(batch["weight"]) // sharpness.group_images
    ascent = ascent_images(sharpness.group_images, sharpness.ascent_share)

    def group_sums(parameters, batch, keys, share):
      # The same keys both times, so that both see the same network.
      first = jax.tree.map(lambda x: x[:ascent], (batch, keys))
      with jax.named_scope("sharpness_ascent"):
        _, gradients = differentiate(parameters, *first, share)
        worst = perturb(parameters, gradients, sharpness.radius)
      parts = max(1, accumulation // groups)
      return sums_over(_in_parts, parts, differentiate, worst, batch, keys, share)

    return sums_over(split_in_groups, groups, group_sums, parameters, batch, keys, share)

  def optimizer_step(state: TrainState, gradients: Any) -> tuple[TrainState, Array]:
    *new_state, gradient_norm = optimizer.step(
      gradients, state.optimizer, state.parameters, state.ema
    )
    return TrainState(*new_state), gradient_norm

  def step_on_device(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    step = state.optimizer.step
    keys = _example_keys(experiment.seed, step, batch["position"])
    if experiment.mixing.is_on:
      with jax.named_scope("mixing"):
        batch = mix(batch, keys, experiment.mixing)
    # Marked as different on each device, the parameters get local gradients, which are then
    # summed in one visible place instead of inside every operation's derivative.
    with jax.named_scope("parameter_gather"):
      parameters = gather(state.parameters, specs, model.compute_dtype)
    examples = jax.lax.psum(jnp.sum(batch["weight"]), DATA_AXES)
    # Divided by here, the gradients of all parameters need not be.
    share = jax.lax.pcast(1 / jnp.maximum(examples, 1), DATA_AXES, to="varying")
    sums, gradients = local_sums(parameters, batch, keys, share)
    with jax.named_scope("gradient_sum"):
      loss, hits = jax.lax.psum(sums, DATA_AXES)
      gradients = sum_gradients(gradients, specs, jnp.dtype(experiment.parallelism.gradient_dtype))
    with jax.named_scope("optimizer"):
      is_good = jnp.isfinite(loss)
      if loss_max is not None:
        is_good &= loss <= loss_max
      # The norm of the gradients is known only when the parameters are new already: the kernels
      # compute it in their one pass over memory.
      new_state, gradient_norm = choose(is_good, optimizer_step, skipped_step, state, gradients)
    metrics = {
      "loss": loss,
      "top1": hits,
      "gradient_norm": gradient_norm,
      "learning_rate": jnp.asarray(learning_rate(step), jnp.float32),
      "examples": examples,
      "skipped": 1 - is_good.astype(jnp.float32),
    }
    return new_state, metrics

  # Kernels work in place, so they must not run. XLA's own operations choose each value where it is
  # made, and would copy the whole state for a branch: 4.5 of F0's 43.5 ms.
  choose = jax.lax.cond if experiment.model.kernels == "pallas" else _choose_values
  specs = _specs(model, mesh)
  state = state_specs(specs, has_ema=experiment.optimizer.ema_decay is not None)
  return jax.shard_map(
    step_on_device, mesh=mesh, in_specs=(state, P(DATA_AXES)), out_specs=(state, P())
  )


def _targets(batch: Batch, num_classes: int) -> Array:
  targets = targets_from_labels(batch["labels"], num_classes)
  if "partner_labels" not in batch:
    return targets
  partner_targets = targets_from_labels(batch["partner_labels"], num_classes)
  return mixed_targets(targets, partner_targets, batch["partner_share"])


def _in_parts(examples: Any, count: int) -> Any:
  # In runs, which is only another shape: nothing is moved.
  return jax.tree.map(
    lambda x: jnp.reshape(x, (count, x.shape[0] // count, *x.shape[1:])), examples
  )


def _choose_values(
  condition: Array, if_true: Callable[..., Any], if_false: Callable[..., Any], *operands: Any
) -> Any:
  """As `jax.lax.cond`, but computes both."""
  return jax.tree.map(
    functools.partial(jnp.where, condition), if_true(*operands), if_false(*operands)
  )


def skipped_step(state: TrainState, *unused_gradients: Any) -> tuple[TrainState, Array]:
  """The state after a step that changes nothing but the count of steps, and NaN for the norm."""
  optimizer = state.optimizer._replace(step=state.optimizer.step + 1)
  return dataclasses.replace(state, optimizer=optimizer), jnp.full((), jnp.nan)


def _specs(model: NFNet, mesh: Mesh) -> Any:
  return parameter_specs(arrange_blocks(parameter_shapes(model), model.block_keys), mesh)


def abstract_state(
  experiment: Experiment, model: NFNet, optimizer: OnePassTransformation, mesh: Mesh
) -> TrainState:
  """What a state of the run looks like: shapes, dtypes and shardings, without values."""
  shapes = jax.eval_shape(
    lambda parameters: initial_state(experiment, optimizer, parameters),
    arrange_blocks(parameter_shapes(model), model.block_keys),
  )
  specs = state_specs(_specs(model, mesh), has_ema=shapes.ema is not None)
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    shapes,
    shardings(specs, mesh),
  )


def make_evaluation_step(model: NFNet, loss: Loss, mesh: Mesh) -> Callable[[Any, Batch], Metrics]:
  """The pure function (parameters, batch) -> `score_sums` over the global batch."""
  specs = _specs(model, mesh)

  def step_on_device(parameters: Any, batch: Batch) -> Metrics:
    parameters = gather(parameters, specs, model.compute_dtype)
    logits = apply(model, parameters, normalize(batch["image"]))
    targets = targets_from_labels(batch["labels"], logits.shape[-1])
    return jax.lax.psum(score_sums(loss, logits, targets, batch["weight"]), DATA_AXES)

  return jax.shard_map(step_on_device, mesh=mesh, in_specs=(specs, P(DATA_AXES)), out_specs=P())


def make_feature_step(model: NFNet, mesh: Mesh) -> Callable[[Any, Batch], Float[Array, "n c"]]:
  """The pure function (parameters, batch) -> what the classifier would see of the global batch."""
  specs = _specs(model, mesh)

  def step_on_device(parameters: Any, batch: Batch) -> Float[Array, "n c"]:
    parameters = gather(parameters, specs, model.compute_dtype)
    return apply_features(model, parameters, normalize(batch["image"]))

  return jax.shard_map(
    step_on_device, mesh=mesh, in_specs=(specs, P(DATA_AXES)), out_specs=P(DATA_AXES)
  )


def _example_keys(seed: int, step: Int[Array, ""], position: Int[Array, " n"]) -> Key[Array, " n"]:
  """One key for each local example, by its position in the global batch."""
  step_key = jax.random.fold_in(jax.random.key(seed), step)
  return jax.vmap(lambda i: jax.random.fold_in(step_key, i))(position)
