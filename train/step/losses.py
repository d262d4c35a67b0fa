"""Losses of one example, in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from train.config.experiment import Loss


def targets_from_labels(labels: Int[Array, "n l"], num_classes: int) -> Float[Array, "n classes"]:
  """1 at each label's class, 0 elsewhere; a label of -1 fills up the row and stands for none."""
  return jnp.sum(jax.nn.one_hot(labels, num_classes, dtype=jnp.float32), axis=1)


def mixed_targets(
  targets: Float[Array, "n classes"],
  partner_targets: Float[Array, "n classes"],
  partner_share: Float[Array, " n"],
) -> Float[Array, "n classes"]:
  """Of images that show the given share of another one."""
  return targets + partner_share[:, None] * (partner_targets - targets)


def example_losses(
  loss: Loss, logits: Float[Array, "n classes"], targets: Float[Array, "n classes"]
) -> Float[Array, " n"]:
  """The loss of each example, in nats.

  Softmax: cross-entropy against targets that give a share `label_smoothing` to all classes alike.
  Sigmoid: the sum over classes of binary cross-entropies, for any number of labels an image.
  """
  if loss.kind == "sigmoid":
    terms = targets * jax.nn.log_sigmoid(logits) + (1 - targets) * jax.nn.log_sigmoid(-logits)
    return -jnp.sum(terms, axis=-1)
  smoothing = loss.label_smoothing
  smoothed = (1 - smoothing) * targets + smoothing / logits.shape[-1]
  return -jnp.sum(smoothed * jax.nn.log_softmax(logits), axis=-1)


def hits_in_top(
  k: int, logits: Float[Array, "n classes"], targets: Float[Array, "n classes"]
) -> Float[Array, " n"]:
  """1 where a class of the example is among its `k` largest logits, else 0.

  Of a mixed image, the largest share in it of a class that is among them.
  """
  _, classes = jax.lax.top_k(logits, min(k, logits.shape[-1]))
  return jnp.max(jnp.take_along_axis(targets, classes, axis=-1), axis=-1)
