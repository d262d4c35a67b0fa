import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from train.config.experiment import Loss
from train.step.losses import targets_from_labels
from train.step.scores import CALIBRATION_BINS, hits_in_top, score_sums, scores

CLASSES = 7


def predictions(images=400, labels=1, seed=0):
  """Logits, labels with -1 for none, weight."""
  generator = np.random.default_rng(seed)
  logits = generator.normal(size=(images, CLASSES)).astype(np.float32) * 2
  # No image of the last class.
  chosen = np.stack([generator.permutation(CLASSES - 1)[:labels] for _ in range(images)])
  if labels > 1:
    chosen[::3, 1:] = -1
  weight = (generator.random(images) < 0.8).astype(np.float32)
  return logits, chosen.astype(np.int32), weight


def sums_of(loss, logits, labels, weight):
  targets = targets_from_labels(jnp.asarray(labels), CLASSES)
  return jax.jit(score_sums, static_argnums=0, static_argnames="counts_confusion")(
    loss, jnp.asarray(logits), targets, jnp.asarray(weight), counts_confusion=True
  )


def scores_of(logits, labels, weight, loss=Loss(label_smoothing=0.3)):  # noqa: B008
  return scores(sums_of(loss, logits, labels, weight))


def softmax(logits):
  exponentials = np.exp(logits.astype(np.float64))
  return exponentials / exponentials.sum(-1, keepdims=True)


def test_scores_image_by_image():
  logits, labels, weight = predictions()
  found = scores_of(logits, labels, weight)
  counted = weight == 1
  logits, labels = logits[counted], labels[counted, 0]
  probabilities = softmax(logits)
  predicted = probabilities.argmax(-1)
  ranks = (logits > logits[np.arange(len(labels)), labels][:, None]).sum(-1)
  # Without smoothing.
  losses = -np.log(probabilities[np.arange(len(labels)), labels])
  assert found.loss == pytest.approx(losses.mean(), rel=1e-5)
  assert found.top1 == pytest.approx((predicted == labels).mean(), rel=1e-6)
  assert found.top5 == pytest.approx((ranks < 5).mean(), rel=1e-6)
  assert found.examples == counted.sum()
  per_class = [(predicted == labels)[labels == c].mean() for c in range(CLASSES - 1)]
  np.testing.assert_allclose(found.class_top1[:-1], per_class, rtol=1e-6)
  assert np.isnan(found.class_top1[-1])
  np.testing.assert_array_equal(found.class_examples, np.bincount(labels, minlength=CLASSES))
  assert found.class_mean_top1 == pytest.approx(np.mean(per_class), rel=1e-6)
  confidence = probabilities.max(-1)
  error = 0.0
  for i in range(CALIBRATION_BINS):
    own = (confidence * CALIBRATION_BINS).astype(int) == i
    if own.any():
      gap = abs(confidence[own].mean() - (predicted == labels)[own].mean())
      error += own.mean() * gap
  assert found.calibration_error == pytest.approx(error, rel=1e-4)


def test_a_network_that_knows_how_often_it_is_right_has_no_calibration_error():
  generator = np.random.default_rng(0)
  logits, _, _ = predictions(20_000)
  draws = generator.random((len(logits), 1))
  labels = (softmax(logits).cumsum(-1) < draws).sum(-1)[:, None].clip(max=CLASSES - 1)
  weight = np.ones(len(logits), np.float32)
  # 15 bins of some 1300 images, each off by its standard error of about 0.014 * 0.8.
  assert scores_of(logits, labels.astype(np.int32), weight).calibration_error < 0.02
  # Three times as sure of the same, it is wrong about that.
  assert scores_of(3 * logits, labels.astype(np.int32), weight).calibration_error > 0.1


def test_of_several_labels_one_is_enough_and_each_class_counts():
  logits, labels, weight = predictions(labels=3)
  found = scores_of(logits, labels, weight, Loss(kind="sigmoid"))
  counted = weight == 1
  predicted = logits.argmax(-1)
  hits = (labels == predicted[:, None]).any(-1)
  assert found.top1 == pytest.approx(hits[counted].mean(), rel=1e-6)
  for c in range(CLASSES - 1):
    has = counted & (labels == c).any(-1)
    assert found.class_examples[c] == has.sum()
    assert found.class_top1[c] == pytest.approx((predicted[has] == c).mean(), rel=1e-6)


@pytest.mark.parametrize("never_predicted", [None, 2])
def test_scores_by_class_are_those_of_scikit_learn(never_predicted):
  logits, labels, weight = predictions()
  if never_predicted is not None:
    logits[:, never_predicted] = -99
  found = scores_of(logits, labels, weight)
  counted = weight == 1
  truth, predicted = labels[counted, 0], logits[counted].argmax(-1)
  # The last class has no images and is predicted nevertheless.
  assert (predicted == CLASSES - 1).any()
  with_images = list(range(CLASSES - 1))
  for average in (None, "macro"):
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
      truth, predicted, labels=with_images, average=average, zero_division=0
    )
    if average is None:
      for ours, theirs in (
        (found.class_precision, precision),
        (found.class_top1, recall),
        (found.class_f1, f1),
      ):
        np.testing.assert_allclose(ours[:-1], theirs, rtol=1e-6)
        assert np.isnan(ours[-1])
    else:
      ours = (found.macro_precision, found.class_mean_top1, found.macro_f1)
      assert ours == pytest.approx((precision, recall, f1), rel=1e-6)
  np.testing.assert_array_equal(
    found.confusion, metrics.confusion_matrix(truth, predicted, labels=range(CLASSES))
  )


def test_images_of_several_classes_are_in_no_row_of_the_confusion_matrix():
  logits, labels, weight = predictions(labels=3)
  found = scores_of(logits, labels, weight, Loss(kind="sigmoid"))
  single = (labels >= 0).sum(-1) == 1
  counted = (weight == 1) & single
  expected = metrics.confusion_matrix(
    labels[counted, 0], logits[counted].argmax(-1), labels=range(CLASSES)
  )
  assert 0 < counted.sum() < weight.sum()
  np.testing.assert_array_equal(found.confusion, expected)


def test_sums_of_batches_add_up():
  logits, labels, weight = predictions()
  parts = [
    sums_of(Loss(), logits[part], labels[part], weight[part])
    for part in (slice(0, 100), slice(100, 400))
  ]
  added = scores(jax.tree.map(lambda a, b: a + b, *parts)).scalars()
  assert added == pytest.approx(scores_of(logits, labels, weight).scalars(), rel=1e-5)


def test_no_image_has_scores_of_zero():
  logits, labels, weight = predictions()
  found = scores_of(logits, labels, 0 * weight)
  assert set(found.scalars().values()) == {0.0}
  assert np.isnan(found.class_top1).all()


def test_hits_in_top_k():
  logits = np.array([[2.0, -1.0, 0.5, 0.0], [0.0, 0.0, 3.0, -3.0]], np.float32)
  targets = np.array([[0, 0, 1, 0], [0, 1, 0, 1]], np.float32)
  np.testing.assert_array_equal(hits_in_top(1, logits, targets), [0, 0])
  np.testing.assert_array_equal(hits_in_top(2, logits, targets), [1, 0])
  np.testing.assert_array_equal(hits_in_top(3, logits, targets), [1, 1])
  # More than there are classes is all classes.
  np.testing.assert_array_equal(hits_in_top(5, logits, targets), [1, 1])
