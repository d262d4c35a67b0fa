"""The linear probe: how well a linear classifier on a network's features recognizes other images.

The classifier is ridge regression from standardized features to one target for each class, 1 or 0.
Its error is the leave-one-out error: each image is predicted by the regression on all the others,
which has a closed form (the deleted residual), so that no images need to be held out. The weight of
the ridge penalty is chosen from a grid to minimize the deleted residuals.
"""

import dataclasses
import math

import jax
import numpy as np
from tqdm import tqdm

from nfnet.errors import UserError, format_count
from train.config.experiment import Experiment
from train.data.batches import evaluation_batches
from train.data.dataset import evaluation_examples
from train.run.initial_weights import with_new_classifier
from train.step.evaluation_step import make_feature_step
from train.step.model import make_model
from train.step.sharding.batch import check_batch_size, put_batch
from train.step.sharding.mesh import make_mesh
from train.step.sharding.parameters import put_parameters

RIDGES = tuple(10.0**power for power in range(-4, 3))
"""Weights that are tried, relative to the mean eigenvalue of the features' covariance."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
  """The result of a probe.

  Attributes:
    error_percent: top-1 error on images that are left out one at a time.
    squared_error: sum over classes of (prediction - target)^2, averaged over the same images.
    images: number of images.
    ridge: chosen weight, relative to the mean eigenvalue of the features' covariance.
  """

  error_percent: float
  squared_error: float
  images: int
  ridge: float


def probe(experiment: Experiment, *, images_max: int | None = None) -> Probe:
  """Probes `experiment.initial_weights` on the training images of `experiment.data`.

  Args:
    experiment: configuration of a fine-tuning; fields that describe training are not used.
    images_max: number of images taken from the beginning of the data set; None takes all.

  Raises:
    UserError: there are no weights or no images, or they do not fit the network.
  """
  features, labels = _features(experiment, images_max)
  return leave_one_out(features, labels, experiment.data.num_classes)


def leave_one_out(features: np.ndarray, labels: np.ndarray, num_classes: int) -> Probe:
  """Fits a ridge regression and predicts each image from all others.

  Args:
    features: [n, c] floats.
    labels: [n] integers, the class of each image.
    num_classes: number of classes.

  Raises:
    UserError: there are fewer than two images.
  """
  count = len(features)
  if count < 2:
    raise UserError(
      f"{format_count(count, 'training image')}: too few to leave one out; give two or more"
    )
  x = features.astype(np.float64)
  deviation = x.std(axis=0)
  # A feature that is constant over all images carries no information and would divide by zero.
  x = (x - x.mean(axis=0))[:, deviation > 0] / deviation[deviation > 0]
  targets = np.eye(num_classes)[labels]
  # With u s v = x, predictions are u (s^2 / (s^2 + ridge)) u^T y, for all ridges at once. Mean and
  # deviation include the left-out image, which has an effect of the order of 1 / n.
  u, singular, _ = np.linalg.svd(x, full_matrices=False)
  mean_eigenvalue = np.mean(singular**2)
  centered = targets - targets.mean(axis=0)
  found = []
  for ridge in RIDGES:
    shrunk = u * (singular**2 / (singular**2 + ridge * mean_eigenvalue))
    leverage = np.sum(shrunk * u, axis=1) + 1 / count
    residuals = (centered - shrunk @ (u.T @ centered)) / np.maximum(1 - leverage, 1e-9)[:, None]
    found.append((float(np.mean(np.sum(residuals**2, axis=1))), ridge, targets - residuals))
  squared_error, ridge, predictions = min(found, key=lambda one: one[0])
  wrong = np.argmax(predictions, axis=1) != labels
  return Probe(
    error_percent=100 * float(np.mean(wrong)),
    squared_error=squared_error,
    images=count,
    ridge=ridge,
  )


def _features(experiment: Experiment, images_max: int | None) -> tuple[np.ndarray, np.ndarray]:
  """Returns features [n, c] and classes [n] of the training images that can be decoded."""
  if experiment.loss.kind == "sigmoid":
    raise UserError("loss.kind=sigmoid: only images of one class each can be probed; use softmax")
  data = dataclasses.replace(experiment.data, evaluation_split=experiment.data.train_split)
  mesh = make_mesh()
  check_batch_size("data.evaluation_batch_size", data.evaluation_batch_size, mesh)
  model = make_model(experiment)
  parameters = put_parameters(model, with_new_classifier(experiment), mesh)
  step = jax.jit(make_feature_step(model, mesh))
  features, classes, count = [], [], 0
  total = min(evaluation_examples(data), images_max or math.inf)
  with (
    evaluation_batches(data) as batches,
    tqdm(total=total, desc="features", unit="image", leave=False, disable=None) as bar,
  ):
    for batch in batches:
      on_devices = put_batch(batch, mesh)
      is_there = np.asarray(on_devices["weight"]) > 0
      features.append(np.asarray(step(parameters, on_devices))[is_there])
      classes.append(np.asarray(on_devices["labels"])[is_there, 0])
      bar.update(len(classes[-1]))
      count += len(classes[-1])
      if count >= total:
        break
    batches.check_bad_images(total - min(count, total), total)
  return np.concatenate(features)[:total], np.concatenate(classes)[:total]
