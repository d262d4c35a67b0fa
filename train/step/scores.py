"""Scores of predictions on held-out images: loss, accuracy, calibration, and scores by class.

Devices compute sums (`score_sums`), which add up over batches; `scores` turns the total into what
is reported. A network predicts the class with the largest logit, whatever its loss.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from train.config.experiment import Loss
from train.step.losses import example_losses

CALIBRATION_BINS = 15
"""Bins of Guo et al., https://arxiv.org/abs/1706.04599, section 5."""

Sums = Mapping[str, Any]
"""Sums over the examples of weight 1, float32: scalars, [classes], [CALIBRATION_BINS] and, if asked
for, [classes, classes]."""

CONFUSION_CLASSES_MAX = 4096
"""Largest number of classes whose confusion matrix is counted; it then takes 64 MiB."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
  """Scores of a network on a set of images.

  Attributes:
    loss: mean loss in nats, without label smoothing, as the papers report it.
    top1: share of the images whose class, or one of whose classes, has the largest logit.
    top5: share of the images that have a class among the five largest logits.
    class_mean_top1: mean over the classes of `class_top1`, the macro recall.
    macro_precision: mean over the classes that have images of `class_precision`.
    macro_f1: mean over the classes that have images of `class_f1`.
    calibration_error: expected calibration error: the difference between confidence and accuracy in
      bins of equal confidence width, averaged over images.
    examples: number of images.
    class_top1: [classes]; share of each class's images for which it has the largest logit, the
      class's recall; NaN where there are none.
    class_precision: [classes]; share of the images for which a class is predicted that are of it;
      0 where it is never predicted, NaN where it has no images.
    class_f1: [classes]; harmonic mean of precision and recall; NaN where there are no images.
    class_examples: [classes]; number of images of each class.
    confusion: [class, predicted class]; number of images that have one class; None if they were not
      counted.
  """

  loss: float
  top1: float
  top5: float
  class_mean_top1: float
  macro_precision: float
  macro_f1: float
  calibration_error: float
  examples: float
  class_top1: np.ndarray
  class_precision: np.ndarray
  class_f1: np.ndarray
  class_examples: np.ndarray
  confusion: np.ndarray | None = None

  def scalars(self) -> dict[str, float]:
    """Returns the fields that are one number, by name."""
    return {
      field.name: value
      for field in dataclasses.fields(self)
      if isinstance(value := getattr(self, field.name), float)
    }


def hits_in_top(
  k: int, logits: Float[Array, "n classes"], targets: Float[Array, "n classes"]
) -> Float[Array, " n"]:
  """Returns 1 where a class of the example is among its `k` largest logits, else 0.

  For a mixed image, it returns the largest share in the image of any class among these logits.
  """
  _, classes = jax.lax.top_k(logits, min(k, logits.shape[-1]))
  return jnp.max(jnp.take_along_axis(targets, classes, axis=-1), axis=-1)


def score_sums(
  loss: Loss,
  logits: Float[Array, "n classes"],
  targets: Float[Array, "n classes"],
  weight: Float[Array, " n"],
  *,
  counts_confusion: bool = False,
) -> dict[str, Array]:
  """Returns sums over examples, which add up over batches, for `scores`.

  Args:
    loss: kind of loss; its label smoothing is ignored.
    logits: float32.
    targets: 1 at each class of an example.
    weight: 1 for an image that counts, 0 for one that does not.
    counts_confusion: whether the confusion matrix is counted, which has an element for each pair of
      classes.
  """
  predicted = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=jnp.float32)
  class_hits = predicted * targets
  hits = jnp.sum(class_hits, axis=-1)
  probabilities = jax.nn.sigmoid if loss.kind == "sigmoid" else jax.nn.softmax
  confidence = jnp.max(probabilities(logits), axis=-1)
  bins = jax.nn.one_hot(
    jnp.minimum(confidence * CALIBRATION_BINS, CALIBRATION_BINS - 1).astype(jnp.int32),
    CALIBRATION_BINS,
    dtype=jnp.float32,
  )
  values = {
    "loss": example_losses(Loss(kind=loss.kind), logits, targets),
    "top1": hits,
    "top5": hits_in_top(5, logits, targets),
    "examples": jnp.ones_like(weight),
    "class_hits": class_hits,
    "class_examples": targets,
    "class_predictions": predicted,
    "bin_excess": bins * (confidence - hits)[:, None],
  }
  sums = jax.tree.map(lambda value: jnp.tensordot(weight, value, 1), values)
  if counts_confusion:
    # An image of several classes is in no single row.
    counted = jnp.where(jnp.sum(targets, axis=-1) == 1, weight, 0)
    sums["confusion"] = jnp.einsum("nt,np->tp", counted[:, None] * targets, predicted)
  return sums


def scores(sums: Sums) -> Scores:
  """Returns the scores of all examples together.

  Args:
    sums: results of `score_sums`, added up over all batches.
  """
  sums = {name: np.asarray(value, np.float64) for name, value in sums.items()}
  examples = max(float(sums["examples"]), 1.0)
  has_images = sums["class_examples"] > 0

  def by_class(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.where(has_images, numerator / np.maximum(denominator, 1), np.nan)

  def mean(values: np.ndarray) -> float:
    return float(np.mean(values[has_images])) if has_images.any() else 0.0

  predictions, class_hits = sums["class_predictions"], sums["class_hits"]
  class_top1 = by_class(class_hits, sums["class_examples"])
  class_precision = by_class(class_hits, predictions)
  class_f1 = by_class(2 * class_hits, sums["class_examples"] + predictions)
  return Scores(
    loss=float(sums["loss"]) / examples,
    top1=float(sums["top1"]) / examples,
    top5=float(sums["top5"]) / examples,
    class_mean_top1=mean(class_top1),
    macro_precision=mean(class_precision),
    macro_f1=mean(class_f1),
    calibration_error=float(np.sum(np.abs(sums["bin_excess"]))) / examples,
    examples=float(sums["examples"]),
    class_top1=class_top1,
    class_precision=class_precision,
    class_f1=class_f1,
    class_examples=sums["class_examples"],
    confusion=sums.get("confusion"),
  )
