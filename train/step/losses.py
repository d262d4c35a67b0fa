"""The loss of each example, in float32: softmax with label smoothing, or sigmoid."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from train.config.experiment import Loss


def targets_from_labels(labels: Int[Array, "n l"], num_classes: int) -> Float[Array, "n classes"]:
  """Returns 1 at each label's class and 0 elsewhere.

  Args:
    labels: classes of each example; -1 stands for no label and pads the row.
    num_classes: width of the classifier.
  """
  return jnp.sum(jax.nn.one_hot(labels, num_classes, dtype=jnp.float32), axis=1)


def smooth_labels(
  targets: Float[Array, "n classes"], label_smoothing: float
) -> Float[Array, "n classes"]:
  """Returns the targets with a share `label_smoothing` spread evenly over all classes."""
  return (1 - label_smoothing) * targets + label_smoothing / targets.shape[-1]


def example_weights(
  targets: Float[Array, "n classes"], class_weights: Float[Array, " classes"]
) -> Float[Array, " n"]:
  """Returns the weight of each example: its class's, or the mean over its classes.

  For a mixed image, the mean is weighted by the shares of the classes.

  Args:
    targets: as `example_losses` takes them.
    class_weights: weights of the classes, float32.
  """
  return targets @ class_weights / jnp.maximum(jnp.sum(targets, axis=-1), 1e-6)


def example_losses(
  loss: Loss, logits: Float[Array, "n classes"], targets: Float[Array, "n classes"]
) -> Float[Array, " n"]:
  """Returns the loss of each example, in nats.

  Softmax: the cross-entropy against smoothed targets. Sigmoid: the sum over classes of binary
  cross-entropies, for any number of labels per image; these are not smoothed.

  Args:
    loss: kind of loss and label smoothing.
    logits: float32.
    targets: result of `targets_from_labels`, or the mixed targets of `train.step.mixing`.
  """
  if loss.kind == "sigmoid":
    terms = targets * jax.nn.log_sigmoid(logits) + (1 - targets) * jax.nn.log_sigmoid(-logits)
    return -jnp.sum(terms, axis=-1)
  smoothed = smooth_labels(targets, loss.label_smoothing)
  return -jnp.sum(smoothed * jax.nn.log_softmax(logits), axis=-1)
