"""Sharpness-aware minimization (SAM): gradients at the worst nearby parameters.

Foret et al., https://arxiv.org/abs/2010.01412. For each group of examples,

    ascent gradient   a = gradient of the loss of some of its examples at the parameters
    ascent step       worst = parameters + radius * a / |a|
    result            gradient of the loss of the whole group at `worst`

As in paper B, the ascent gradient comes from some of the same examples and is not averaged over
devices. The number of examples that share one ascent step changes the result, so it is a field of
its own, `sharpness.group_images`: the examples of a batch are divided into groups, and a group's
gradient does not depend on the other examples that its device holds.

Group k of K consists of the examples whose position in the global batch is k modulo K.
`train.step.sharding.batch` distributes examples so that a device has whole groups, whatever the
number of devices and processes.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from train.config.experiment import Sharpness
from train.step.argument_checks import check_alike, check_scalar
from train.step.gradients.accumulation import GradientFunction, accumulate


def sharpness_aware(
  gradient_function: GradientFunction, sharpness: Sharpness, *, accumulated_parts: int = 1
) -> GradientFunction:
  """Returns a gradient function that takes each group's gradient after the group's ascent step.

  Args:
    gradient_function: function for plain gradients, called with the same keys before and after the
      ascent step, so that both calls see the same dropout and stochastic depth.
    sharpness: radius, number of images of a group, and share of them that the ascent step uses.
    accumulated_parts: number of parts that a device's examples are divided into, a multiple or a
      divisor of its number of groups (`train.step.sharding.batch.check_train_batch`). More parts
      than groups divide each group's second gradient.
  """
  ascent_images = ascent_image_count(sharpness.group_images, sharpness.ascent_share)

  def sharp_gradients(parameters, batch, keys, share):
    groups = len(batch["weight"]) // sharpness.group_images
    whole_group = accumulate(gradient_function, max(1, accumulated_parts // groups))

    def group_gradients(parameters, batch, keys, share):
      first = jax.tree.map(lambda x: x[:ascent_images], (batch, keys))
      with jax.named_scope("sharpness_ascent"):
        _, ascent_gradient = gradient_function(parameters, *first, share)
        worst = ascend(parameters, ascent_gradient, sharpness.radius)
      return whole_group(worst, batch, keys, share)

    over_groups = accumulate(group_gradients, groups, split=split_in_groups)
    return over_groups(parameters, batch, keys, share)

  return sharp_gradients


def split_in_groups(examples: Any, groups: int) -> Any:
  """Returns arrays [n, ...] of a device's examples as [groups, n / groups, ...].

  Args:
    examples: examples as `train.step.sharding.batch.put_batch` distributes them.
    groups: number of groups that the device has.
  """

  def split(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(jnp.reshape(x, (x.shape[0] // groups, groups, *x.shape[1:])), 0, 1)

  return jax.tree.map(split, examples)


def ascent_image_count(group_images: int, ascent_share: float) -> int:
  """Returns the number of examples, the first ones of a group, that give the ascent gradient."""
  return max(1, round(group_images * ascent_share))


def ascend(parameters: Any, gradients: Any, radius: float) -> Any:
  """Returns the parameters after the ascent step: parameters + radius * gradients / |gradients|.

  Args:
    parameters: whole parameters on this device, float32.
    gradients: gradients of the loss of some examples, in a tree like `parameters`; their scale does
      not matter.
    radius: length of the step, rho in the papers.

  Raises:
    ValueError: gradients and parameters are not alike, or the radius is not a number of at least 0.
  """
  check_alike(gradients, parameters)
  check_scalar("radius", radius, lambda x: 0 <= x < math.inf, "a finite number of at least 0")
  largest = _max_absolute(gradients)
  # A group whose ascent examples all have weight 0 has zero gradients, and makes no step.
  divisor = jnp.where(largest > 0, largest, 1)
  # The squares of small gradients would vanish, and those of large ones would overflow.
  directions = jax.tree.map(lambda g: g / divisor, gradients)
  squares = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(directions))
  scale = radius / jnp.sqrt(jnp.maximum(squares, 1))
  return jax.tree.map(lambda p, d: p + scale * d, parameters, directions)


def _max_absolute(tree: Any) -> jax.Array:
  return functools.reduce(
    jnp.maximum, (jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(tree))
  )
