"""Tests the command `nfnet.predict` and, below it, `nfnet.inference`."""

import csv
import dataclasses
import functools
import inspect
import io
import json
import os
import re
import shutil
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from nfnet import inference, initial_parameters
from nfnet.errors import UserError
from nfnet.images.normalization import MEAN_RGB, STDDEV_RGB, normalize
from nfnet.images.resizing import resize_and_center_crop
from nfnet.inference import (
  Classifier,
  as_text,
  load_classifier,
  outcome_of,
  predict,
  read_images,
)
from nfnet.model import NFNet, apply, parameter_shapes
from nfnet.predict import checked_inputs, read_inputs
from nfnet.weights.haiku import save_haiku
from nfnet.weights.load import load_weights
from nfnet.weights.timm import save_timm
from tests import commands
from tests.file_modes import group_umask, modes_beside_group_umask
from tests.streams import Stream
from tests.train.saved_checkpoint import save_checkpoint
from tests.train.small_network import TINY
from train.config.experiment import Data, Experiment, Loss, Model
from train.config.json_conversion import to_json

NAME = TINY.name
NUM_CLASSES = 7
CLASS_NAMES = [f"name {i}" for i in range(NUM_CLASSES)]


pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture(scope="module")
def parameters(small_networks):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda shape: np.asarray(0.5 * rng.standard_normal(shape.shape), np.float32),
    parameter_shapes(NFNet(NAME, NUM_CLASSES)),
  )


def without(experiment, *fields):
  """Returns the experiment as JSON of a version that did not have these fields."""
  converted = to_json(experiment)
  for field in fields:
    section, name = field.split(".")
    del converted[section][name]
  return converted


@pytest.fixture(scope="module")
def folder(tmp_path_factory, parameters):
  """Holds weights of each kind, three images and an array of inputs."""
  folder = tmp_path_factory.mktemp("predict")
  save_haiku(str(folder / "haiku.npz"), parameters, NAME)
  save_timm(str(folder / "timm.safetensors"), parameters, NAME)
  for name, kind, activation in (("softmax", "softmax", "silu"), ("sigmoid", "sigmoid", "gelu")):
    experiment = Experiment(
      name=name,
      model=Model(variant=NAME, activation=activation),
      data=Data(evaluation_pixels=24, evaluation_resize_margin=0),
      loss=Loss(kind=kind),
    )
    save_checkpoint(
      folder / name, parameters, experiment=to_json(experiment), class_names=CLASS_NAMES
    )
  rng = np.random.default_rng(1)
  for name, size in (("a.png", (40, 50)), ("b.jpg", (64, 64)), ("c.webp", (30, 90))):
    Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / name)
  np.save(folder / "inputs.npy", rng.standard_normal((5, 32, 32, 3)).astype(np.float32))
  return folder


def expected_logits(parameters, images, **arguments):
  model = NFNet(NAME, NUM_CLASSES, block_execution="unrolled", **arguments)
  function = jax.jit(functools.partial(apply, model))
  return np.asarray(function(parameters, images))


def top_classes(classifier, logits):
  """Returns the lines below the image's name."""
  return as_text(outcome_of(classifier, "image", logits, 5)).partition("\n")[2]


def run(*arguments, module="tests.train.small_network", **options):
  return commands.run(module, *arguments, **options)


@pytest.mark.parametrize("weights", ["haiku.npz", "timm.safetensors"])
def test_logits_of_arrays(folder, weights, parameters):
  classifier = load_classifier(str(folder / weights), variant=NAME)
  inputs = read_inputs(str(folder / "inputs.npy"))
  logits = np.stack(list(predict(classifier, iter(inputs), num_images=5, batch_size=2)))
  assert logits.dtype == np.float32
  np.testing.assert_allclose(logits, expected_logits(parameters, inputs), rtol=1e-4, atol=1e-5)


def test_filters_are_standardized_once(folder, monkeypatch):
  standardize, calls = inference.standardized, []

  def counted(*arguments, **options):
    calls.append(arguments)
    return standardize(*arguments, **options)

  monkeypatch.setattr(inference, "standardized", counted)
  classifier = load_classifier(str(folder / "softmax"))
  inputs = np.array(read_inputs(str(folder / "inputs.npy")))
  for count in (1, 2, 2):
    logits = jax.make_jaxpr(classifier.logits)(inputs[:count])
    # Only those of the stem's four convolutions, which are not among the standardized ones.
    assert str(logits).count(" rsqrt ") == 4
  assert len(calls) == 1


def test_blocks_are_unrolled_on_a_cpu(tmp_path):
  path, looped = str(tmp_path / "P0.npz"), NFNet("P0", NUM_CLASSES)
  assert max(map(len, looped.runs)) > 1
  save_haiku(path, initial_parameters(looped, 0), "P0")
  model = load_classifier(path, variant="P0").model
  assert {len(run) for run in model.runs} == {1}


def test_a_classifier_has_the_gradient_of_its_images(folder, parameters):
  classifier = load_classifier(str(folder / "haiku.npz"), variant=NAME)
  inputs = jnp.asarray(read_inputs(str(folder / "inputs.npy"))[:2])
  model = NFNet(NAME, NUM_CLASSES, block_execution="unrolled")
  parameters = jax.tree.map(jnp.asarray, parameters)
  ours = jax.jit(jax.grad(lambda images: classifier.logits(images)[:, 0].sum()))(inputs)
  expected = jax.jit(jax.grad(lambda images: apply(model, parameters, images)[:, 0].sum()))(inputs)
  np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-6)


def test_a_classifier_refuses_parameters_of_another_network(folder, parameters):
  classifier = load_classifier(str(folder / "haiku.npz"), variant=NAME)
  lacking = {name: value for name, value in parameters.items() if name != "stem"}
  inputs = np.array(read_inputs(str(folder / "inputs.npy"))[:1])
  with pytest.raises(ValueError, match=r"parameters lack stem/"):
    dataclasses.replace(classifier, parameters=lacking).logits(inputs)


def test_activations_differ_and_the_checkpoint_knows_its_own(folder, parameters):
  inputs = np.array(read_inputs(str(folder / "inputs.npy"))[:2])
  silu = load_classifier(str(folder / "softmax")).logits(inputs)
  expected = expected_logits(parameters, inputs, activation="silu")
  np.testing.assert_allclose(silu, expected, rtol=1e-4, atol=1e-5)
  asked = load_classifier(str(folder / "haiku.npz"), variant=NAME, activation="silu").logits(inputs)
  np.testing.assert_allclose(asked, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ("weights", "pixels", "used"),
  [("haiku.npz", None, (32, 32)), ("haiku.npz", 48, (48, 32)), ("softmax", None, (24, 0))],
)
def test_resolution_is_that_of_the_checkpoint_or_the_variant(folder, weights, pixels, used):
  classifier = load_classifier(str(folder / weights), variant=NAME, pixels=pixels)
  assert (classifier.pixels, classifier.resize_margin) == used
  images = list(read_images([str(folder / "a.png"), str(folder / "c.webp")], classifier, ahead=1))
  assert [image.shape for image in images] == [(used[0], used[0], 3)] * 2
  assert {image.dtype for image in images} == {np.dtype("float32")}


@pytest.mark.parametrize(
  ("weights", "asked", "used"),
  [
    ("haiku.npz", None, "squash"),
    ("timm.safetensors", None, "squash"),
    ("haiku.npz", "shorter_side", "shorter_side"),
    ("squashed", None, "squash"),
    ("softmax", None, "shorter_side"),
    ("softmax", "squash", "squash"),
    ("old", None, "shorter_side"),
  ],
)
def test_images_are_resized_as_the_weights_were_evaluated(
  folder, parameters, tmp_path, weights, asked, used
):
  experiment = Experiment(
    name="x", model=Model(variant=NAME), data=Data(evaluation_pixels=32, evaluation_resize="squash")
  )
  path = folder / weights
  if weights in ("squashed", "old"):
    path = tmp_path / weights
    unknown = ["data.evaluation_resize", "model.numerics"] if weights == "old" else []
    save_checkpoint(
      path, parameters, experiment=without(experiment, *unknown), class_names=CLASS_NAMES
    )
  classifier = load_classifier(str(path), variant=NAME, resize=asked)
  assert classifier.resize == used
  (image,) = classifier.preprocess(folder / "c.webp")
  with Image.open(folder / "c.webp") as picture:
    expected = resize_and_center_crop(
      np.asarray(picture.convert("RGB")), classifier.pixels, classifier.resize_margin, used
    )
  np.testing.assert_array_equal(image, normalize(expected))


def test_a_checkpoint_knows_its_numerics(folder, parameters, tmp_path):
  experiment = Experiment(name="x", model=Model(variant=NAME, numerics="timm"))
  save_checkpoint(
    tmp_path / "timm", parameters, experiment=to_json(experiment), class_names=CLASS_NAMES
  )
  inputs = np.array(read_inputs(str(folder / "inputs.npy"))[:2])
  logits = load_classifier(str(tmp_path / "timm")).logits(inputs)
  expected = expected_logits(parameters, inputs, numerics="timm")
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
  with pytest.raises(UserError, match="trained with --numerics=timm, not released"):
    load_classifier(str(tmp_path / "timm"), numerics="released")


def test_images_are_normalized(folder):
  Image.new("RGB", (64, 64), (10, 20, 30)).save(folder / "plain.png")
  classifier = load_classifier(str(folder / "haiku.npz"), variant=NAME)
  (image,) = classifier.preprocess(folder / "plain.png")
  expected = (np.array([10, 20, 30]) - MEAN_RGB) / STDDEV_RGB
  np.testing.assert_allclose(image[5, 7], expected, rtol=1e-5)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MeanClassifier(Classifier):
  """Returns the means of an image's channels as its logits, and keeps the shapes of batches."""

  shapes: set = dataclasses.field(default_factory=set)

  def logits(self, images):
    self.shapes.add(images.shape)
    return images.mean(axis=(1, 2))


def mean_classifier(class_names=None):
  return MeanClassifier(
    model=NFNet(NAME, 3),
    parameters={},
    pixels=24,
    resize="squash",
    resize_margin=0,
    class_names=class_names,
    is_multi_label=False,
  )


@pytest.mark.parametrize("bad", [(), (0,), (1, 2), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_batches_are_of_one_size_and_results_in_the_order_of_the_images(count, bad):
  classifier = mean_classifier()
  images = [
    UserError(f"bad {i}") if i in bad else np.full((2, 2, 3), i + 1, np.float32)
    for i in range(count)
  ]
  found = predict(classifier, iter(images), num_images=count, batch_size=2)
  for image, result in zip(images, found, strict=True):
    if isinstance(image, UserError):
      assert result is image
    else:
      np.testing.assert_array_equal(result, image[0, 0])
  assert classifier.shapes <= {(2, 2, 2, 3)}


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("batch_size", [2, 5])
def test_the_progress_of_several_batches_is_shown_on_a_terminal_only(
  is_terminal, batch_size, monkeypatch
):
  def images():
    for _ in range(5):
      # A bar is drawn again after a tenth of a second.
      time.sleep(0.06)
      yield np.ones((2, 2, 3), np.float32)

  monkeypatch.setattr(sys, "stderr", Stream(is_terminal))
  results = predict(mean_classifier(), images(), num_images=5, batch_size=batch_size)
  assert len(list(results)) == 5
  counts = re.findall(r"(\d)/5 \[.*?image", sys.stderr.getvalue())
  if is_terminal and batch_size < 5:
    assert counts[:3] == ["0", "2", "4"]
    # The line is free for the results at the end.
    assert sys.stderr.getvalue().endswith("\r")
  else:
    assert sys.stderr.getvalue() == ""


def test_results_do_not_depend_on_the_batch(folder):
  classifier = load_classifier(str(folder / "softmax"))
  paths = [str(folder / name) for name in ("a.png", "b.jpg", "c.webp", "a.png", "b.jpg")]
  inputs = list(read_images(paths, classifier, ahead=3))

  def logits(images, batch_size):
    return np.stack(
      list(predict(classifier, images, num_images=len(images), batch_size=batch_size))
    )

  expected = logits(inputs, 2)
  # Other images beside it, to the bit; in batches of another size, XLA rounds differently.
  np.testing.assert_array_equal(logits(inputs[::-1], 2)[::-1], expected)
  np.testing.assert_array_equal(expected[:2], expected[3:])
  for batch_size in (1, 5, 16):
    np.testing.assert_allclose(logits(inputs, batch_size), expected, rtol=1e-5, atol=1e-5)


def test_few_images_are_read_ahead(folder):
  classifier = mean_classifier()
  asked = []

  def paths():
    for i in range(50):
      asked.append(i)
      yield str(folder / ("a.png" if i % 2 else "missing.png"))

  images = read_images(paths(), classifier, ahead=4)
  for i in range(10):
    assert isinstance(next(images), UserError) == (i % 2 == 0)
    assert len(asked) <= i + 4
  images.close()


def test_softmax_probabilities_and_names(folder):
  text = top_classes(
    load_classifier(str(folder / "softmax")), np.log(np.arange(1, 8, dtype=np.float32))
  )
  assert text.splitlines() == [
    f"  {probability:>8}  name {i}"
    for i, probability in zip(
      (6, 5, 4, 3, 2), ("25.00%", "21.43%", "17.86%", "14.29%", "10.71%"), strict=True
    )
  ]


def test_names_of_a_file_reach_the_terminal_as_text():
  classifier = mean_classifier(class_names=["cat", "\x1b[31m\n", "\udcff"])
  lines = top_classes(classifier, np.float32([0, 1, 2])).splitlines()
  assert [line.split("  ")[-1] for line in lines] == [r"\udcff", r"\x1b[31m\n", "cat"]


def test_logits_that_are_not_finite_are_no_probabilities(folder):
  classifier = load_classifier(str(folder / "softmax"))
  text = top_classes(classifier, np.full(NUM_CLASSES, np.nan, np.float32))
  assert text == "  no class: the logits are not finite; the weights or the input are not sound"


def test_sigmoid_probabilities_are_independent(folder):
  logits = np.zeros(NUM_CLASSES, np.float32)
  text = top_classes(load_classifier(str(folder / "sigmoid")), logits)
  assert [line.split()[0] for line in text.splitlines()] == ["50.00%"] * 5


def test_the_command_and_a_program_share_the_classifier(folder):
  classifier = load_classifier(folder / "softmax")
  paths = [folder / "a.png", folder / "b.jpg"]
  expected = np.stack(list(read_images(map(str, paths), classifier, ahead=2)))
  np.testing.assert_array_equal(classifier.preprocess(paths), expected)
  logits = np.log(np.arange(1, 8, dtype=np.float32))
  best, second = classifier.top(logits, count=2)
  assert (best.index, best.name, second.name) == (6, "name 6", "name 5")
  assert best.probability == pytest.approx(7 / 28)
  assert outcome_of(classifier, "image", logits, 2).predictions == (best, second)
  with pytest.raises(ValueError, match=r"logits have shape \[1, 7\]; must be \[7\]: give those of"):
    classifier.top(logits[None])
  with pytest.raises(ValueError, match="the logits are not finite"):
    classifier.top(np.full(7, np.nan, np.float32))
  assert len(repr(classifier)) < 300
  with pytest.raises(ValueError, match="unknown variant 'F9'"):
    load_classifier(folder / "softmax", variant="F9")


def test_released_weights_have_numbers_for_names(folder):
  classifier = load_classifier(str(folder / "haiku.npz"), variant=NAME)
  assert "class 0" in top_classes(classifier, np.zeros(NUM_CLASSES, np.float32))


@pytest.mark.parametrize(
  ("array", "message"),
  [
    (np.zeros((2, 8, 8, 3)), r"are float64 \[2, 8, 8, 3\]; must be float32"),
    (np.zeros((2, 8, 8, 3), np.uint8), "are uint8"),
    (np.zeros((8, 8, 3), np.float32), r"\[8, 8, 3\]; must be"),
    (np.zeros((2, 3, 8, 8), np.float32), r"\[2, 3, 8, 8\]; must be"),
    (np.zeros((0, 8, 8, 3), np.float32), "not empty"),
    (np.full((2, 8, 8, 3), 255, np.float32), r"inputs '.*x\.npy': images have values from 255 to"),
    (np.array([{}]), r"cannot be read as a \.npy array"),
  ],
)
def test_inputs_of_another_kind_are_errors(array, message, tmp_path):
  path = str(tmp_path / "x.npy")
  np.save(path, array, allow_pickle=True)
  with pytest.raises(UserError, match=message):
    read_inputs(path)


def test_inputs_that_are_not_normalized_are_errors_in_their_places():
  images = np.zeros((3, 4, 4, 3), np.float32)
  images[1] = 99
  first, second, third = checked_inputs("x.npy", images)
  assert not np.any([first, third])
  assert re.match(r"inputs 'x\.npy', image 1: images have values from 99 to 99", str(second))


def test_files_that_are_no_array_are_errors(tmp_path):
  for name, content in (("empty.npy", b""), ("text.npy", b"text"), ("cut.npy", b"\x93NUMPY")):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read as a \.npy array"):
      read_inputs(str(tmp_path / name))
  np.savez(tmp_path / "archive.npz", x=np.zeros(3))
  with pytest.raises(UserError, match="archive of arrays"):
    read_inputs(str(tmp_path / "archive.npz"))
  with pytest.raises(UserError, match="cannot be read"):
    read_inputs(str(tmp_path / "missing.npy"))


def test_bad_images_are_errors_that_name_the_file(folder):
  classifier = load_classifier(str(folder / "haiku.npz"), variant=NAME)
  (folder / "broken.jpg").write_bytes((folder / "b.jpg").read_bytes()[:300])
  with pytest.raises(UserError, match=r"image '.*broken\.jpg' cannot be decoded"):
    classifier.preprocess(folder / "broken.jpg")
  with pytest.raises(UserError, match=r"image '.*missing\.jpg' cannot be read: No such file"):
    classifier.preprocess(folder / "missing.jpg")


def test_weights_know_the_names_of_their_classes(folder):
  assert load_weights(str(folder / "softmax")).class_names == tuple(CLASS_NAMES)
  assert load_weights(str(folder / "haiku.npz"), NAME).class_names is None


def test_names_for_another_number_of_classes_are_refused(folder, parameters):
  experiment = to_json(Experiment(name="x", model=Model(variant=NAME)))
  names = CLASS_NAMES[:3]
  save_checkpoint(folder / "few names", parameters, experiment=experiment, class_names=names)
  with pytest.raises(UserError, match="names 3 classes, but its classifier has 7"):
    load_classifier(str(folder / "few names"))


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"variant": "N0"}, "trained as variant tiny, not N0"),
    ({"activation": "gelu"}, "trained with --activation=silu, not gelu"),
    ({"numerics": "timm"}, "trained with --numerics=released, not timm"),
  ],
)
def test_contradicting_the_checkpoint_is_an_error(folder, arguments, message):
  with pytest.raises(UserError, match=message):
    load_classifier(str(folder / "softmax"), **arguments)


COMPILED_ABOVE = ("--batch_size=2",)
"""With batches of this size, the commands find their programs in the compilation cache."""


def test_the_command_prints_the_top_5_of_each_image(folder):
  odd = folder / os.fsdecode(b"caf\xe9 \x1b[2J\n.webp")
  shutil.copy(folder / "c.webp", odd)
  images = [folder / "a.png", folder / "b.jpg", odd]
  result = run(
    "nfnet.predict", f"--weights={folder / 'softmax'}", *COMPILED_ABOVE, "--pixels=32", *images
  )
  assert result.returncode == 0, result.stderr
  lines = result.stdout.splitlines()
  assert lines[::6] == [*map(str, images[:2]), str(folder / r"caf\udce9 \x1b[2J\n.webp")]
  for first in (1, 7, 13):
    probabilities = [float(line.split("%")[0]) for line in lines[first : first + 5]]
    assert probabilities == sorted(probabilities, reverse=True)
  assert "name their classes" not in result.stderr


def test_the_command_writes_logits(folder, parameters, tmp_path):
  out = tmp_path / "logits"
  result = run(
    "nfnet.predict",
    f"--weights={folder / 'haiku.npz'}",
    f"--variant={NAME}",
    f"--inputs={folder / 'inputs.npy'}",
    f"--logits_out={out}",
    *COMPILED_ABOVE,
  )
  assert (result.returncode, result.stdout) == (0, ""), result.stderr
  logits = np.load(out)
  assert logits.dtype == np.float32
  expected = expected_logits(parameters, np.load(folder / "inputs.npy"))
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_a_broken_image_does_not_keep_the_others_from_being_classified(folder, tmp_path):
  pictures = tmp_path / "pictures"
  (pictures / "b").mkdir(parents=True)
  shutil.copy(folder / "b.jpg", pictures / "1.JPG")
  (pictures / "2.jpg").write_bytes((folder / "b.jpg").read_bytes()[:300])
  shutil.copy(folder / "c.webp", pictures / "b" / "3.webp")
  (pictures / "notes.txt").write_text("no image")
  (tmp_path / "list.txt").write_text(f"{folder / 'a.png'}\n\n{tmp_path / 'missing.png'}\r\n")
  (tmp_path / "names.txt").write_text("\n".join(f"kind, {i}" for i in range(NUM_CLASSES)))
  results = tmp_path / "new" / "results"
  with group_umask():
    result = run(
      "nfnet.predict",
      f"--weights={folder / 'haiku.npz'}",
      f"--variant={NAME}",
      *COMPILED_ABOVE,
      f"--class_names_file={tmp_path / 'names.txt'}",
      f"--images={tmp_path / 'list.txt'}",
      *(f"--{kind}={results / kind}" for kind in ("json", "csv", "logits_out")),
      "--top=3",
      pictures,
    )
  assert (result.returncode, result.stdout) == (2, ""), result.stderr
  errors = result.stderr.splitlines()
  assert errors[0].startswith(f"image '{pictures}/2.jpg' cannot be decoded: ")
  assert errors[1].startswith(f"image '{tmp_path}/missing.png' cannot be read: ")
  assert re.fullmatch(r"5 images; [\d,.]+ images/s after the first batch", errors[2])
  assert errors[3].startswith("error: 2 of 5 images could not be classified")
  assert len(errors) == 4

  names = [pictures / "1.JPG", pictures / "2.jpg", pictures / "b" / "3.webp", folder / "a.png"]
  names = [*map(str, names), str(tmp_path / "missing.png")]
  assert modes_beside_group_umask(results.parent) == {}
  content = json.loads((results / "json").read_text())
  assert content["weights"] == str(folder / "haiku.npz")
  assert [one["image"] for one in content["images"]] == names
  with (results / "csv").open() as file:
    rows = list(csv.DictReader(file))
  assert [row["image"] for row in rows] == names
  logits = np.load(results / "logits_out")
  assert (logits.dtype, logits.shape) == (np.float32, (5, NUM_CLASSES))
  for one, row, of_image in zip(content["images"], rows, logits, strict=True):
    is_bad = one["image"] in (names[1], names[4])
    assert np.isnan(of_image).all() == is_bad
    assert ("error" in one) == bool(row["error"]) == is_bad
    if not is_bad:
      probabilities = np.exp(of_image - of_image.max())
      probabilities /= probabilities.sum()
      best = np.argsort(-of_image)[:3]
      assert [found["index"] for found in one["classes"]] == best.tolist()
      assert [found["name"] for found in one["classes"]] == [f"kind, {i}" for i in best]
      assert row["class_1"] == f"kind, {best[0]}"
      assert float(row["probability_3"]) == pytest.approx(probabilities[best[2]], rel=1e-4)


def test_weights_and_results_are_in_a_bucket(folder, parameters, gcs):
  gcs.put("haiku.npz", (folder / "haiku.npz").read_bytes())
  result = run(
    "nfnet.predict",
    f"--weights={gcs.url}/haiku.npz",
    f"--variant={NAME}",
    *COMPILED_ABOVE,
    *(f"--{kind}={gcs.url}/results/{kind}" for kind in ("json", "csv", "logits_out")),
    folder / "a.png",
    folder / "missing.png",
    folder / "b.jpg",
  )
  # An image is missing, and the others are in all files.
  assert (result.returncode, result.stdout) == (2, ""), result.stderr
  assert gcs.names("results/") == ["results/csv", "results/json", "results/logits_out"]
  classifier = load_classifier(str(folder / "haiku.npz"), variant=NAME)
  images = classifier.preprocess([folder / "a.png", folder / "b.jpg"])
  logits = np.load(io.BytesIO(gcs.read("results/logits_out")))
  assert np.isnan(logits[1]).all()
  expected = expected_logits(parameters, images)
  np.testing.assert_allclose(logits[::2], expected, rtol=1e-4, atol=1e-5)
  best = [f"class {row.argmax()}" for row in expected]
  rows = list(csv.DictReader(gcs.read("results/csv").decode().splitlines()))
  assert [row["class_1"] for row in rows] == [best[0], "", best[1]]
  content = json.loads(gcs.read("results/json"))["images"]
  assert [one["classes"][0]["name"] for one in content if "classes" in one] == best


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["a.png"], "--weights"),
    (["--weights=haiku.npz"], "give either image files, folders or --images=LIST.txt, or --inputs"),
    (["--weights=haiku.npz", "--inputs=inputs.npy", "a.png"], "give either image files, folders"),
    (["--weights=haiku.npz", "--images=missing.txt"], "--images=missing.txt cannot be read"),
    (["--weights=w", "--inputs=inputs.npy", "--resize=squash"], "--resize is for image files"),
    (["--weights=haiku.npz", "--pixels=99999999", "a.png"], "--pixels=99999999"),
    (["--weights=haiku.npz", "--variant=P9", "a.png"], "--variant: unknown variant 'P9'"),
    (["--weights=haiku.npz", "--logits_out=a.png/y.npy", "a.png"], "--logits_out=a.png/y.npy"),
  ],
)
def test_user_errors_are_one_line(folder, arguments, message):
  result = run(*arguments, module="nfnet.predict", folder=folder)
  assert result.returncode == 2
  (line,) = result.stderr.splitlines()
  assert message in line


def test_when_nobody_reads_the_rest_is_not_computed(folder, tmp_path):
  reader, writer = os.pipe()
  os.close(reader)
  # Its output fills the stream's buffer several times before the last image, which is not there.
  (tmp_path / "list").write_text(f"{folder / 'a.png'}\n" * 100 + "missing.png")
  arguments = [f"--weights={folder / 'softmax'}", f"--images={tmp_path / 'list'}"]
  result = run("nfnet.predict", *arguments, stdout=writer)
  assert (result.returncode, "missing" in result.stderr) == (0, False)
  # Files are written nevertheless.
  result = run("nfnet.predict", *arguments, f"--csv={tmp_path / 'out.csv'}", stdout=writer)
  os.close(writer)
  assert result.returncode == 2
  assert len((tmp_path / "out.csv").read_text().splitlines()) == 102


def test_no_image_is_overwritten(folder):
  before = (folder / "a.png").read_bytes()
  result = run(
    "nfnet.predict", f"--weights={folder / 'softmax'}", "a.png", "--csv=./a.png", folder=folder
  )
  assert result.stderr == "error: --csv=a.png is one of the images; give another path\n"
  assert (folder / "a.png").read_bytes() == before


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"pixels": 0}, "pixels=0: must be a whole number from 1 to"),
    ({"pixels": -5}, "pixels=-5: must be"),
    ({"pixels": "32"}, "pixels='32': must be"),
    ({"resize": "stretch"}, "resize='stretch': must be"),
  ],
)
def test_how_to_resize_is_checked_when_the_classifier_is_made(folder, options, message):
  with pytest.raises(ValueError, match=message):
    # Without the check of types that tests add.
    inspect.unwrap(load_classifier)(str(folder / "softmax"), **options)


@pytest.mark.parametrize("count", [0, -1])
def test_the_best_classes_are_at_least_one(folder, count):
  classifier = load_classifier(str(folder / "softmax"))
  with pytest.raises(ValueError, match=f"count={count}: must be a whole number of at least 1"):
    classifier.top(np.zeros(NUM_CLASSES, np.float32), count)
