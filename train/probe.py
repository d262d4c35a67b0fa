r"""How well a linear classifier on a trained network's features recognizes other images.

    python -m train.probe --weights=PATH --config=train/configs/demo_finetune.py \
        --config.data.path=DATA

Tells what a network is worth for a data set without fine-tuning it: one pass over the training
images, prepared as for evaluation. PATH is what `train.finetune` takes as `initial_weights`.

The classifier is ridge regression onto one target a class, 1 or 0, on features that are
standardized. Its error is that of leaving each image out of the regression in turn, which has a
closed form (the deleted residual), so that no images need be held out. The weight of the ridge is
the one of a grid that makes the deleted residuals smallest.
"""

import dataclasses
import math

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from nfnet.command_line import run_main
from nfnet.errors import UserError
from train.config.config_file import as_argument, load_experiment, parse_arguments
from train.config.experiment import Experiment
from train.data.pipeline import evaluation_batches, evaluation_examples
from train.run.compilation_cache import use_compilation_cache
from train.run.initial_weights import with_new_classifier
from train.step.evaluation_step import make_feature_step
from train.step.model import make_model
from train.step.sharding.batch import check_batch_size, put_batch
from train.step.sharding.mesh import make_mesh
from train.step.sharding.parameters import put_parameters

RIDGES = tuple(10.0**power for power in range(-4, 3))
"""Tried, relative to the mean eigenvalue of the features' covariance."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
  """What came out.

  Attributes:
    error_percent: top-1, of images that are left out one at a time.
    squared_error: sum over classes of (prediction - target)^2, mean over the same images.
    images: that there were.
    ridge: chosen, relative to the mean eigenvalue of the features' covariance.
  """

  error_percent: float
  squared_error: float
  images: int
  ridge: float


def probe(experiment: Experiment, *, images_max: int | None = None) -> Probe:
  """Probes `experiment.initial_weights` on the training images of `experiment.data`.

  Args:
    experiment: of a fine-tuning; what it says of training is not looked at.
    images_max: the first so many of the data set are taken; None takes them all.

  Raises:
    UserError: there are no weights or no images, or they do not fit.
  """
  features, labels = _features(experiment, images_max)
  return leave_one_out(features, labels, experiment.data.num_classes)


def leave_one_out(features: np.ndarray, labels: np.ndarray, num_classes: int) -> Probe:
  """Ridge regression, each image predicted by all others.

  Args:
    features: float [n, c].
    labels: int [n], the class of each.
    num_classes: that there can be.

  Raises:
    UserError: there are fewer than two images.
  """
  count = len(features)
  if count < 2:
    raise UserError(f"{count} training images are too few to leave one out; give two or more")
  x = features.astype(np.float64)
  deviation = x.std(axis=0)
  # A feature that is constant over all images tells nothing, and would be divided by zero.
  x = (x - x.mean(axis=0))[:, deviation > 0] / deviation[deviation > 0]
  targets = np.eye(num_classes)[labels]
  # With u s v = x, predictions are u (s^2 / (s^2 + ridge)) u^T y, for all ridges at once. That mean
  # and deviation know the image that is left out is of the order of 1 / n.
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
  """Features [n, c] and classes [n] of the training images that can be decoded."""
  if experiment.loss.kind == "sigmoid":
    raise UserError("loss.kind=sigmoid: only images of one class each can be probed")
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


def _define_flags() -> None:
  flags.DEFINE_string("config", None, "Python file that describes the fine-tuning.", required=True)
  flags.DEFINE_string("weights", None, "What is probed.", required=True)
  flags.DEFINE_integer("images_max", 20_000, "Of the training images.", lower_bound=2)


def main(overrides: list[str]) -> None:
  """Prints the error."""
  values = flags.FLAGS
  experiment = load_experiment(
    values.config, [*overrides[1:], as_argument("initial_weights", values.weights)]
  )
  use_compilation_cache()
  found = probe(experiment, images_max=values.images_max)
  print(
    f"{values.weights}: a linear classifier on its features is wrong about "
    f"{found.error_percent:.2f} % of {found.images:,} training images, each left out in turn "
    f"(squared error {found.squared_error:.4f}, ridge {found.ridge:g})"
  )


if __name__ == "__main__":
  _define_flags()
  run_main(main, flags_parser=parse_arguments)
