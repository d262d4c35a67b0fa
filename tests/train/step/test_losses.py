import jax.numpy as jnp
import numpy as np
import pytest

from train.config.experiment import Loss
from train.step.losses import example_losses, example_weights, smooth_labels, targets_from_labels

LOGITS = np.array([[2.0, -1.0, 0.5, 0.0], [0.0, 0.0, 3.0, -3.0]], np.float32)


def log_softmax(x):
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_targets_leave_out_filled_up_labels():
  labels = np.array([[1, -1], [0, 3]], np.int32)
  np.testing.assert_array_equal(targets_from_labels(labels, 4), [[0, 1, 0, 0], [1, 0, 0, 1]])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_with_label_smoothing(smoothing):
  labels = np.array([[1], [2]], np.int32)
  got = example_losses(Loss(label_smoothing=smoothing), LOGITS, targets_from_labels(labels, 4))
  logs = log_softmax(LOGITS.astype(np.float64))
  picked = logs[[0, 1], [1, 2]]
  want = -((1 - smoothing) * picked + smoothing * logs.mean(-1))
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_sigmoid_sums_binary_cross_entropies():
  targets = np.array([[1, 0, 0, 1], [0, 0, 0, 0]], np.float32)
  got = example_losses(Loss(kind="sigmoid"), LOGITS, targets)
  p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
  want = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).sum(-1)
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_sigmoid_is_finite_for_large_logits():
  got = example_losses(
    Loss(kind="sigmoid"), np.full((1, 2), 1e4, np.float32), np.zeros((1, 2), np.float32)
  )
  np.testing.assert_allclose(got, [2e4], rtol=1e-6)


def test_smoothed_labels_still_add_up_to_one():
  smoothed = smooth_labels(np.array([[0, 1, 0, 0]], np.float32), 0.1)
  np.testing.assert_allclose(smoothed, [[0.025, 0.925, 0.025, 0.025]], rtol=1e-6)


def test_an_example_has_the_weight_of_its_class():
  weights = jnp.asarray([0.5, 2.0, 4.0])
  targets = jnp.asarray([[0.0, 1, 0], [0, 0.25, 0.75], [1, 1, 0], [0, 0, 0]])
  np.testing.assert_allclose(example_weights(targets, weights), [2, 3.5, 1.25, 0])
