"""Sharpness-aware minimization (SAM): gradients where nearby parameters are worst.

Foret et al., https://arxiv.org/abs/2010.01412. As in paper B, the way up comes from some of the
same examples and is not averaged over devices. How many examples share one way up changes the
result, so it is a number of its own: the examples of a batch are divided into groups, and a group's
gradient does not depend on what else its device has.

Group k of K consists of the examples whose position in the global batch is k modulo K.
`train.step.sharding.batch` deals examples out so that a device has whole groups, whatever the
number of devices and processes.
"""

from typing import Any

import jax
import jax.numpy as jnp

_NORM_MIN = 1e-30
"""Examples of weight 0 only have no way up."""


def split_in_groups(examples: Any, count: int) -> Any:
  """Arrays [n, ...] of a device's examples as [count, n / count, ...].

  Args:
    examples: as `train.step.sharding.batch.put_batch` deals them out.
    count: of groups that the device has.
  """

  def split(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(jnp.reshape(x, (x.shape[0] // count, count, *x.shape[1:])), 0, 1)

  return jax.tree.map(split, examples)


def ascent_images(group_images: int, ascent_share: float) -> int:
  """How many of a group's examples, the first ones, the way up is computed from."""
  return max(1, round(group_images * ascent_share))


def perturb(parameters: Any, gradients: Any, radius: float) -> Any:
  """Parameters that are `radius` further up: parameters + radius * gradients / |gradients|.

  Args:
    parameters: whole on this device, float32.
    gradients: of the loss of some examples, likewise; of any scale.
    radius: rho in the papers.
  """
  leaves = jax.tree.leaves(gradients)
  norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in leaves))
  scale = radius / jnp.maximum(norm, _NORM_MIN)
  return jax.tree.map(lambda p, g: p + scale * g, parameters, gradients)
