import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from nfnet.errors import UserError
from nfnet.images.normalization import normalize
from nfnet.initialization import initial_parameters
from nfnet.model import NFNet, apply, pooled_features
from nfnet.weights.haiku import save_haiku
from train.config.files import load_experiment
from train.data.batches import evaluation_batches
from train.run.linear_probe import RIDGES, leave_one_out, probe

CLASSES = 3


def clouds(*, images=40, features=6, seed=0, spread=1.5):
  """Features around one center for each class, and the classes."""
  random = np.random.default_rng(seed)
  labels = np.arange(images) % CLASSES
  centers = random.normal(size=(CLASSES, features))
  return centers[labels] + spread * random.normal(size=(images, features)), labels


def left_out_in_turn(x, labels, ridge):
  """The same by fitting as many regressions as there are images."""
  x = (x - x.mean(axis=0)) / x.std(axis=0)
  targets = np.eye(CLASSES)[labels]
  eigenvalues = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2
  predictions = []
  for image in range(len(x)):
    others = np.arange(len(x)) != image
    regression = Ridge(alpha=ridge * eigenvalues.mean(), solver="svd")
    predictions.append(regression.fit(x[others], targets[others]).predict(x[[image]])[0])
  residuals = np.array(predictions) - targets
  wrong = np.argmax(predictions, axis=1) != labels
  return np.mean(np.sum(residuals**2, axis=1)), 100 * np.mean(wrong)


@pytest.mark.parametrize("features", [6, 60])
def test_the_closed_form_is_that_of_leaving_each_image_out(features):
  x, labels = clouds(features=features)
  found = leave_one_out(x, labels, CLASSES)
  expected = {ridge: left_out_in_turn(x, labels, ridge) for ridge in RIDGES}
  assert found.ridge == min(expected, key=lambda ridge: expected[ridge][0])
  squared_error, error_percent = expected[found.ridge]
  assert found.squared_error == pytest.approx(squared_error, rel=1e-9)
  assert found.error_percent == pytest.approx(error_percent)
  assert 0 < found.error_percent < 60


def test_constant_and_scaled_features_change_nothing():
  x, labels = clouds()
  constant = np.full((len(x), 1), 7.0)
  changed = leave_one_out(np.hstack([1000 * x[:, :3], x[:, 3:] - 5, constant]), labels, CLASSES)
  assert changed.squared_error == pytest.approx(leave_one_out(x, labels, CLASSES).squared_error)


def test_what_tells_nothing_is_no_better_than_chance():
  random = np.random.default_rng(0)
  labels = np.arange(300) % CLASSES
  found = leave_one_out(random.normal(size=(300, 20)), labels, CLASSES)
  assert found.error_percent > 55
  # Of the classes' shares alone: 1 - sum of squares.
  assert found.squared_error == pytest.approx(2 / 3, rel=0.02)


def test_one_image_is_too_few():
  with pytest.raises(UserError, match="1 training image: too few"):
    leave_one_out(np.ones((1, 4)), np.array([0]), CLASSES)


@pytest.fixture(scope="module")
def parameters(small_networks):
  return initial_parameters(NFNet("tiny", 10), 0)


@pytest.fixture(scope="module")
def experiment(digits, parameters, tmp_path_factory):
  weights = tmp_path_factory.mktemp("weights") / "tiny.npz"
  save_haiku(str(weights), parameters, "tiny")
  return load_experiment(
    "tests/train/small_network.py",
    [
      f"--config.data.path={digits}",
      f"--config.initial_weights={weights}",
      "--config.data.evaluation_batch_size=64",
    ],
  )


def test_the_classifier_is_linear_in_the_features(parameters):
  model = NFNet("tiny", 10, dropout_rate=0.0)
  images = jax.random.normal(jax.random.key(0), (8, 16, 16, 3))
  features = jax.jit(lambda parameters, images: pooled_features(model, parameters, images))(
    parameters, images
  )
  logits = jax.jit(lambda parameters, images: apply(model, parameters, images))(parameters, images)
  classifier = parameters["classifier"]
  expected = np.asarray(features) @ np.asarray(classifier["weight"]) + np.asarray(
    classifier["bias"]
  )
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_probes_the_training_images(experiment, parameters):
  """On eight devices, which have the images in another order."""
  model = NFNet("tiny", 10)
  data = dataclasses.replace(experiment.data, evaluation_split="train")
  compute = jax.jit(lambda parameters, images: pooled_features(model, parameters, images))
  features, labels = [], []
  with evaluation_batches(data) as batches:
    for batch in batches:
      is_there = batch["weight"] > 0
      images = normalize(jnp.asarray(batch["image"]))
      features.append(np.asarray(compute(parameters, images))[is_there])
      labels.append(batch["labels"][is_there, 0])
  expected = leave_one_out(np.concatenate(features), np.concatenate(labels), 10)
  found = probe(experiment)
  assert found.images == 1000
  assert found.error_percent == pytest.approx(expected.error_percent, abs=0.2)
  assert found.squared_error == pytest.approx(expected.squared_error, rel=1e-3)
  # An untrained network's features are not the digits themselves, but no noise either.
  assert 1 < found.error_percent < 50
  assert probe(experiment, images_max=100).images == 100


def test_images_of_several_classes_are_refused(experiment):
  sigmoid = dataclasses.replace(
    experiment, loss=dataclasses.replace(experiment.loss, kind="sigmoid", label_smoothing=0.0)
  )
  with pytest.raises(UserError, match=r"loss\.kind=sigmoid"):
    probe(sigmoid)
