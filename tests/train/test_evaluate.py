"""The command `train.evaluate` on files of weights: its scores are those of their predictions."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from scipy.special import log_softmax, logsumexp
from sklearn import metrics

import nfnet
from nfnet.model import parameter_shapes
from nfnet.weights.timm import save_timm
from tests import commands
from tests.file_modes import group_umask, modes_beside_group_umask
from tests.quick_compilation import XLA_FLAGS
from tests.train.data import image_files
from tests.train.small_network import TINY
from train.data import dataset_writer
from train.data.preparation.class_folders import TRAIN, VALIDATION
from train.data.sources.images import Pixels
from train.data.sources.source import Source

IMAGES = 40

pytestmark = pytest.mark.usefixtures("small_networks")


def evaluate(*arguments):
  return commands.run(
    "tests.train.small_network",
    "train.evaluate",
    *arguments,
    environment={"XLA_FLAGS": XLA_FLAGS},
  )


def write_weights(path, num_classes, weight, bias):
  """Writes initial values with another classifier."""
  parameters = nfnet.initial_parameters(nfnet.NFNet(TINY.name, num_classes), 0)
  given = {"weight": weight, "bias": bias}
  classifier = {
    name: np.float32(np.broadcast_to(given[name], initial.shape))
    for name, initial in parameters["classifier"].items()
  }
  save_timm(str(path), {**parameters, "classifier": classifier}, TINY.name)


def write_dataset(folder, class_names, labels):
  """Writes held-out pictures of these classes, which differ in color, and one to train on."""
  rng = np.random.default_rng(0)

  def picture(name, label):
    noise = rng.integers(0, 80, (36, 40, 3))
    return Pixels(name, (int(label),), (noise + rng.integers(0, 176, 3)).astype(np.uint8))

  held_out = tuple(picture(f"{number:03d}", label) for number, label in enumerate(labels))
  splits = {TRAIN: (picture("only", 0),), VALIDATION: held_out}
  dataset_writer.write_dataset(folder, Source(tuple(class_names), splits))


def confusion_of(text):
  """Returns the numbers above 0 of a file by the names of class and predicted class."""
  (_, *predicted), *rows = csv.reader(text.splitlines())
  return {
    (name, other): int(cell)
    for name, *cells in rows
    for other, cell in zip(predicted, cells, strict=True)
    if cell != "0"
  }


def test_the_scores_are_those_of_the_predictions(tmp_path):
  rng = np.random.default_rng(1)
  # They are in another order in the classifier.
  names = [f"kind {letter}" for letter in "abcdefghij"]
  network_names = [names[(3 * k + 1) % 10] for k in range(10)]
  (tmp_path / "names.txt").write_text("\n".join(network_names))
  write_dataset(tmp_path / "data", names, rng.integers(0, 10, IMAGES))
  records = image_files.read_all(tmp_path / "data", VALIDATION)
  shapes = parameter_shapes(nfnet.NFNet(TINY.name, 10))["classifier"]
  weights, weight = tmp_path / "weights", rng.standard_normal(shapes["weight"].shape)

  def logits():
    classifier = nfnet.load_classifier(weights)
    return np.float64(classifier.logits(classifier.preprocess([one.image for one in records])))

  # A network that nobody has trained takes all images for the same class, unless its bias is this.
  write_weights(weights, 10, weight, 0)
  write_weights(weights, 10, weight, -logits().mean(axis=0))
  expected = logits()
  results = tmp_path / "results"
  with group_umask():
    result = evaluate(
      f"--weights={weights}",
      f"--data={tmp_path / 'data'}",
      f"--class_names_file={tmp_path / 'names.txt'}",
      f"--json={results / 'scores.json'}",
      f"--confusion_csv={results / 'confusion.csv'}",
      f"--confusion_plot={results / 'confusion.png'}",
    )
  assert result.returncode == 0, result.stderr
  assert modes_beside_group_umask(results) == {}

  classes = [network_names.index(names[one.labels[0]]) for one in records]
  predicted = expected.argmax(axis=1)
  assert len(set(predicted)) > 4
  log_probabilities = log_softmax(expected, axis=1)
  top1 = metrics.accuracy_score(classes, predicted)
  top5 = metrics.top_k_accuracy_score(classes, expected, k=5, labels=range(10))
  of_class = metrics.precision_recall_fscore_support(
    classes, predicted, labels=range(10), zero_division=0
  )
  content = json.loads((results / "scores.json").read_text())
  assert content["classes_matched"] == "by name, with --class_names_file"
  (found,) = content["evaluations"]
  assert (found["network"], found["pixels"], found["examples"]) == ("parameters", 32, IMAGES)
  assert found["loss"] == pytest.approx(-log_probabilities[range(IMAGES), classes].mean(), rel=1e-4)
  assert (found["top1"], found["top5"]) == pytest.approx((top1, top5))
  confidence = np.exp(log_probabilities.max(axis=1))
  bins = (confidence * 15).astype(int)
  excess = np.bincount(bins, confidence - (predicted == classes))
  assert found["calibration_error"] == pytest.approx(np.abs(excess).sum() / IMAGES, rel=1e-3)
  assert [one["name"] for one in found["classes"]] == network_names
  keys = ("precision", "recall", "f1", "examples")
  for key, values in zip(keys, of_class, strict=True):
    with_images = of_class[-1] > 0
    assert [one[key] for one in found["classes"] if one["examples"]] == pytest.approx(
      values[with_images].tolist()
    )
    if f"macro_{key}" in found:
      assert found[f"macro_{key}"] == pytest.approx(values[with_images].mean())
  matrix = metrics.confusion_matrix(classes, predicted, labels=range(10))
  assert confusion_of((results / "confusion.csv").read_text()) == {
    (network_names[i], network_names[j]): int(count)
    for (i, j), count in np.ndenumerate(matrix)
    if count
  }
  with Image.open(results / "confusion.png") as picture:
    assert picture.size[0] > 300
    assert len(picture.convert("RGB").getcolors(2**24)) > 20
  row = next(line for line in result.stdout.splitlines() if line.startswith("parameters"))
  assert row.split()[1:3] == ["32", str(IMAGES)]
  assert row.split()[4:6] == [f"{top1:.2%}", f"{top5:.2%}"]


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory, small_networks):
  """A classifier whose bias alone decides, and 1,000 WordNet ids in the order of its classes."""
  rng = np.random.default_rng(2)
  ids = [f"n{number:08d}" for number in sorted(rng.choice(10**8, 1000, replace=False))]
  bias = rng.permutation(np.linspace(-4, 4, 1000))
  path = tmp_path_factory.mktemp("imagenet") / "released.safetensors"
  write_weights(path, 1000, 0, bias)
  return path, ids, bias


def assert_each_is_the_class_of_its_id(imagenet, content, confusion, labels):
  """All images are taken for the class with the largest bias; `labels` are the images' ids."""
  _, ids, bias = imagenet
  classes = [ids.index(label) for label in labels]
  order = np.argsort(-bias).tolist()
  (found,) = content["evaluations"]
  assert found["loss"] == pytest.approx((logsumexp(bias) - bias[classes]).mean(), rel=1e-4)
  assert found["top1"] == pytest.approx(classes.count(order[0]) / len(classes))
  assert found["top5"] == pytest.approx(sum(one in order[:5] for one in classes) / len(classes))
  assert [one["name"] for one in found["classes"]] == ids
  counted = {one["name"]: one["examples"] for one in found["classes"] if one["examples"]}
  assert counted == {label: labels.count(label) for label in labels}
  assert confusion_of(confusion) == {
    (label, ids[order[0]]): labels.count(label) for label in labels
  }


def shuffled(imagenet):
  """Returns a handful of the ids, which are not in order, and one for each image."""
  _, ids, bias = imagenet
  order = np.argsort(-bias)
  handful = [ids[order[rank]] for rank in (700, 0, 300, 2, 999)]
  assert handful != sorted(handful)
  return handful, [handful[number] for number in (0, 1, 1, 2, 3, 4, 4, 0, 1)]


def test_imagenets_classes_are_matched_by_the_order_of_their_ids(imagenet, tmp_path):
  weights, ids, _ = imagenet
  _, labels = shuffled(imagenet)
  names = np.random.default_rng(3).permutation(ids).tolist()
  write_dataset(tmp_path / "data", names, [names.index(label) for label in labels])
  result = evaluate(
    f"--weights={weights}",
    f"--data={tmp_path / 'data'}",
    f"--json={tmp_path / 'scores.json'}",
    f"--confusion_csv={tmp_path / 'confusion.csv'}",
  )
  assert result.returncode == 0, result.stderr
  assert "classes matched 1,000 WordNet ids, whose sorted order is" in result.stdout
  content = json.loads((tmp_path / "scores.json").read_text())
  confusion = (tmp_path / "confusion.csv").read_text()
  assert_each_is_the_class_of_its_id(imagenet, content, confusion, labels)


def test_some_of_imagenets_classes_need_the_names_of_all(imagenet, gcs, tmp_path):
  """Weights, data and results are in a bucket."""
  weights, ids, _ = imagenet
  handful, labels = shuffled(imagenet)
  write_dataset(tmp_path / "data", handful, [handful.index(label) for label in labels])
  gcs.upload(tmp_path / "data", "data")
  gcs.put("released.safetensors", weights.read_bytes())
  (tmp_path / "names.txt").write_text("\n".join(ids))
  arguments = [
    f"--weights={gcs.url}/released.safetensors",
    f"--data={gcs.url}/data",
    f"--json={gcs.url}/results/scores.json",
    f"--confusion_csv={gcs.url}/results/confusion.csv",
    f"--confusion_plot={gcs.url}/results/confusion.png",
  ]
  result = evaluate(*arguments)
  assert (result.returncode, gcs.names("results")) == (2, [])
  error = result.stderr.splitlines()[-1]
  assert "5 classes" in error
  assert error.endswith("give the names in the order of the classifier: --class_names_file=FILE")
  result = evaluate(*arguments, f"--class_names_file={tmp_path / 'names.txt'}")
  assert result.returncode == 0, result.stderr
  content = json.loads(gcs.read("results/scores.json"))
  confusion = gcs.read("results/confusion.csv").decode()
  assert_each_is_the_class_of_its_id(imagenet, content, confusion, labels)
  assert gcs.read("results/confusion.png").startswith(b"\x89PNG")
